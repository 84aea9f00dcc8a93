"""Packing for bitsandbytes' CPU kernel: its own layout bit for bit, and back without loss."""

import copy
import io

import pytest
import torch
from bitsandbytes import functional

from mistral_lab import load
from mistral_lab.four_bit import ExactLinear4bit, linear
from mistral_lab.four_bit.kernel_layout import fits_kernel, pack_codes, packed_scales, packed_state, unpack_codes
from mistral_lab.four_bit.matrix import quantize_matrix

# One strip, several, more columns than rows and fewer.
SHAPES = [(32, 64), (96, 128), (64, 320), (320, 64)]


def quantised(shape, double):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()
    return quantize_matrix("weight", weight, double=double)


def by_definition(codes: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The layout as the module's docstring draws it, one byte at a time."""
    number = torch.stack([codes.flatten() >> 4, codes.flatten() & 15], dim=1).view(rows, columns).tolist()
    out = []
    for strip in range(0, rows, 32):
        for j in range(0, columns, 2):
            for i in range(strip, strip + 16):
                out += [number[i][column] + 16 * number[i + 16][column] for column in (j, j + 1)]
    return torch.tensor(out, dtype=torch.uint8).view(rows, columns // 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_layout_is_the_one_that_is_drawn(shape):
    codes, _ = quantised(shape, double=False)
    assert torch.equal(pack_codes(codes, torch.Size(shape)), by_definition(codes, *shape))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_scales_are_those_of_bitsandbytes(shape, double):
    codes, state = quantised(shape, double)
    expected, expected_state = functional._convert_weight_packed_for_cpu(codes.clone(), copy.copy(state))
    ready = packed_state(state, packed_scales(state))
    assert torch.equal(pack_codes(codes, state.shape), expected)
    assert torch.equal(ready.absmax, expected_state.absmax)
    for field in ("shape", "dtype", "blocksize", "nested", "packing_format_for_cpu"):
        assert getattr(ready, field) == getattr(expected_state, field), field
    assert ready.quant_type != expected_state.quant_type == state.quant_type  # nobody is to dequantise by it
    assert state.nested is double  # what it was made from is as it was
    assert not getattr(state, "packing_format_for_cpu", False)


@pytest.mark.parametrize("shape", SHAPES)
def test_codes_come_back(shape):
    codes, state = quantised(shape, double=False)
    assert torch.equal(unpack_codes(pack_codes(codes, state.shape)), codes.flatten())


def test_rows_swapped_would_be_noticed():
    codes, state = quantised((32, 64), double=False)
    packed = pack_codes(codes, state.shape)
    assert not torch.equal(unpack_codes(packed.roll(1, dims=1)), codes.flatten())


@pytest.fixture
def packs_everywhere(monkeypatch):
    """Layers pack and unpack on any CPU: what is tested here never multiplies."""

    def packable(self) -> bool:
        whole_tiles = fits_kernel(torch.Size([self.out_features, self.in_features]))
        return whole_tiles and self.weight.device.type == "cpu" and not self.packed

    monkeypatch.setattr(ExactLinear4bit, "packable", property(packable))


def layers(model):
    return [module for module in model.modules() if isinstance(module, ExactLinear4bit)]


def test_a_layer_comes_back_as_it_was(packs_everywhere):
    layer = next(part for part in layers(load("tiny-mistral", bits=4).model) if part.packable)
    codes, state = layer.weight.data.clone(), layer.weight.quant_state
    scales, shape = state.absmax.clone(), layer.weight.shape
    with torch.inference_mode():
        layer.pack()
    assert layer.packed
    layer.unpack()
    assert not layer.packed
    assert torch.equal(layer.weight.data, codes)
    assert layer.weight.shape == shape
    assert layer.weight.quant_state is state
    assert torch.equal(state.absmax, scales)
    assert not layer.weight.is_inference()


def test_the_first_forward_packs_everything_once_and_says_so(packs_everywhere, monkeypatch):
    monkeypatch.setattr(linear, "BAR_AFTER_S", 0)
    told = io.StringIO()
    bar = linear.tqdm
    monkeypatch.setattr(linear, "tqdm", lambda **options: bar(file=told, **options))
    monkeypatch.setattr(ExactLinear4bit, "forward", lambda self, x: x.new_zeros(*x.shape[:-1], self.out_features))
    model = load("tiny-mixtral", bits=4).model
    tokens = torch.tensor([[1, 2, 3]])
    packable = [part for part in layers(model) if part.packable]
    model(tokens)  # with gradients enabled nothing is packed
    assert not any(part.packed for part in packable)
    with torch.no_grad():
        model(tokens)
        assert all(part.packed for part in packable)
        assert "Packing for this CPU" in told.getvalue()
        length = len(told.getvalue())
        model(tokens)
    assert len(told.getvalue()) == length
