"""Rank against quality: adapters of many ranks learn one task, on the bundled tiny-mistral in four bits."""

import json
from collections.abc import Sequence

import torch

from ..finetune import add_adapter, exact_match, read_examples, tune
from ..loading import load
from .letters import letters
from .scribe import HELD_OUT, TRAIN

MODEL, BITS = "tiny-mistral", 4
RANKS, TARGETS, SEEDS = (1, 2, 4, 8, 16, 32, 64), ("attention", "all"), (0, 1, 2)
STEPS, BATCH_SIZE, LEARNING_RATE = 40, 16, 1e-2
TAUGHT, ASKED = 960, 150  # letters to learn from, letters to evaluate on


def measure_ranks(
    *,
    ranks: Sequence[int] = RANKS,
    seeds: Sequence[int] = SEEDS,
    steps: int = STEPS,
    taught: int = TAUGHT,
    asked: int = ASKED,
) -> dict:
    """Train an adapter for every rank, target and seed, and count the right answers on letters with unseen names.

    Args:
        ranks: the ranks of the adapters.
        seeds: each decides the random start of an adapter and the order of the letters.
        steps: optimiser steps in each run.
        taught, asked: how many letters to learn from, and how many to evaluate on.

    Returns:
        "settings", which all runs share, "ranks", "seeds", and "right": for each of the targets and each rank, the
        number of right answers with each seed. "right_at_half_the_rate" has, for each of the targets, those of the last
        rank with half the learning rate.
    """
    lessons, questions = read_examples(letters(TRAIN, taught)), read_examples(letters(HELD_OUT, asked))

    def right(targets: str, rank: int, seed: int, rate: float = LEARNING_RATE) -> int:
        student = add_adapter(load(MODEL, bits=BITS), rank=rank, targets=targets, seed=seed)
        tune(student, lessons, steps=steps, batch_size=BATCH_SIZE, learning_rate=rate, seed=seed)
        return int(exact_match(student, questions).right.sum())

    return {
        "settings": {
            "model": MODEL,
            "bits": BITS,
            "steps": steps,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "taught": taught,
            "asked": asked,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "ranks": list(ranks),
        "seeds": list(seeds),
        "right": {targets: [[right(targets, rank, seed) for seed in seeds] for rank in ranks] for targets in TARGETS},
        "right_at_half_the_rate": {
            targets: [right(targets, ranks[-1], seed, LEARNING_RATE / 2) for seed in seeds] for targets in TARGETS
        },
    }


def as_json(found: dict) -> str:
    """Write the record in the form of the bundled file."""
    return json.dumps(found) + "\n"
