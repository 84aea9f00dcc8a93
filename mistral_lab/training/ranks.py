"""Rank against quality: adapters of many ranks taught one task, on the bundled tiny-mistral in four bits."""

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
TAUGHT, ASKED = 960, 150  # letters


def measure_ranks(
    *,
    ranks: Sequence[int] = RANKS,
    seeds: Sequence[int] = SEEDS,
    steps: int = STEPS,
    taught: int = TAUGHT,
    asked: int = ASKED,
) -> dict:
    """Train an adapter for every rank, place and seed, and count the right answers about people never seen in training.

    Args:
        ranks: of the adapters.
        seeds: each of the random start of an adapter and of the order of the letters.
        steps: of the optimiser, in each run.
        taught, asked: letters to learn from, and letters asked about.

    Returns:
        "settings" that all runs share, "ranks", "seeds", and "right": for each of the targets, for each rank, the
        number of right answers with each seed. "right_at_half_the_rate": for each of the targets, that of the last rank
        with half the learning rate.
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
    """The record as it is kept."""
    return json.dumps(found) + "\n"
