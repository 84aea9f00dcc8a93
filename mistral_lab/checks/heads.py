"""Lesson 2: which KV head a query head reads, the bytes of the cache per token, and the longest text that fits."""

import inspect
import math
from collections.abc import Callable

import numpy as np

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
        cases=[(8, 2), (8, 4), (12, 3), (12, 2), (4, 4), (4, 1), (8, 8), (32, 8), (32, 16)],
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
                lambda n_heads, n_kv_heads: [h % (n_heads // n_kv_heads) for h in range(n_heads)],
                "for {n_heads} heads over {n_kv_heads} you give {got}: that is each head's place within its group, the "
                "remainder; the number of the group is the quotient, `//`",
            ),
            Mistake(
                lambda n_heads, n_kv_heads: [h / (n_heads // n_kv_heads) for h in range(n_heads)],
                "you give {got}: the number of a head is whole; divide with `//`",
            ),
            Mistake(
                lambda n_heads, n_kv_heads: [round(h / (n_heads // n_kv_heads)) for h in range(n_heads)],
                "you give {got}: round down, so that each group is a run of {n_heads} / {n_kv_heads} heads",
            ),
            Mistake(
                lambda n_heads, n_kv_heads: list(range(n_heads)),
                "you give {got}: there are {n_kv_heads} KV heads, and several query heads share one",
            ),
            Mistake(
                lambda n_heads, n_kv_heads: [0] * n_heads,
                "you give {got}: there are {n_kv_heads} KV heads, and each of them is read by some query heads",
            ),
            Mistake(
                lambda n_heads, n_kv_heads: [n_heads // n_kv_heads] * n_heads,
                "you give {got}, the group size for every head: the number of its KV head is asked for",
            ),
            Mistake(
                lambda n_heads, n_kv_heads: answer(n_heads, n_kv_heads)[::-1],
                "you give {got}: the first query heads read KV head 0, and the last ones the last",
            ),
            Mistake(
                lambda n_heads, n_kv_heads: [h // (n_heads // n_kv_heads) + 1 for h in range(n_heads)],
                "you give {got}: heads are counted from 0",
            ),
            Mistake(
                lambda n_heads, n_kv_heads: [min(h, n_kv_heads - 1) for h in range(n_heads)],
                "you give {got}: the first heads read one KV head each and all others the last; each KV head is read "
                "by {n_heads} / {n_kv_heads} query heads",
            ),
            Mistake(
                lambda n_heads, n_kv_heads: answer(n_heads, n_kv_heads)[:n_kv_heads],
                "you give {got}, as many entries as there are KV heads: one for each of the {n_heads} query heads is "
                "expected",
            ),
            *(
                Mistake(
                    lambda n_heads, n_kv_heads, most=most: [
                        min(h // (n_heads // n_kv_heads), most) for h in range(n_heads)
                    ],
                    f"for {{n_heads}} heads over {{n_kv_heads}} no entry of yours is above {most}: the last query "
                    "heads read the last KV head, whatever its number",
                )
                for most in (1, 3, 7)
            ),
            *(
                Mistake(
                    lambda n_heads, n_kv_heads, most=most: [
                        h // (n_heads // n_kv_heads) % most for h in range(n_heads)
                    ],
                    f"for {{n_heads}} heads over {{n_kv_heads}} your entries begin again at 0 after {most - 1}: each "
                    "group has a KV head of its own",
                )
                for most in (2, 4, 8)
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
        cases=[
            (32, 8, 128, 2),
            (32, 8, 128, 4),
            (32, 8, 64, 2),
            (32, 4, 128, 2),
            (40, 8, 128, 2),
            (5, 3, 7, 1),
            (32, 8, 128, 0.5),  # four bits
        ],
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
            Mistake(
                without("bytes_per_value", factor=4), "you take 4 bytes for every value: here it is {bytes_per_value}"
            ),
            Mistake(without(factor=2), "you get {got}, twice too much: a key and a value make 2, not 4"),
            *(
                Mistake(
                    lambda *sizes, whole=whole: answer(*sizes[:3], whole(sizes[3])),
                    "for {bytes_per_value} bytes per value you get {got}: a value in four bits takes half a byte, so "
                    "do not round",
                )
                for whole in (int, math.ceil)
            ),
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
            (5 * 131072, 32, 32, 4, 128, 2),  # exactly 5 tokens
            (10**5, 32, 32, 4, 128, 2),  # not one
            (20_000_002 * 131072 - 1, 32, 32, 4, 128, 2),  # far more than any model declares; float32 rounds it up
        ],
        mistakes=[
            Mistake(
                lambda *sizes: max(1, answer(*sizes)),
                "you get {got} where not one token fits: then the answer is 0",
            ),
            Mistake(
                lambda *sizes: min(answer(*sizes), 32_768),
                "you get {got}, as if a text could not be longer: here only the free bytes are a limit",
            ),
            Mistake(
                lambda free, layers, heads, group, dim, size: int(
                    np.float32(free) / np.float32(2 * layers * (heads // group) * dim * size)
                ),
                "you get {got}, rounded up by a division in float32, which keeps seven digits: divide whole numbers "
                "with `//`",
            ),
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
                lambda free, layers, heads, group, dim, size: (
                    math.floor(tokens(free, layers, heads // group, dim, size)) + 1
                ),
                "you get {got} tokens, one too many: the last one does not fit, so round down",
            ),
            Mistake(
                lambda free, layers, heads, group, dim, size: round(tokens(free, layers, heads // group, dim, size)),
                "you get {got} tokens, one too many: the last one fits only in part; round down, not to the nearest",
            ),
            Mistake(
                lambda free, layers, heads, group, dim, size: math.floor(tokens(free, 1, heads // group, dim, size)),
                "you get {got} tokens: that is the cache of one layer, and each of the {n_layers} has its own",
            ),
            Mistake(
                lambda free, layers, heads, group, dim, size: math.floor(tokens(free, layers, 1, dim, size)),
                "you get {got} tokens: that is the cache of one KV head; how many are there?",
            ),
            Mistake(
                lambda free, layers, heads, group, dim, size: math.floor(tokens(free, layers, heads // group, dim, 1)),
                "you count one byte per value: here a value takes {bytes_per_value}",
            ),
            Mistake(
                lambda free, layers, heads, group, dim, size: math.floor(tokens(free, layers, heads // group, dim, 2)),
                "you count 2 bytes per value, whatever `bytes_per_value` is: here it is {bytes_per_value}",
            ),
            Mistake(
                lambda free, layers, heads, group, dim, size: math.floor(
                    8 * tokens(free, layers, heads // group, dim, size)
                ),
                "you get {got} tokens, 8 times too many: free_bytes are bytes, not bits",
            ),
            Mistake(
                lambda free, layers, heads, group, dim, size: tokens(free, layers, heads // group, dim, size),
                "you get {got} tokens: part of a token does not fit, so round down",
            ),
        ],
    )
