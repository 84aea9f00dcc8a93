"""One explorer of each kind, made as a lesson makes it: those that are tested are those that are timed."""

import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files

import torch

from mistral_lab import experiments, explorers, load
from mistral_lab.experiments.loop import Trip

STORY = "Once there was a baker called Nora, and she lived near the river."

loaded = cache(load)


@cache
def by_depth() -> tuple[list[torch.Tensor], list[int]]:
    """The logits read after each depth of the dense model, and the tokens that they were read from."""
    model, tokens = loaded("tiny-mistral").model, loaded("tiny-mistral").tokenizer(STORY)["input_ids"]
    with torch.no_grad():
        out = model(torch.tensor([tokens]), output_hidden_states=True)
        early = [model.lm_head(model.model.norm(state))[0] for state in out.hidden_states[:-1]]
    return [*early, out.logits[0]], tokens


def next_token() -> explorers.Explorer:
    """The explorer of sampling, after a short text."""
    return explorers.next_token(by_depth()[0][-1][-1], loaded("tiny-mistral").tokenizer)


def guesses_by_layer() -> explorers.Explorer:
    """The logit lens, on a short text."""
    return explorers.guesses_by_layer(*by_depth(), loaded("tiny-mistral").tokenizer)


def routed_text() -> explorers.Explorer:
    """The explorer of routing."""
    return explorers.routed_text(loaded("tiny-mixtral").model, loaded("tiny-mixtral").tokenizer)


def adapter_rank() -> explorers.Explorer:
    """The explorer of adapters, with the record that lesson 8 reads."""
    record = files("mistral_lab") / "bundled" / "traces" / "ranks.json"
    return explorers.adapter_rank(json.loads(record.read_text(encoding="utf-8")))


@cache
def trip() -> Trip:
    """What the loop of lesson 1 did, with the prompt that it has there."""
    return experiments.follow_tokens(loaded("tiny-mistral"), "My favourite condiment is")


def token_loop() -> explorers.Explorer:
    """The loop of lesson 1."""
    return explorers.token_loop(trip())


MAKERS: dict[str, Callable[[], explorers.Explorer]] = {
    "token_loop": token_loop,
    "next_token": next_token,
    "guesses_by_layer": guesses_by_layer,
    "head_groups": explorers.head_groups,
    "kept_squares": explorers.kept_squares,
    "relay": explorers.relay,
    "ring_cache": explorers.ring_cache,
    "routed_text": routed_text,
    "four_bits": explorers.four_bits,
    "memory_plan": explorers.memory_plan,
    "adapter_rank": adapter_rank,
    "split_model": explorers.split_model,
}
