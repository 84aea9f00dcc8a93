"""Four bits on a device: the same codes wherever a model goes, and the arithmetic that they stand for."""

import copy
import shutil

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from transformers import AutoModelForCausalLM, MixtralConfig

from mistral_lab import load, memory
from mistral_lab.checkpoints import BUNDLED
from mistral_lab.config import ModelConfig
from mistral_lab.four_bit import ExactLinear4bit, audit, matrix, nf4_config


def four_bits(folder, device, **settings):
    return AutoModelForCausalLM.from_pretrained(
        str(folder), device_map=device, **{"dtype": torch.float32, "quantization_config": nf4_config()} | settings
    ).eval()


@torch.no_grad()
def logits(model):
    return model(torch.arange(3, 60, device=model.device)[None]).logits


def state(model):
    return {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("name", BUNDLED)
def test_what_is_held(name, double, device):
    model = four_bits(BUNDLED[name], device, quantization_config=nf4_config(double=double), dtype=torch.bfloat16)
    report = audit(model)
    assert report.passed
    assert report.nbytes == memory.weight_bytes(
        ModelConfig.from_pretrained(BUNDLED[name]), "nf4-double" if double else "nf4"
    )
    held = [*model.parameters(), *(layer.weight.quant_state.absmax for layer in linears(model))]
    assert {tensor.device for tensor in held} == {device}


def linears(model):
    return [module for module in model.modules() if isinstance(module, ExactLinear4bit)]


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("shape", [(64, 64), (33, 64), (96, 160)])
def test_pieces_come_out_as_the_whole(shape, double, device, monkeypatch):
    monkeypatch.setattr(matrix, "PIECE", 64 * 5)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    codes, held = matrix.quantize_matrix("w", weight, double=double)
    expected_codes, expected = quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
    assert torch.equal(codes, expected_codes)
    ours, theirs = held.as_dict(packed=True), expected.as_dict(packed=True)
    assert ours.keys() == theirs.keys()
    # The mean of the scales is a sum in another order on another kernel: a float32 keeps seven digits.
    assert all(torch.allclose(ours[key].float(), theirs[key].float(), rtol=1e-6, atol=0) for key in ours)


@pytest.mark.parametrize("name", BUNDLED)
def test_the_answers_are_those_of_the_same_codes_on_the_cpu(name, device):
    here = four_bits(BUNDLED[name], device)
    there = copy.deepcopy(here).to("cpu")
    assert same(state(here), state(there))
    there.train()  # the path that rounds nothing
    # float32 sums of at most 256 products in another order, through four layers.
    torch.testing.assert_close(logits(here).cpu(), logits(there), rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", BUNDLED)
def test_nothing_that_is_done_to_a_model_changes_it(name, device, tmp_path):
    model = four_bits(BUNDLED[name], device)
    before, first = state(model), logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), first)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=device, dtype=torch.float32).eval()
    assert same(state(again), before)
    assert torch.equal(logits(again), first)
    model.to("cpu")
    logits(model)  # which may move the codes about
    model.to(device)
    assert same(state(model), before)
    assert torch.equal(logits(model), first)


def test_gradients_reach_what_goes_in(device):
    model = four_bits(BUNDLED["tiny-mixtral"], device)
    layer = model.model.layers[0].mlp.experts[0].w1
    x = torch.ones(3, 128, device=device, requires_grad=True)
    layer(x).sum().backward()
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    torch.testing.assert_close(x.grad[0], weight.sum(0), rtol=0, atol=1e-4)  # float32 sums of 256 weights


def test_a_checkpoint_in_16_bits_is_quantised_there_once(device, tmp_path, monkeypatch):
    monkeypatch.setenv("MISTRAL_LAB_CACHE", str(tmp_path / "cache"))
    config = MixtralConfig(
        vocab_size=2560, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    source = tmp_path / "source"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(source)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED["tiny-mixtral"] / file, source)
    first, again = (load(source, bits=4, device=device) for _ in range(2))
    assert len(list((tmp_path / "cache").glob("source-*"))) == 1
    assert audit(first.model).passed
    assert same(state(first.model), state(again.model))
    assert first.model.device == device
    assert torch.equal(logits(first.model), logits(again.model))
