"""Experts outside of the device: the same answers for every budget, and nothing lost whatever happens on the way."""

import copy
import gc
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig

from mistral_lab import load
from mistral_lab.cache import RollingCache
from mistral_lab.four_bit import (
    Costs,
    ExactLinear4bit,
    OutsideExperts,
    audit,
    experts_outside,
    keep_experts_outside,
    nf4_config,
    outside,
    slots,
    watch_experts,
)
from mistral_lab.four_bit.outside import choose_pinned

TOKENS = torch.arange(3, 43)[None]
BUDGETS = range(2, 9)
A, LAYERS = 2, 4


def fresh(*, fused):
    model = load("tiny-mixtral", bits=4, device="cpu").model
    for module in model.modules():
        if isinstance(module, ExactLinear4bit) and not fused:
            module.fused_kernel = False
    return model


@torch.no_grad()
def logits(model, tokens=TOKENS):
    return model(tokens).logits


def answers(model):
    """What a model answers in every way that a reader uses."""
    pad = dict(pad_token_id=2, max_new_tokens=5)
    batch = torch.full((3, 12), 2)
    for row, length in enumerate((12, 5, 1)):
        batch[row, -length:] = TOKENS[0, :length]
    mask = (batch != 2).long()
    chunked, cache = [], RollingCache(model.config)
    with torch.no_grad():
        chunked += [model(part, past_key_values=cache).logits for part in TOKENS.split([17, 20, 1, 2], dim=1)]
    torch.manual_seed(0)
    return {
        "prefill": logits(model),
        "short": logits(model, TOKENS[:, :6]),
        "chunks": torch.cat(chunked, dim=1),
        "greedy": model.generate(TOKENS[:, :9], do_sample=False, **pad),
        "batch": model.generate(batch, attention_mask=mask, do_sample=False, **pad),
        "beams": model.generate(TOKENS[:, :7], num_beams=3, do_sample=False, **pad),
        "sampling": model.generate(TOKENS[:, :7], do_sample=True, **pad),
    }


@pytest.fixture(scope="module", params=[True, False], ids=["fused", "plain"])
def pair(request):
    """What the model answers with all experts where they are used, and the same model with its experts outside."""
    expected = answers(fresh(fused=request.param))
    model = fresh(fused=request.param)
    keep_experts_outside(model, "cpu", slots_per_layer=2)
    return expected, model


@pytest.fixture(scope="module")
def whole():
    return fresh(fused=True)


@pytest.fixture
def model():
    model = fresh(fused=True)
    keep_experts_outside(model, "cpu", slots_per_layer=2)
    return model


def layers(model):
    return [module for module in model.modules() if isinstance(module, OutsideExperts)]


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# The same answers


@pytest.mark.parametrize("slots_per_layer", BUDGETS)
def test_the_answers_are_those_of_the_whole_model_bit_for_bit(slots_per_layer, pair):
    expected, model = pair
    keep_experts_outside(model, "cpu", slots_per_layer=slots_per_layer)
    found = answers(model)
    assert {name: torch.equal(found[name], expected[name]) for name in expected} == dict.fromkeys(expected, True)


def test_a_slot_that_lacked_the_scales_would_be_noticed(pair, monkeypatch):
    expected, model = pair
    keep_experts_outside(model, "cpu", slots_per_layer=2)
    monkeypatch.setattr(slots, "_tensors", lambda state: [state.code])
    assert not torch.equal(logits(model), expected["prefill"])


def test_experts_in_the_wrong_place_would_be_noticed(pair, monkeypatch):
    expected, model = pair
    keep_experts_outside(model, "cpu", slots_per_layer=2)
    find = slots.Table.find
    monkeypatch.setattr(slots.Table, "find", lambda self, key: find(self, key) or self.spare[0][0])
    assert not torch.equal(logits(model), expected["prefill"])


def test_what_lies_packed_is_unpacked_where_it_is_needed_plain(whole):
    logits(whole)
    expert = whole.model.layers[0].mlp.experts[0]
    source = expert.w1
    source.pack()
    if not source.packed:
        pytest.skip("no AVX512_BF16 here: nothing is packed")
    plain = fresh(fused=False).model.layers[0].mlp.experts[0].w1
    source.fused_kernel = False
    try:
        codes, scales = slots._as_needed(source, torch.device("cpu"))
    finally:
        source.fused_kernel = True
    assert source.packed
    assert torch.equal(codes, plain.weight.data)
    assert torch.equal(scales.absmax, plain.weight.quant_state.absmax)
    assert scales.nested


# What stays as it is


def test_what_is_saved_copied_and_counted_is_the_whole_model(model, whole, tmp_path):
    names = [name for name, _ in model.named_modules()]
    assert names == [name for name, _ in whole.named_modules()]
    expected = logits(whole)
    assert torch.equal(logits(model), expected)
    assert audit(model) == audit(whole)
    model.save_pretrained(tmp_path)
    assert same(state(model), state(whole))
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert same(state(again), state(whole))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert experts_outside(other) is not experts_outside(model)
        assert torch.equal(logits(other), expected)
    assert torch.equal(logits(model), expected)


def test_moving_the_model_leaves_the_experts_where_they_are(model):
    expected = logits(model)
    for layer in layers(model):
        held = [*layer.parameters()]
        layer.to("meta")
        assert [weight.data_ptr() for weight in layer.parameters()] == [weight.data_ptr() for weight in held]
    assert torch.equal(logits(model.to("cpu")), expected)
    with pytest.raises(ValueError, match=r"computes on meta, its experts are brought to cpu: call keep_experts_outs"):
        layers(model)[0](torch.zeros(1, 128, device="meta"), torch.zeros(1, 2, device="meta"), None)


def test_a_model_of_as_many_layers_as_the_real_one_is_copied_and_pickled(tmp_path):
    config = MixtralConfig(
        vocab_size=8, hidden_size=64, intermediate_size=64, num_hidden_layers=32, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, num_local_experts=2, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=nf4_config()).eval()
    keep_experts_outside(model, "cpu", slots_per_layer=2)  # each layer names the next one
    expected = logits(model, TOKENS % 8)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, TOKENS % 8), expected)


def test_a_model_that_is_dropped_takes_its_slots_along(model):
    logits(model)
    shared = weakref.ref(experts_outside(model))
    slot = weakref.ref(next(iter(shared().slots(None).table.held.values())))
    gc.collect()
    gc.disable()  # gigabytes of tensors do not wake it
    try:
        for block in model.model.layers:
            block.mlp.experts = None
        assert shared() is None
        assert slot() is None
    finally:
        gc.enable()


def test_two_processes_share_the_files(whole, tmp_path):
    whole.save_pretrained(tmp_path)
    before = {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in tmp_path.iterdir()}
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "from mistral_lab.four_bit import keep_experts_outside\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()\n"
        "keep_experts_outside(model, 'cpu', slots_per_layer=3)\n"
        "with torch.no_grad(): logits = model(torch.arange(3, 43)[None]).logits\n"
        "torch.save(logits, sys.argv[2])\n"
    )
    there = tmp_path.parent / f"{tmp_path.name}-logits.pt"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(there)])
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    keep_experts_outside(model, "cpu", slots_per_layer=2)
    here = [logits(model)]
    while other.poll() is None:
        here.append(logits(model))
    assert other.returncode == 0
    assert all(torch.equal(found, torch.load(there, weights_only=True)) for found in here)
    assert before == {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in tmp_path.iterdir()}
    there.unlink()


# Interruptions


class Stopped(KeyboardInterrupt):
    """Ctrl-C at a chosen moment."""


def stop_at(monkeypatch, owner, name, step, *, halfway=False):
    """Have the call number `step` of a method stop, before it does anything or after the half of it."""
    method, calls = getattr(owner, name), []

    def stopping(self, *arguments, **options):
        calls.append(1)
        if len(calls) == step:
            if halfway:
                for tensor in self.tensors[: len(self.tensors) // 2]:
                    tensor.zero_()
            raise Stopped
        return method(self, *arguments, **options)

    monkeypatch.setattr(owner, name, stopping)


MOMENTS = {
    "a copy": (slots.Slot, "take", True),
    "before a copy": (slots.Copies, "fill", False),
    "after a copy": (slots.Slots, "settle", False),
    "the computation": (slots.FourBitExpert, "forward", False),
    "the end of it": (slots.Copies, "done", False),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_whatever_is_interrupted_the_model_answers_as_before(moment, pair, monkeypatch):
    expected, model = pair
    owner, name, halfway = MOMENTS[moment]
    shared = keep_experts_outside(model, "cpu", slots_per_layer=2)
    every = {slot for slot, _ in shared.slots(None).table.spare}
    prompt, token = TOKENS[:, :6], TOKENS[:, 6:7]
    stopped = 0
    for step in range(1, 200):
        with monkeypatch.context() as patch:
            stop_at(patch, owner, name, step, halfway=halfway)
            try:
                with torch.no_grad():
                    cache = model(prompt).past_key_values
                    model(token, past_key_values=cache)  # decoding, with guesses
            except Stopped:
                stopped += 1
            else:
                break
        table = shared.slots(None).table
        assert every == {*table.held.values(), *(slot for slot, _ in table.spare)}
        assert len(table.held) + len(table.spare) == len(every)
        assert torch.equal(logits(model, prompt), expected["short"])
    assert stopped > 10
    assert torch.equal(logits(model), expected["prefill"])


def test_a_slot_that_is_noted_before_it_is_filled_would_be_noticed(pair, monkeypatch):
    expected, model = pair
    shared = keep_experts_outside(model, "cpu", slots_per_layer=8)
    def too_early(self, key, expert, *, keep):
        slot = self.table.spare[0][0]
        self.table = slots.Table(self.table.held, (*self.table.spare[1:], (slot, key)))
        self.copies.fill(slot, expert)
        return slot

    with monkeypatch.context() as patch:
        patch.setattr(slots.Slots, "bring", too_early)
        stop_at(patch, slots.Slot, "take", 3, halfway=True)
        with pytest.raises(Stopped):
            logits(model)
    assert shared.slots(None).table.find((0, 2)) is not None
    assert not torch.equal(logits(model), expected["prefill"])


# Computing where an expert lies


def test_a_missing_expert_is_computed_outside_where_that_is_cheaper(pair):
    expected, model = pair
    shared = keep_experts_outside(model, "cpu", slots_per_layer=2, missing_on_cpu=True)
    assert shared.costs.bring_s > 0
    assert shared.costs.compute_s > 0
    for costs, cheaper in ((Costs(bring_s=1.0, compute_s=0.4), True), (Costs(bring_s=1.0, compute_s=1.0), False)):
        shared = keep_experts_outside(model, "cpu", slots_per_layer=2)
        shared.costs = costs
        with watch_experts(model) as uses:
            found = answers(model)
        decoding = [use for use in uses if use.tokens == 1]
        assert any(use.computed_outside for use in decoding) == cheaper
        assert any(use.ahead for use in decoding) != cheaper
        assert not any(use.computed_outside for use in uses if use.tokens > outside.DECODING_TOKENS)
        assert all(use.brought == () for use in decoding[4 * LAYERS :]) == cheaper
        assert all(torch.equal(found[name], expected[name]) for name in expected)  # here the CPU is the device


# Memory


def test_slots_take_what_is_said(pair):
    _, model = pair
    one, two = (keep_experts_outside(model, "cpu", slots_per_layer=number) for number in (2, 3))
    expert = layers(model)[0][0]
    codes = sum(part.weight.nbytes for part in expert.modules() if isinstance(part, ExactLinear4bit))
    assert codes < two.expert_bytes < 1.2 * codes + 3 * 1300  # scales, and three times two tables of 1 KiB and 64 bytes
    assert one.slot_bytes == (LAYERS * 2 + A) * one.expert_bytes
    assert two.slot_bytes == (LAYERS * 3 + A) * two.expert_bytes


def test_pinned_experts_fill_their_budget_layer_by_layer():
    sizes = [100, 128, 5]
    each = 128 + 128 + 8
    for budget in (0, each - 1, each, 5 * each, 100 * each):
        chosen, taken = choose_pinned(sizes, layers=3, experts=2, budget=budget)
        assert len(chosen) == min(budget // each, 6)
        assert taken == len(chosen) * each <= budget
    assert chosen[:4] == ((0, 0), (1, 0), (2, 0), (0, 1))


# Bad input


@pytest.mark.parametrize(
    ("number", "error", "said"),
    [
        (1, ValueError, "slots_per_layer is 1: expected at least 2, the experts that a token uses in each layer"),
        (-3, ValueError, "slots_per_layer is -3: expected at least 2, the experts that a token uses in each layer"),
        (2.5, TypeError, "slots_per_layer is 2.5: expected a whole number"),
        (True, TypeError, "slots_per_layer is True: expected a whole number"),
    ],
)
def test_a_budget_that_is_none(number, error, said, pair):
    with pytest.raises(error) as raised:
        keep_experts_outside(pair[1], "cpu", slots_per_layer=number)
    assert str(raised.value) == said


def test_models_that_have_no_such_experts():
    for name, bits in (("tiny-mistral", 4), ("tiny-mixtral", None)):
        with pytest.raises(ValueError, match=r"M\w+ForCausalLM has no experts in 4 bits: expected a Mixtral loaded wi"):
            keep_experts_outside(load(name, bits=bits).model, "cpu", slots_per_layer=2)


def test_experts_that_are_not_on_the_cpu(whole):
    other = copy.deepcopy(whole)
    other.model.layers[1].mlp.experts[3] = torch.nn.Linear(2, 2, device="meta")
    with pytest.raises(ValueError, match="the experts lie on cpu, meta: expected all of them on cpu, to stay there"):
        keep_experts_outside(other, "cpu", slots_per_layer=2)


def test_training_is_refused_in_one_sentence(model):
    expected = logits(model)
    model.train()
    for context in (torch.no_grad(), torch.enable_grad()):
        with context, pytest.raises(RuntimeError, match=r"\Aa model whose experts are outside cannot be trained: exp"):
            model(TOKENS)
    model.eval()
    with pytest.raises(RuntimeError, match="cannot be trained"):
        model(inputs_embeds=torch.zeros(1, 3, 128, dtype=torch.bfloat16, requires_grad=True))
    assert torch.equal(model(TOKENS).logits, expected)  # gradients are enabled, and nothing asks for them
