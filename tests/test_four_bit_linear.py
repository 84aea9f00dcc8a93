"""The short way to the fused kernel is bitsandbytes' own to the bit, and steps aside where it must."""

import copy

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16, quantize_4bit
from bitsandbytes.nn import Linear4bit

from mistral_lab.four_bit import ExactLinear4bit, linear

pytestmark = pytest.mark.skipif(not has_avx512bf16(), reason="bitsandbytes' fused kernel needs AVX512_BF16")


def layer(N=96, K=128, compute_dtype=torch.bfloat16):
    torch.manual_seed(0)
    made = ExactLinear4bit(K, N, compute_dtype=compute_dtype, double=True).eval()
    weight = torch.randn(N, K) * 0.1
    codes, state = quantize_4bit(weight.bfloat16(), quant_type="nf4", compress_statistics=True)
    made.weight.data, made.weight.quant_state = codes, state
    made.quant_state, made.weight.bnb_quantized = state, True
    return made


@pytest.fixture
def short_ways(monkeypatch):
    """The number of rows of each call that went the short way."""
    rows, real = [], linear.multiply_packed
    monkeypatch.setattr(linear, "multiply_packed", lambda x, *others: rows.append(len(x)) or real(x, *others))
    return rows


@torch.no_grad()
@pytest.mark.parametrize("compute_dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
def test_it_is_bitsandbytes_to_the_bit(compute_dtype, dtype, short_ways):
    ours = layer(compute_dtype=compute_dtype)
    ours.pack()
    theirs = copy.copy(ours)  # the same weight, and a compute_dtype of its own
    for shape in [(1, 1, 128), (128,), (3, 128), (2, 5, 128), (70, 128)]:
        x = torch.randn(shape).to(dtype)
        expected = Linear4bit.forward(theirs, x)
        out = ours(x)
        assert out.dtype == expected.dtype == dtype
        assert out.shape == expected.shape == (*shape[:-1], 96)
        assert torch.equal(out, expected)
    assert short_ways == [1, 1, 3, 10, 70]


@torch.no_grad()
def test_rows_that_do_not_lie_in_one_piece(short_ways):
    ours = layer()
    x = torch.randn(2, 256, 3, dtype=torch.bfloat16)[:, :128].transpose(1, 2)
    expected = ours(x.contiguous())
    assert torch.equal(ours(x), expected)
    wide = torch.zeros(3, 300, dtype=torch.bfloat16)
    wide[:, 7:135] = x[0]
    assert torch.equal(ours(wide[:, 7:135]), expected[0])
    assert short_ways == [6, 6, 3]
    wide[:, 7:135] = x[0].flip(0)
    assert not torch.equal(ours(wide[:, 7:135]), expected[0])


def test_what_the_kernel_cannot_do_goes_another_way(short_ways):
    ours = layer()
    with torch.no_grad():
        ours.pack()
        assert ours(torch.zeros(0, 128)).shape == (0, 96)  # a division by zero there would end the process
    x = torch.randn(2, 128, requires_grad=True)
    ours(x).sum().backward()  # the kernel has no gradient
    assert x.grad.abs().sum() > 0
    assert not ours.packed
    ours.train()(x.detach())
    assert not ours.packed
    assert short_ways == []
    with torch.no_grad():
        ours.eval()(x)
    assert short_ways == [2]
