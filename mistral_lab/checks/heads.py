"""Lesson 2: which KV head a query head reads, the cache in bytes, the longest text that fits, attention in groups."""

import inspect
import math
from collections.abc import Callable

import torch

from ..attention import grouped_query_attention
from ..masks import causal_mask, sliding_window_mask
from .judging import Mistake, judge


def shared_heads(function: Callable) -> Callable:
    """Check `function(n_heads, n_kv_heads)`: for each query head, the number of the KV head that it reads.

    >>> my_answer = shared_heads(lambda n_heads, n_kv_heads: NotImplemented)
    shared_heads: not tried yet; the lesson goes on with its own
    """

    def answer(n_heads, n_kv_heads):
        return [h // (n_heads // n_kv_heads) for h in range(n_heads)]

    return judge(
        "shared_heads",
        function,
        answer=answer,
        cases=[(8, 2), (8, 4), (12, 3), (12, 2), (4, 4), (4, 1)],
        mistakes=[
            Mistake(
                lambda n_heads, n_kv_heads: [h // n_kv_heads for h in range(n_heads)],
                "for {n_heads} heads over {n_kv_heads} you give {got}: do you divide by the number of KV heads where "
                "the group size is meant?",
            ),
            Mistake(
                lambda n_heads, n_kv_heads: [h % n_kv_heads for h in range(n_heads)],
                "for {n_heads} heads over {n_kv_heads} you give {got}: a group is a run of neighbours, and you assign "
                "the heads in turn",
            ),
            Mistake(
                lambda n_heads, n_kv_heads: [h // (n_heads // n_kv_heads) + 1 for h in range(n_heads)],
                "you give {got}: heads are counted from 0",
            ),
            Mistake(
                lambda n_heads, n_kv_heads: [
                    h // (n_heads // n_kv_heads) for h in range(0, n_heads, n_heads // n_kv_heads)
                ],
                "you give {got}: an entry for each of the {n_heads} query heads is expected",
            ),
        ],
    )


def token_bytes(function: Callable) -> Callable:
    """Check `function(n_layers, n_kv_heads, head_dim, bytes_per_value)`: bytes of the cache per token of the text.

    >>> my_answer = token_bytes(lambda n_layers, n_kv_heads, head_dim, bytes_per_value: NotImplemented)
    token_bytes: not tried yet; the lesson goes on with its own
    """

    def answer(n_layers, n_kv_heads, head_dim, bytes_per_value):
        return 2 * n_layers * n_kv_heads * head_dim * bytes_per_value

    def without(*left_out, factor=1):
        def wrong(**sizes):
            return factor * answer(**(sizes | dict.fromkeys(left_out, 1)))

        return lambda *sizes: wrong(**dict(zip(inspect.signature(answer).parameters, sizes, strict=True)))

    return judge(
        "token_bytes",
        function,
        answer=answer,
        cases=[(32, 8, 128, 2), (32, 8, 128, 4), (32, 8, 64, 2), (32, 4, 128, 2), (40, 8, 128, 2), (5, 3, 7, 1)],
        mistakes=[
            Mistake(without(factor=0.5), "you get {got}, half of it: both a key and a value are kept"),
            Mistake(without("n_layers"), "you get {got}, which is one layer: each of the {n_layers} keeps its own"),
            Mistake(
                without("bytes_per_value"), "you get {got}, the number of values: each takes {bytes_per_value} bytes"
            ),
            Mistake(
                without("bytes_per_value", factor=2), "you take 2 bytes for every value: here it is {bytes_per_value}"
            ),
            Mistake(without(factor=8), "you get {got}, which is bits: bytes are asked for"),
            Mistake(without("n_kv_heads"), "you get {got}, which is one KV head: each of the {n_kv_heads} is kept"),
            Mistake(without("head_dim"), "you get {got}, one value per head: a head's key has {head_dim}"),
        ],
    )


def longest_text(function: Callable) -> Callable:
    """Check `function(free_bytes, n_layers, n_heads, group_size, head_dim, bytes_per_value)`: tokens that fit.

    >>> my_answer = longest_text(lambda *sizes: NotImplemented)
    longest_text: not tried yet; the lesson goes on with its own
    """

    def tokens(free_bytes, n_layers, n_kv_heads, head_dim, bytes_per_value, kinds=2):
        return free_bytes / (kinds * n_layers * n_kv_heads * head_dim * bytes_per_value)

    def answer(free_bytes, n_layers, n_heads, group_size, head_dim, bytes_per_value):
        return math.floor(tokens(free_bytes, n_layers, n_heads // group_size, head_dim, bytes_per_value))

    return judge(
        "longest_text",
        function,
        answer=answer,
        cases=[
            (10**7, 32, 32, 4, 128, 2),
            (10**7, 32, 32, 8, 128, 2),
            (10**7, 32, 32, 4, 128, 4),
            (10**7, 32, 64, 4, 128, 2),
            (10**7, 32, 32, 4, 64, 2),
            (10**7, 40, 32, 4, 128, 2),
            (10**8, 32, 32, 4, 128, 2),
        ],
        mistakes=[
            Mistake(
                lambda free, layers, heads, group, dim, size: math.floor(tokens(free, layers, heads, dim, size)),
                "you get {got} tokens: that is a cache for all {n_heads} query heads; only KV heads are cached",
            ),
            Mistake(
                lambda free, layers, heads, group, dim, size: math.floor(tokens(free, layers, group, dim, size)),
                "you get {got} tokens: is the group size taken for the number of KV heads? Divide {n_heads} by the "
                "group size",
            ),
            Mistake(
                lambda free, layers, heads, group, dim, size: math.floor(
                    tokens(free, layers, heads // group, dim, size, 1)
                ),
                "you get {got} tokens, about twice too many: both keys and values are cached",
            ),
            Mistake(
                lambda free, layers, heads, group, dim, size: math.floor(
                    tokens(free, layers, heads * group, dim, size)
                ),
                "you get {got} tokens: do you multiply by the group size? KV heads are fewer than query heads",
            ),
            Mistake(
                lambda free, layers, heads, group, dim, size: math.floor(tokens(free, layers, heads // group, dim, 4)),
                "you count 4 bytes per value, which is float32: here a value takes {bytes_per_value}",
            ),
            Mistake(
                lambda free, layers, heads, group, dim, size: math.ceil(
                    tokens(free, layers, heads // group, dim, size)
                ),
                "you get {got} tokens, one too many: the last one fits only in part, so round down",
            ),
            Mistake(
                lambda free, layers, heads, group, dim, size: tokens(free, layers, heads // group, dim, size),
                "you get {got} tokens: part of a token does not fit, so round down",
            ),
        ],
    )


def grouped_attention(function: Callable) -> Callable:
    """Check `function(q (B, H, T, D), k (B, K, S, D), v (B, K, S, D), mask (T, S)) -> (B, H, T, D)`.

    >>> my_answer = grouped_attention(lambda q, k, v, mask: NotImplemented)
    grouped_attention: not tried yet; the lesson goes on with its own
    """

    def answer(q, k, v, mask):
        return grouped_query_attention(*(x.transpose(1, 2) for x in (q, k, v)), mask)[0].transpose(1, 2)

    def weighed(q, k, v, mask, *, root=None, axis=-1, order=lambda x, G: x.repeat_interleave(G, 1), hidden=-math.inf):
        k, v = (order(x, q.shape[1] // k.shape[1]) for x in (k, v))
        scores = (q @ k.mT / math.sqrt(root or q.shape[-1])).masked_fill(~mask, hidden)
        return scores.softmax(axis) @ v

    def masked_late(q, k, v, mask):
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        return ((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) * mask) @ v

    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 5, 8, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, 5, 8, generator=generator, dtype=torch.float64)
    causal, window = causal_mask(5), sliding_window_mask(5, 2)
    return judge(
        "grouped_attention",
        function,
        answer=answer,
        cases=[(q, k, v, causal), (q, k, v, window), (q.flip(1), k, v, causal), (q, k.flip(1), v, causal)]
        + [(q, k, v.flip(1), causal), (q, k[:, :1], v[:, :1], causal)],
        mistakes=[
            Mistake(
                lambda q, k, v, mask: weighed(q, k, v, mask, root=1),
                "your weights are too extreme: are the scores divided by the square root of D?",
            ),
            Mistake(
                lambda q, k, v, mask: weighed(q, k, v, mask, root=q.shape[-1] ** 2),
                "your weights are too even: divide by the square root of D, not by D",
            ),
            Mistake(
                lambda q, k, v, mask: weighed(q, k, v, mask, order=lambda x, G: x.repeat(1, G, 1, 1)),
                "your heads read the wrong KV heads: a group is a run of neighbours; are K and G swapped?",
            ),
            Mistake(
                lambda q, k, v, mask: weighed(q, k, v, mask, axis=-2).nan_to_num(),
                "your softmax runs over the queries: the weights of one query over all keys must add to 1",
            ),
            Mistake(
                lambda q, k, v, mask: weighed(q, k, v, torch.ones_like(mask)),
                "you look at keys that are hidden: is the mask used?",
            ),
            Mistake(
                lambda q, k, v, mask: weighed(q, k, v, ~mask),
                "you hide what may be seen: True in the mask means that a query may look",
            ),
            Mistake(
                lambda q, k, v, mask: weighed(q, k, v, mask, hidden=0.0),
                "a hidden score of 0 still gets weight, because exp(0) is 1: make it minus infinity",
            ),
            Mistake(masked_late, "you hide keys after the softmax, so the weights do not add to 1: mask the scores"),
        ],
    )
