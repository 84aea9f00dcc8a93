"""Experts that stay on the CPU while the rest of the model is on a device: the answers of the device, bit for bit.

On a CUDA card: pytest tests/device/test_outside.py --device cuda
"""

import copy

import pytest
import torch

from mistral_lab import load
from mistral_lab.four_bit import ExactLinear4bit, audit, keep_experts_outside, outside, slots, watch_experts

TOKENS = torch.arange(3, 60)[None]
ONE_EXPERT = 3 * 16384 + 3 * 512  # bytes of tiny-mixtral's codes and scales; each is a power of two


@torch.no_grad()
def answers(model, device):
    tokens = TOKENS.to(device)
    cache, parts = None, []
    for part in tokens.split([20, 30, 1, 1, 1, 1, 1, 1, 1], dim=1):
        output = model(part, past_key_values=cache)
        cache = output.past_key_values
        parts.append(output.logits.cpu())
    batch = torch.cat([tokens[:, :9], tokens[:, 9:18]])
    settings = {"do_sample": False, "pad_token_id": 2, "max_new_tokens": 12}
    return [model(tokens).logits.cpu(), *parts, model.generate(batch, **settings).cpu()]


def equal(found, expected):
    return [torch.equal(*pair) for pair in zip(found, expected, strict=True)]


@pytest.fixture(scope="module")
def source():
    return load("tiny-mixtral", bits=4, device="cpu", dtype="bfloat16").model


@pytest.fixture(scope="module")
def expected(source, device):
    return answers(copy.deepcopy(source).to(device), device)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("slots_per_layer", [2, 3, 7, 8])
def test_the_answers_are_those_of_the_whole_model(slots_per_layer, packed, source, expected, device):
    model = copy.deepcopy(source)
    for part in model.modules():
        if isinstance(part, ExactLinear4bit):
            part.pack() if packed else part.unpack()
    shared = keep_experts_outside(model, device, slots_per_layer=slots_per_layer, pinned_bytes=9 * ONE_EXPERT)
    assert model.device == device
    experts = [layer for layer in model.modules() if isinstance(layer, outside.OutsideExperts)]
    assert {weight.device.type for layer in experts for weight in layer.parameters()} == {"cpu"}
    assert {slot.module.w1.weight.device for slot, _ in shared.slots(None).table.spare} == {device}
    with watch_experts(model) as uses:
        found = answers(model, device)
    assert all(equal(found, expected))
    assert any(use.ahead for use in uses) or slots_per_layer == 8  # then nothing is missing after the prompt
    assert any(use.guessed for use in uses) or slots_per_layer == 8
    pinned = [(layer, number) for number in range(8) for layer in range(4) if is_pinned(experts[layer][number])]
    assert pinned == list(shared.pinned)
    assert len(pinned) == (9 if device.type == "cuda" else 0)
    assert audit(model).passed
    saved, before = model.state_dict(), source.state_dict()
    assert all(torch.equal(saved[name].cpu(), before[name]) for name in before)


def is_pinned(expert):
    return all(matrix.weight.data.is_pinned() for matrix in slots.matrices_of(expert))


def test_an_interruption_between_copy_and_computation(source, expected, device, monkeypatch):
    model = copy.deepcopy(source)
    keep_experts_outside(model, device, slots_per_layer=2)
    take, calls = slots.Slot.take, []

    def stopping(self, expert):
        calls.append(1)
        if len(calls) % 7 == 0:
            self.tensors[0].zero_()
            raise KeyboardInterrupt
        take(self, expert)

    for _ in range(6):
        with monkeypatch.context() as patch:
            patch.setattr(slots.Slot, "take", stopping)
            with pytest.raises(KeyboardInterrupt):
                answers(model, device)
    assert all(equal(answers(model, device), expected))


def test_a_model_that_moves_away_says_what_to_do(source, device):
    if device.type == "cpu":
        pytest.skip("the device is the CPU: the model cannot move there")
    model = copy.deepcopy(source)
    keep_experts_outside(model, device, slots_per_layer=2)
    model.to("cpu")
    with pytest.raises(ValueError, match=r"the model computes on cpu, its experts are brought to \w+:0: call keep_exp"):
        model(TOKENS)
    keep_experts_outside(model, "cpu", slots_per_layer=2)
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, source(TOKENS).logits)
