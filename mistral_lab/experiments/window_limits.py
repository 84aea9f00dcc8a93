"""Lesson 3, where a window ends: one key more, names under narrower windows, lengths beyond training, sinks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ..loading.compat import attention_of
from ..masks import causal_mask, sliding_window_mask
from ..measure.progress import with_progress
from ..training import evaluation
from ..training.evaluation import Encoded, Interval
from .cutting import only_layers
from .windows import with_window

TEXTS_AT_ONCE = 8  # that are compared, between two steps of a progress bar


@dataclass(frozen=True)
class WindowSlip:
    """What another window changes, in all places of some texts.

    Args:
        places, moved: how many, and in how many of them a logit moves by more than 1.
        most: the largest move.
        choices: places in which the first choice changes.
    """

    places: int
    moved: int
    most: float
    choices: int


@torch.inference_mode()
def compare_windows(
    model: PreTrainedModel, texts: Sequence[Sequence[int]], *, prefill: int, decode: int, prompt: int = 160
) -> WindowSlip:
    """Read texts with one window in the prompt and another after it, and compare with the model's own window.

    Args:
        model: with a window of its own.
        texts: of equal length, longer than `prompt`.
        prefill: the window while the first `prompt` tokens are read.
        decode: the window for all tokens after them.
        prompt: tokens that are read in one pass.
    """
    rows, own = torch.tensor(texts, device=model.device), model.config.sliding_window

    def after_prompt(some: torch.Tensor, first: int, then: int) -> torch.Tensor:
        kept = DynamicCache()  # without a config it keeps every key, so that the mask alone decides
        with with_window(model, first):
            model(some[:, :prompt], past_key_values=kept, logits_to_keep=1)
        with with_window(model, then):
            return model(some[:, prompt:], past_key_values=kept).logits

    moves, changed = [], 0
    some_rows = rows.split(TEXTS_AT_ONCE)
    for number in with_progress(len(some_rows), "Comparing windows"):
        expected = after_prompt(some_rows[number], own, own)
        found = after_prompt(some_rows[number], prefill, decode)
        moves.append((found - expected).abs().amax(-1))
        changed += int((found.argmax(-1) != expected.argmax(-1)).sum())
    largest = torch.cat(moves)
    return WindowSlip(largest.numel(), int((largest > 1).sum()), float(largest.max()), changed)


@dataclass(frozen=True)
class CutRecall:
    """Share of names recalled under each cut.

    Args:
        shares: for each cut and each distance of `evaluation.RANGES`, with its Wilson interval of 95 %.
        asked: for each distance, how many names; the same under every cut.
    """

    shares: dict[str, dict[str, Interval]]
    asked: dict[str, int]


def recall_when_cut(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Encoded],
    *,
    windows: Sequence[int] = (),
    depths: Sequence[int] = (),
) -> CutRecall:
    """Ask for names, by distance, with all layers and narrower windows, and with fewer layers.

    Args:
        model: with a window of its own.
        tokenizer: of the model.
        texts: held-out texts.
        windows: that all layers get.
        depths: how many of the layers stay, each with the model's own window.

    Raises:
        ValueError: there is no cut.
    """
    cuts = {f"W = {window}": with_window(model, window) for window in windows}
    cuts |= {f"{depth} layer{'s' * (depth > 1)}": only_layers(model, 0, depth) for depth in depths}
    if not cuts:
        raise ValueError("there is neither a window nor a depth: expected at least one of them")
    shares = {}
    for _, (label, cut) in zip(with_progress(len(cuts), "Cutting the model"), cuts.items(), strict=True):
        with cut:
            found = evaluation.recall(model, tokenizer, list(texts))
        shares[label] = {distance: evaluation.wilson(row.hits, row.asked) for distance, row in found.items()}
    return CutRecall(shares, {distance: row.asked for distance, row in found.items()})


def interval_bounds(lines: Iterable[Sequence[Interval]]) -> np.ndarray:
    """Take intervals apart for a picture: (3, lines, places), the means, the lower and the upper ends."""
    return np.array([[(x.mean, x.low, x.high) for x in line] for line in lines]).transpose(2, 0, 1)


def by_position(nats: Sequence[np.ndarray], *, width: int = 64) -> list[Interval]:
    """Average the losses of texts of one length over stretches of positions, with intervals over texts."""
    nats = np.stack(nats)
    edges = [*range(0, nats.shape[1], width), nats.shape[1]]
    return [evaluation.bootstrap(nats[:, low:high].mean(1)) for low, high in pairwise(edges)]


@torch.inference_mode()
def first_token_share(model: PreTrainedModel, blocks: torch.Tensor, *, tokens: int = 64) -> torch.Tensor:
    """Average the share of attention that position 0 gets from the later queries that still see it, (L, H).

    Args:
        model: a transformers model.
        blocks: (blocks, at least `tokens`).
        tokens: how many are read; queries from a quarter of them on count.
    """
    used = attention_of(model)
    model.set_attn_implementation("eager")  # the one that returns its weights
    try:
        layers = model(blocks[:, :tokens].to(model.device), use_cache=False, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(used)
    return torch.stack([layer[:, :, tokens // 4 :, 0].float().mean((0, 2)).cpu() for layer in layers])


@dataclass(frozen=True)
class Evicted:
    """What a window costs a model without one, in nats per token, and what keeping some tokens in sight wins back."""

    cost: Interval
    first_token: Interval
    first_four: Interval
    name: Interval


def evict_first_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Encoded],
    *,
    window: int = 64,
    tokens: int = 256,
) -> Evicted:
    """Force a window on a model that was trained without one, and keep some tokens in every query's sight.

    Args:
        model: without a window.
        tokenizer: of the model.
        texts: of at least `tokens` tokens.
        window: W.
        tokens: read of each text; losses count from position W on.
    """
    read = [replace(text, tokens=text.tokens[:tokens]) for text in texts]
    position = torch.arange(tokens)
    names = torch.zeros(len(texts), 1, tokens, dtype=torch.bool)
    for row, text in enumerate(texts):
        start, count = evaluation.mentions(tokenizer, text)[0]
        names[row, 0, start : start + count] = True
    narrow, causal = sliding_window_mask(tokens, window), causal_mask(tokens)

    def mean_losses(masks: torch.Tensor | None) -> np.ndarray:
        return np.stack(evaluation.losses(model, read, masks))[:, window:].mean(1)

    def nats(kept: torch.Tensor) -> np.ndarray:
        return mean_losses((narrow | (causal & kept)).expand(len(texts), -1, -1))

    alone, whole = nats(position < 0), mean_losses(None)
    return Evicted(
        cost=evaluation.bootstrap(alone - whole),
        first_token=evaluation.bootstrap(alone - nats(position < 1)),
        first_four=evaluation.bootstrap(alone - nats(position < 4)),
        name=evaluation.bootstrap(alone - nats(names)),
    )
