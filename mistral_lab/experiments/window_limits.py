"""Lesson 3, where a window ends: names under narrower windows, losses past the trained length, attention sinks."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..loading.compat import attention_of
from ..masks import causal_mask, sliding_window_mask
from ..training import evaluation
from ..training.evaluation import Encoded, Interval
from .layers import only_layers
from .windows import with_window


def recall_when_cut(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Encoded],
    *,
    windows: Sequence[int] = (),
    depths: Sequence[int] = (),
) -> dict[str, dict[str, Interval]]:
    """Share of names recalled, by distance, with all layers and narrower windows, and with fewer layers.

    Args:
        model: with a window of its own.
        tokenizer: of the model.
        texts: held-out texts.
        windows: that all layers get.
        depths: how many of the layers stay, each with the model's own window.

    Returns:
        for each cut and each distance of `evaluation.RANGES` the share, with its Wilson interval of 95 %.
    """

    def measured() -> dict[str, Interval]:
        found = evaluation.recall(model, tokenizer, list(texts))
        return {distance: evaluation.wilson(row.hits, row.asked) for distance, row in found.items()}

    shares = {}
    for window in windows:
        with with_window(model, window):
            shares[f"W = {window}"] = measured()
    for depth in depths:
        with only_layers(model, 0, depth):
            shares[f"{depth} layer{'s' * (depth > 1)}"] = measured()
    return shares


@torch.inference_mode()
def token_losses(model: PreTrainedModel, blocks: torch.Tensor, mask: torch.Tensor | None = None) -> np.ndarray:
    """Compute the nats of every token that has one before it, (blocks, tokens - 1).

    Args:
        model: a transformers model.
        blocks: (blocks, tokens) of token numbers.
        mask: (tokens, tokens) bool, or one for each block, in place of the model's own; True means "may attend".
    """
    nats = []
    for number, block in enumerate(blocks):
        seen = None if mask is None else mask if mask.ndim == 2 else mask[number]
        seen = None if seen is None else seen[None, None].to(model.device)
        logits = model(block[None].to(model.device), attention_mask=seen, use_cache=False).logits
        nats.append(cross_entropy(logits[0, :-1].float().cpu(), block[1:], reduction="none").numpy())
    return np.stack(nats)


def by_position(nats: np.ndarray, *, width: int = 64) -> list[Interval]:
    """Average losses over stretches of positions, with intervals over blocks."""
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
    blocks = torch.tensor([text.tokens[:tokens] for text in texts])
    position = torch.arange(tokens)
    names = torch.zeros(len(texts), 1, tokens, dtype=torch.bool)
    for row, text in enumerate(texts):
        start, count = evaluation.mentions(tokenizer, text)[0]
        names[row, 0, start : start + count] = True
    narrow, causal = sliding_window_mask(tokens, window), causal_mask(tokens)

    def nats(kept: torch.Tensor | None) -> np.ndarray:
        mask = narrow if kept is None else narrow | (causal & kept)
        return token_losses(model, blocks, mask)[:, window:].mean(1)

    alone, whole = nats(None), token_losses(model, blocks)[:, window:].mean(1)
    return Evicted(
        cost=evaluation.bootstrap(alone - whole),
        first_token=evaluation.bootstrap(alone - nats(position < 1)),
        first_four=evaluation.bootstrap(alone - nats(position < 4)),
        name=evaluation.bootstrap(alone - nats(names)),
    )
