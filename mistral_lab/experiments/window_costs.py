"""Lesson 3, what a sliding window costs and saves: bytes of the cache, time of a prompt, time of the next token."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache

from ..attention import QUERY_CHUNK, windowed_attention
from ..cache import RollingCache
from ..config import ModelConfig
from ..masks import sliding_window_mask
from ..measure import Timing, measure_bandwidth, time_in_turns
from ..memory import kv_cache_bytes

HEADS, KV_HEADS, HEAD_DIM = 8, 2, 64  # of the attention whose prompts are timed
JOINED, RESERVED = "no window, joined", "no window, reserved"  # two caches that keep every key
CAUSAL_BLOCK = 512  # keys that PyTorch's CPU kernel skips at a time where `is_causal` is given


def interleaved_cache_bytes(config: ModelConfig, tokens: int, *, full_layers: int) -> int:
    """Count the bytes of keys and values where some layers see everything and the others have the config's window.

    Args:
        config: the shape of the model, with the window of its windowed layers.
        tokens: tokens so far.
        full_layers: how many of its layers have no window.

    Raises:
        ValueError: more full layers than layers, or fewer than none.

    >>> from mistral_lab.config import PRESETS
    >>> mistral = PRESETS["mistral-7b-v0.1"]
    >>> [interleaved_cache_bytes(mistral, 32_768, full_layers=layers) // 2**20 for layers in (0, 8, 32)]
    [512, 1408, 4096]
    """
    if not 0 <= full_layers <= config.n_layers:
        raise ValueError(f"full_layers is {full_layers}: expected 0 to {config.n_layers}, all layers of the model")
    one = replace(config, n_layers=1)
    full = kv_cache_bytes(replace(one, sliding_window=None), tokens)
    return full_layers * full + (config.n_layers - full_layers) * kv_cache_bytes(one, tokens)


@dataclass(frozen=True)
class Costs:
    """What several ways of doing the same work took, at several sizes.

    Args:
        sizes: tokens.
        timings: for each way its timing at each size, measured in rounds, in turns.
        predicted_s: for each way what was to be expected, in seconds at each size.
    """

    sizes: list[int]
    timings: dict[str, list[Timing]]
    predicted_s: dict[str, np.ndarray]

    def medians_s(self) -> dict[str, np.ndarray]:
        """The median of the rounds, for each way at each size."""
        return {way: np.array([timing.median_s for timing in row]) for way, row in self.timings.items()}

    def in_ms(self) -> tuple[np.ndarray, np.ndarray]:
        """The medians and the predictions in milliseconds, (ways, sizes) each, in the order of `timings`."""
        medians = self.medians_s()
        return tuple(1e3 * np.array([found[way] for way in self.timings]) for found in (medians, self.predicted_s))

    def bounds_s(self) -> dict[str, np.ndarray]:
        """The fastest and the slowest round, (2, sizes) for each way."""
        return {way: np.array([[f(t.runs_s) for t in row] for f in (min, max)]) for way, row in self.timings.items()}


@torch.inference_mode()
def time_prompts(lengths: Sequence[int] = (512, 1024, 2048), *, window: int = 256, rounds: int = 5) -> Costs:
    """Time the attention of one layer over a whole prompt: without a window, with its mask, and in chunks.

    "no window" is PyTorch's kernel with `is_causal`, "window as a mask" the same kernel with a dense mask, and
    "window in chunks" `windowed_attention`. One thread of the CPU. The prediction is the number of pairs of query and
    key that each way computes, at the time per pair of the kernel without any mask; applying a mask comes on top.

    Args:
        lengths: of the prompts, multiples of 512.
        window: W.
        rounds: timed runs of each way at each length, in turns.

    Raises:
        ValueError: no length, or one that is not a multiple of 512.
    """
    if not lengths or any(length % CAUSAL_BLOCK for length in lengths):
        raise ValueError(f"lengths are {list(lengths)}: expected multiples of {CAUSAL_BLOCK}")
    generator, calls, pairs = torch.Generator().manual_seed(0), {}, {}
    for length in lengths:
        shape = (1, length, HEAD_DIM)
        q, k, v = (
            torch.randn(shape[0], heads, *shape[1:], generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS)
        )
        kernel = partial(scaled_dot_product_attention, q, k, v, enable_gqa=True)
        mask = sliding_window_mask(length, window)
        calls[length] = {
            "no window": partial(kernel, is_causal=True),
            "window as a mask": partial(kernel, attn_mask=mask),
            "window in chunks": partial(windowed_attention, *(x.transpose(1, 2) for x in (q, k, v)), window=window),
        }
        in_chunks = mask.unflatten(0, (-1, QUERY_CHUNK)).unflatten(2, (-1, QUERY_CHUNK)).any(3).any(1).sum()
        pairs[length] = [length * (length + CAUSAL_BLOCK) // 2, length**2, int(in_chunks) * QUERY_CHUNK**2]
    ways = list(calls[lengths[0]])
    everything = {(length, way): calls[length][way] for length in lengths for way in ways}
    everything["pair", lengths[-1]] = kernel
    with one_thread():
        found = time_in_turns(everything, repeats=rounds)
    pair_s = found["pair", lengths[-1]].median_s / lengths[-1] ** 2
    timings = {way: [found[length, way] for length in lengths] for way in ways}
    predicted = {way: pair_s * np.array([pairs[length][n] for length in lengths]) for n, way in enumerate(ways)}
    return Costs(list(lengths), timings, predicted)


class ReservedCache:
    """One layer's growing cache with room reserved for every token to come: it writes in place and copies nothing."""

    def __init__(self, room: int, config: ModelConfig) -> None:
        """Reserve the memory, and touch all of it.

        Args:
            room: tokens that fit.
            config: whose KV heads are taken.
        """
        self.kept = torch.zeros(2, 1, config.n_kv_heads, room, config.head_dim)
        self.seen = 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Store what `transformers` caches store, of layer 0 alone, and hand out all tokens so far."""
        start, self.seen = self.seen, self.seen + keys.shape[-2]
        self.kept[0, :, :, start : self.seen], self.kept[1, :, :, start : self.seen] = keys, values
        return self.kept[0, :, :, : self.seen], self.kept[1, :, :, : self.seen]


@torch.inference_mode()
def time_next_token(contexts: Sequence[int], *, config: ModelConfig, window: int, rounds: int = 5) -> Costs:
    """Time the attention of one layer for one more token: over a ring of W, and over caches that keep everything.

    All store the token in their cache and then attend to what it hands out. "no window, joined" is transformers'
    `DynamicCache`, which joins old and new at every token; "no window, reserved" writes in place. One thread of the
    CPU, float32. The prediction is the time to read the keys and values once, which none can beat where they come from
    memory.

    What is joined lies in new memory. Up to 32 MiB in one piece glibc finds it among what was freed before; more than
    that, such as the keys of 8,192 tokens of Mistral 7B's shape, comes fresh from the system at every token, and each
    of its pages is cleared first.

    Args:
        contexts: tokens before, ascending.
        config: whose heads are taken.
        window: W.
        rounds: timed tokens of each cache at each context, in turns.

    Raises:
        ValueError: no context, or one that the timed tokens do not fit into.
    """
    if not contexts or min(contexts) < rounds + 2:
        raise ValueError(f"contexts are {list(contexts)}: expected {rounds + 2} or more, {rounds} tokens are timed")
    generator = torch.Generator().manual_seed(0)
    heads = (1, config.n_kv_heads)
    query = torch.randn(*heads, config.group_size, config.head_dim, generator=generator)
    token = torch.randn(*heads, 1, config.head_dim, generator=generator)

    def step(cache) -> torch.Tensor:
        return scaled_dot_product_attention(query, *cache.update(token, token, 0))

    steps = {}
    for context in contexts:
        prompt = torch.randn(*heads, context - rounds - 1, config.head_dim, generator=generator)
        caches = {
            "ring": RollingCache(replace(config, n_layers=1, sliding_window=window)),
            JOINED: DynamicCache(),
            RESERVED: ReservedCache(context, config),
        }
        for label, cache in caches.items():
            cache.update(prompt, prompt, 0)
            steps[context, label] = partial(step, cache)
    with one_thread():
        read_rate = measure_bandwidth(repeats=3)
        found = time_in_turns(steps, repeats=rounds)
    token_s = 2 * config.n_kv_heads * config.head_dim * 4 / read_rate
    everything = np.array(contexts)
    read = {"ring": np.minimum(everything, window), JOINED: everything, RESERVED: everything}
    timings = {label: [found[context, label] for context in contexts] for label in read}
    return Costs(list(contexts), timings, {label: token_s * tokens for label, tokens in read.items()})


def times_as_long(costs: Costs, way: str, other: str, *, at: int = -1) -> tuple[float, float, float]:
    """How many times as long one way takes as another: median, least and most of the rounds.

    Args:
        costs: what was timed.
        way, other: two of its ways.
        at: which of its sizes, by place; the largest unless told otherwise.

    Raises:
        ValueError: a way that was not timed.
    """
    timings: Mapping[str, list[Timing]] = costs.timings
    for name in (way, other):
        if name not in timings:
            raise ValueError(f"way is {name!r}: expected one of {', '.join(timings)}")
    ratios = sorted(a / b for a, b in zip(timings[way][at].runs_s, timings[other][at].runs_s, strict=True))
    return float(np.median(ratios)), ratios[0], ratios[-1]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread for as long as the block lasts, so that timings depend less on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
