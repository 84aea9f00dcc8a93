"""What the slots hold: predicted, hit by hit and byte by byte, from the routers' inputs and choices alone."""

import numpy as np
import pytest
import torch

from mistral_lab import load, moe
from mistral_lab.four_bit import guess_hits, keep_experts_outside, slots, watch_experts
from mistral_lab.training import evaluation

A, LAYERS, DECODING = 2, 4, 8


@pytest.fixture(scope="module")
def loaded():
    return load("tiny-mixtral", bits=4, device="cpu")


@pytest.fixture(scope="module")
def text(loaded):
    (document,) = evaluation.held_out(loaded.tokenizer, 1)
    return torch.tensor([document.tokens[:48]])


class Routers:
    """Notes what goes into each router and what it chooses."""

    def __init__(self, model):
        self.seen, self.weights = [], [block.mlp.gate.weight.detach().float().numpy() for block in model.model.layers]
        self.hooks = [block.mlp.gate.register_forward_hook(self.note) for block in model.model.layers]

    def note(self, module, inputs, output):
        x = inputs[0].flatten(end_dim=-2)
        self.seen.append((len(self.seen) % LAYERS, x, output[2].tolist()))

    def remove(self):
        for hook in self.hooks:
            hook.remove()


class Reference:
    """The same cache in plain Python: lists of expert numbers, the most recent first, and a list of spare slots."""

    def __init__(self, kept):
        self.kept = kept
        self.caches = [[] for _ in range(LAYERS)]
        self.recent = [[] for _ in range(LAYERS)]
        self.spare = [None] * (kept * LAYERS + A)

    def overwrite(self, content, keep):
        """Bring an expert into a spare slot: an empty one first, then the oldest, of those to keep last."""
        place = next((i for i, held in enumerate(self.spare) if held is None), None)
        if place is None:
            place = next((i for i, held in enumerate(self.spare) if held not in keep), 0)
        del self.spare[place]
        self.spare.append(content)

    def forward(self, layer, rows, guess):
        """Return what was held, guessed and brought, and what was brought ahead for the next layer."""
        used = []
        for row in rows[::-1]:
            used += [expert for expert in row if expert not in used]
        self.recent[layer] = used + [expert for expert in self.recent[layer] if expert not in used]
        held, guessed, brought = [], [], []
        for expert in sorted(used):
            if expert in self.caches[layer]:
                held.append(expert)
                continue
            left = {other for other in used if other >= expert}
            if (layer, expert) in self.spare:
                guessed.append(expert)
            else:
                brought.append(expert)
                self.overwrite((layer, expert), {(layer, other) for other in left})
            self.settle(layer, expert, left)
        ahead = []
        if guess:
            wanted = [expert for expert in guess if expert not in self.caches[layer + 1]][:A]
            for expert in wanted:
                if (layer + 1, expert) not in self.spare:
                    ahead.append(expert)
            for expert in ahead:
                self.overwrite((layer + 1, expert), {(layer + 1, other) for other in wanted})
        return tuple(held), tuple(guessed), tuple(brought), tuple(sorted(ahead))

    def settle(self, layer, expert, left):
        cache, age = self.caches[layer], self.recent[layer].index
        self.spare.remove((layer, expert))
        if len(cache) < self.kept:
            cache.append(expert)
            return
        self.spare.append(None)  # of the expert that leaves, or of this one
        others = [other for other in cache if other not in left and age(other) > age(expert)]
        if others:
            cache.remove(max(others, key=age))
            cache.append(expert)


def guessed_by_numpy(x, weight, tokens):
    """The next router's choices for this layer's input, the first choices of all tokens ahead of their second ones."""
    if tokens > DECODING:
        return []
    logits = x.float().numpy() @ weight.T
    order = np.argsort(-logits, axis=1, kind="stable")[:, :A]
    return list(dict.fromkeys(order.T.flatten().tolist()))


def run(model, text):
    """Prefill, single tokens, a small chunk, a batch, a prompt in between."""
    with torch.no_grad():
        cache = None
        for part in text.split([9, *[1] * 15, 5, *[1] * 8, 11], dim=1):
            cache = model(part, past_key_values=cache).past_key_values
        model(text[:, :6].reshape(3, 2))
        model(text[:, 6:9].reshape(3, 1))


@pytest.mark.parametrize("kept", [2, 3, 5, 8])
def test_each_hit_and_each_byte_is_predicted(kept, loaded, text):
    model = loaded.model
    shared = keep_experts_outside(model, "cpu", slots_per_layer=kept)
    routers = Routers(model)
    try:
        with watch_experts(model) as uses:
            run(model, text)
    finally:
        routers.remove()
    reference = Reference(kept)
    assert len(uses) == len(routers.seen) > 25 * LAYERS
    ways = {"held": 0, "guessed": 0, "brought": 0, "ahead": 0}
    for use, (layer, x, rows) in zip(uses, routers.seen, strict=True):
        guess = [] if layer == LAYERS - 1 else guessed_by_numpy(x, routers.weights[layer + 1], len(rows))
        expected = reference.forward(layer, rows, guess)
        assert (use.layer, use.tokens) == (layer, len(rows))
        assert use.needed == tuple(sorted({expert for row in rows for expert in row}))
        assert (use.held, use.guessed, use.brought, use.ahead) == expected
        assert use.moved_bytes == shared.expert_bytes * (len(use.brought) + len(use.ahead))
        assert use.computed_outside == ()
        assert sorted((*use.held, *use.guessed, *use.brought)) == list(use.needed)
        ways = {way: count + len(getattr(use, way)) for way, count in ways.items()}
    assert all(ways.values())
    if kept == 8:
        moved = sum(use.moved_bytes for use in uses)
        assert moved <= 8 * LAYERS * shared.expert_bytes  # nothing is brought twice


@pytest.mark.parametrize("kept", [2, 4])
def test_hits_while_decoding_are_those_of_the_statistics_of_routing(kept, loaded, text):
    keep_experts_outside(loaded.model, "cpu", slots_per_layer=kept)
    routers = Routers(loaded.model)
    try:
        with watch_experts(loaded.model) as uses, torch.no_grad():
            cache = None
            for token in text[:, :24].split(1, dim=1):
                cache = loaded.model(token, past_key_values=cache).past_key_values
    finally:
        routers.remove()
    for layer in range(LAYERS):
        indices = torch.tensor([row for number, _, rows in routers.seen if number == layer for row in rows])
        hits = sum(len(use.held) for use in uses if use.layer == layer)
        assert hits / indices.numel() == moe.lru_hit_rate(indices, kept=kept)


def test_prefill_brings_each_expert_once_and_none_that_is_held(loaded, text):
    keep_experts_outside(loaded.model, "cpu", slots_per_layer=3)
    with watch_experts(loaded.model) as uses, torch.no_grad():
        loaded.model(text)
        held = [{expert for layer, expert in held_now(loaded.model) if layer == number} for number in range(LAYERS)]
        loaded.model(text)
    for use in uses[:LAYERS]:
        assert use.brought == use.needed
    for use in uses[LAYERS:]:
        assert set(use.held) == held[use.layer] & set(use.needed)
        assert set(use.brought) == set(use.needed) - held[use.layer]


def held_now(model):
    return model.model.layers[0].mlp.experts.outside.slots(None).table.held


def test_another_order_of_leaving_would_be_noticed(loaded, text, monkeypatch):
    monkeypatch.setattr(slots.Slots, "touch", lambda self, layer, order: first_in(self, layer, order))
    with pytest.raises(AssertionError):
        test_each_hit_and_each_byte_is_predicted(2, loaded, text)


def first_in(self, layer, order):
    """First in, first out: being used again does not count."""
    self.recency[layer] = [expert for expert in order if expert not in self.recency[layer]] + self.recency[layer]


def test_a_model_with_all_its_experts_is_watched_too(text):
    model = load("tiny-mixtral", bits=4, device="cpu").model
    with watch_experts(model) as uses, torch.no_grad():
        model(text[:, :3])
        with pytest.raises(RuntimeError, match="stop"), watch_experts(model) as inner:
            raise RuntimeError("stop")
        model(text[:, :1])
    assert inner == []
    assert [(use.layer, use.tokens) for use in uses] == [(n, t) for t in (3, 1) for n in range(LAYERS)]
    assert all(use.held == use.needed and use.moved_bytes == 0 for use in uses)
    with torch.no_grad():
        model(text[:, :1])
    assert len(uses) == 2 * LAYERS
    with pytest.raises(ValueError, match="MistralForCausalLM has no experts in 4 bits: expected a Mixtral loaded"):
        watch_experts(load("tiny-mistral").model).__enter__()


def test_guesses_are_right_more_than_twice_as_often_as_chance(loaded, text):
    model = load("tiny-mixtral", device="cpu").model
    routers = Routers(model)
    hits = guess_hits(model, text)
    routers.remove()
    for layer, share in enumerate(hits.per_layer):
        (_, x, _), (_, _, rows) = routers.seen[layer : layer + 2]
        logits = x.numpy() @ routers.weights[layer + 1].T
        right = sum(len({*np.argsort(-row)[:A]} & {*chosen}) for row, chosen in zip(logits, rows, strict=True))
        assert share == pytest.approx(right / (A * len(rows)))
    assert hits.uniform == 0.25
    assert hits.mean > 2 * hits.uniform  # 58 % of 9,662 tokens
    with pytest.raises(ValueError, match="MistralForCausalLM has 0 layers with experts: expected at least 2"):
        guess_hits(load("tiny-mistral").model, text)
