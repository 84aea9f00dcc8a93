"""Lesson 2: attention in groups, for any number of queries, of keys and of heads."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ..attention import grouped_query_attention
from ..masks import causal_mask
from . import hints
from .compat import LargestTensor, Reads
from .judging import Mistake, judge


class CallsLibrary(TorchFunctionMode):
    """Notes whether PyTorch's own attention is called."""

    found = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.found |= function is scaled_dot_product_attention
        return function(*args, **(kwargs or {}))


def shortcoming(function: Callable) -> str | None:
    """What is wrong with an attention whose answers are right, as the hunt in the lesson would show it.

    It is the library's, copies what is shared, reads a group's keys and values once for each of its heads, or cannot
    take bfloat16. What NumPy reads and copies is not seen, but NumPy has no bfloat16 either. Nor is it seen
    that one KV head at a time changes its number format.
    """
    generator = torch.Generator().manual_seed(1)
    k, mask = torch.randn(1, 2, 256, 16, generator=generator), torch.ones(1, 256, dtype=torch.bool)

    def call(group_size: int, mode: AbstractContextManager, dtype: torch.dtype = torch.float32):
        q = torch.ones(1, 2 * group_size, 1, 16, dtype=dtype)
        given = q, k.to(dtype, copy=True), k.to(dtype, copy=True), mask.clone()
        with mode:
            function(*given)
        return mode

    if call(4, CallsLibrary()).found:
        return (
            "the answers are right, but PyTorch's own attention gives them: it is what the lesson puts on trial, so "
            "write the two products yourself"
        )
    if call(4, LargestTensor()).numbers >= 4 * k.numel():
        return (
            "the answers are right, but keys or values are copied for every query head of a group: put the queries of "
            "a group below each other as rows, and leave k and v as they are"
        )
    one_head = k[0, 0].numel()  # more than all queries, scores and weights together hold
    alone, together = (call(group_size, Reads(one_head)).numbers for group_size in (1, 4))
    if together > alone:  # one product for a group reads as much, however many heads it has
        return (
            "the answers are right, but head by head: with four heads in a group you read "
            f"{together / alone:.2g} times as much of k and v as with one; the hunt needs the group as rows, so that "
            "one product reads each key once for all of them"
        )
    try:
        largest = call(4, LargestTensor(), torch.bfloat16)
    except Exception as error:
        said = " ".join(str(error).split()).rstrip(".")[:150]
        from_numpy = isinstance(error, TypeError) and "BFloat16" in said
        instead = ": NumPy has no bfloat16, so use PyTorch's own operations" if from_numpy else ""
        return (
            "the answers are right, but the lesson goes on in bfloat16, and there your function raises "
            f"{type(error).__name__}: {said}{instead}"
        )
    times = largest.nbytes / (torch.bfloat16.itemsize * k.numel())
    if times <= 1:  # the scores of a single query are smaller
        return None
    copied = "copied" if largest.numbers > k.numel() else "copied into another number format"
    return (
        f"the answers are right, but with a cache in bfloat16 you make a tensor of {times:.0f} times the bytes of k: "
        f"are keys or values {copied}? Leave them as they are"
    )


def grouped_attention(function: Callable) -> Callable:
    """Check `function(q (B, H, T, D), k (B, K, S, D), v (B, K, S, D), mask (T, S)) -> (B, H, T, D)`.

    >>> my_answer = grouped_attention(lambda q, k, v, mask: NotImplemented)
    grouped_attention: not tried yet; the lesson goes on with its own
    """

    def answer(q, k, v, mask):
        return grouped_query_attention(*(x.transpose(1, 2) for x in (q, k, v)), mask)[0].transpose(1, 2)

    def neighbours(x, G):
        return x.repeat_interleave(G, 1)

    def in_turn(x, G):
        return x.repeat(1, G, 1, 1)

    def averaged(x, G):
        return x.mean(1, keepdim=True)

    def first(x, G):
        return x[:, :1]

    def backwards(axis):
        return lambda x, G: neighbours(x.flip(axis), G)

    def mean_of_queries(q, k, v, mask):
        groups = q.unflatten(1, (k.shape[1], -1))
        return answer(groups.mean(2, keepdim=True).expand_as(groups).flatten(1, 2), k, v, mask)

    def attend(
        scale=lambda q, k: q.shape[-1] ** 0.5, hide=None, axis=-1, keys=neighbours, values=neighbours, nan=math.nan
    ):
        """Attention with one step replaced; where it hides everything from a query, the weights are `nan`."""

        def wrong(q, k, v, mask):
            G = q.shape[1] // k.shape[1]
            k, v = keys(k, G), values(v, G)
            scores = q @ k.mT / scale(q, k)
            scores = hide(scores, mask) if hide else scores.masked_fill(~mask, -math.inf)
            return scores.softmax(axis).nan_to_num(nan) @ v if axis is not None else scores @ v

        return wrong

    def hidden_where(change):
        return lambda scores, mask: scores.masked_fill(~change(mask), -math.inf)

    def late(finish):
        def wrong(q, k, v, mask):
            k, v = (neighbours(x, q.shape[1] // k.shape[1]) for x in (k, v))
            return finish((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1), mask) @ v

        return wrong

    def in_rows(mask_rows=lambda mask, G: mask.repeat(G, 1), keys=lambda k: k.mT, queries=lambda q: q, axis=-1):
        """Attention with the queries of a group as rows, with one step replaced."""

        def wrong(q, k, v, mask):
            K, D = k.shape[1], k.shape[3]
            rows = queries(q).reshape(len(q), K, -1, D)
            scores = rows @ keys(k) / math.sqrt(D)
            weights = scores.masked_fill(~mask_rows(mask, q.shape[1] // K), -math.inf).softmax(axis)
            return (weights @ v).reshape(q.shape)

        return wrong

    generator = torch.Generator().manual_seed(0)

    def example(B, H, K, T, S, D):
        mask = torch.rand(T, S, generator=generator) < 0.6
        mask[torch.arange(T), torch.randint(S, (T,), generator=generator)] = True  # each query sees a key
        shapes = (B, H, T, D), (B, K, S, D), (B, K, S, D)
        return *(torch.randn(shape, generator=generator) for shape in shapes), mask

    whole, other = example(2, 6, 2, 5, 5, 8), example(2, 6, 2, 5, 5, 8)
    swapped = [whole[:place] + (other[place],) + whole[place + 1 :] for place in range(4)]
    causal = (*whole[:3], causal_mask(5))
    wrong_heads = "your heads read the wrong KV heads: a group is a run of neighbours; are K and G swapped?"
    mean_of_heads = "you average over the KV heads: each query head reads the one of its own group"
    over_length = "you divide by the square root of the number of {}: divide by that of D, the length of a head"
    own_mask = "you hide keys by a triangle of your own: the mask alone says who sees whom, also where T and S differ"
    triangles = [
        lambda mask: mask.tril(),
        lambda mask: mask.tril(mask.shape[1] - mask.shape[0]),
        lambda mask: torch.ones_like(mask).tril(),
        lambda mask: torch.ones_like(mask).tril(mask.shape[1] - mask.shape[0]),
    ]
    apart = torch.eye(5, dtype=torch.bool)  # each query sees one key, and scores it far below zero
    low = -1e6 * whole[0].abs(), whole[1].abs(), whole[2], apart
    return judge(
        "grouped_attention",
        function,
        answer=answer,
        cases=[causal, whole, *swapped, example(1, 4, 2, 1, 9, 4), example(2, 4, 4, 3, 7, 16)]
        + [example(3, 6, 1, 7, 2, 2), example(1, 8, 2, 4, 6, 64), low],
        also=shortcoming,
        unchanged={
            "k": ", which is the cache: leave it as it is; the scores can be scaled instead",
            "v": ", which is the cache: leave it as it is; the weights or the answer can be scaled instead",
        },
        mistakes=[
            *(
                Mistake(
                    attend(hide=lambda scores, mask, least=least: scores.masked_fill(~mask, least)),
                    "a hidden score that is a fixed number can be higher than one that is seen: use minus infinity",
                )
                for least in (-1e4, -10)
            ),
            Mistake(
                in_rows(mask_rows=lambda mask, G: mask.repeat_interleave(G, 0)),
                "your mask does not fit your rows: those of a group are all T queries of one head, then all of the "
                "next, so repeat the whole mask, not each of its rows",
            ),
            Mistake(
                in_rows(keys=lambda k: k.reshape(*k.shape[:2], k.shape[3], k.shape[2])),
                "your keys are in the wrong order: `reshape` does not swap axes, `k.mT` does",
            ),
            Mistake(
                in_rows(queries=lambda q: q.transpose(1, 2)),
                "your queries are in the wrong order: `transpose` before `reshape` mixes heads and tokens; q is "
                "(B, H, T, D) already",
            ),
            Mistake(
                lambda q, k, v, mask: answer(q, k, v, mask).transpose(1, 2).reshape(q.shape),
                "your answer is right before its last step: `transpose` before `reshape` mixes heads and tokens",
            ),
            Mistake(attend(scale=lambda q, k: 1), hints.TOO_EXTREME),
            Mistake(
                attend(scale=lambda q, k: q.shape[-1]),
                hints.TOO_EVEN,
            ),
            Mistake(attend(scale=lambda q, k: q.shape[-1] ** -0.5), "you multiply by the square root of D: divide"),
            Mistake(attend(scale=lambda q, k: q.shape[-2] ** 0.5), over_length.format("queries")),
            Mistake(attend(scale=lambda q, k: k.shape[-2] ** 0.5), over_length.format("keys")),
            Mistake(attend(scale=lambda q, k: q.shape[1] ** 0.5), over_length.format("heads")),
            *(Mistake(attend(scale=lambda q, k, D=D: D**0.5), hints.CONSTANT.format(D)) for D in (8, 64, 128)),
            Mistake(attend(keys=in_turn, values=in_turn), wrong_heads),
            Mistake(attend(keys=in_turn), "your keys are those of the wrong KV heads: a group is a run of neighbours"),
            Mistake(
                attend(values=in_turn), "your values are those of the wrong KV heads: a group is a run of neighbours"
            ),
            Mistake(
                lambda q, k, v, mask: answer(q, v, k, mask),
                "are `k` and `v` swapped? Scores come from the keys `k`, and the mean is taken of the values `v`",
            ),
            Mistake(
                lambda q, k, v, mask: answer(q, k, k, mask),
                "you take the mean of the keys: the weights belong to the values",
            ),
            Mistake(
                lambda q, k, v, mask: answer(q, v, v, mask),
                "you multiply the queries with the values: scores come from the keys",
            ),
            *(
                Mistake(
                    attend(keys=keys, values=values),
                    f"{whose} in reverse order of the {'KV heads' if axis == 1 else 'tokens'}: leave k and v as they "
                    "are",
                )
                for axis in (1, 2)
                for keys, values, whose in (
                    (neighbours, backwards(axis), "your values are"),
                    (backwards(axis), neighbours, "your keys are"),
                    (backwards(axis), backwards(axis), "your keys and values are"),
                )
            ),
            *(
                Mistake(
                    lambda q, k, v, mask, scale=scale: attend(scale=scale)(q, k, v, mask) / math.sqrt(q.shape[-1]),
                    "you divide after the softmax, so the weights do not add to 1: divide the scores",
                )
                for scale in (lambda q, k: 1, lambda q, k: q.shape[-1] ** 0.5)
            ),
            Mistake(
                mean_of_queries,
                "you average the queries of a group: its heads share keys and values, and each has a query and an "
                "answer of its own",
            ),
            Mistake(attend(keys=averaged, values=averaged), mean_of_heads),
            Mistake(attend(keys=averaged), mean_of_heads + "; the values are right"),
            Mistake(attend(values=averaged), mean_of_heads + "; the keys are right"),
            Mistake(attend(keys=first, values=first), "all your heads read KV head 0: each group has one of its own"),
            Mistake(attend(axis=-2), hints.OVER_QUERIES),
            Mistake(attend(axis=-2, nan=0.0), hints.OVER_QUERIES),
            Mistake(in_rows(axis=-2), hints.OVER_QUERIES),
            Mistake(
                attend(axis=1),
                "your softmax runs over the heads: the weights of one query over all keys must add to 1",
            ),
            Mistake(
                attend(axis=None, hide=lambda scores, mask: scores * mask),
                hints.NO_SOFTMAX,
            ),
            Mistake(attend(hide=lambda scores, mask: scores), "you look at keys that are hidden: is the mask used?"),
            Mistake(
                attend(hide=lambda scores, mask: scores + mask),
                "you add the mask to the scores, where True counts as 1: hidden scores must be minus infinity",
            ),
            *(
                Mistake(
                    attend(hide=hidden_where(lambda mask: ~mask), nan=nan),
                    "you hide what may be seen: True in the mask means that a query may look",
                )
                for nan in (math.nan, 0.0)
            ),
            *(
                Mistake(attend(hide=hidden_where(change), nan=nan), own_mask)
                for change in triangles
                for nan in (math.nan, 0.0)
            ),
            Mistake(
                attend(hide=lambda scores, mask: scores * mask),
                hints.HIDDEN_BY_ZERO,
            ),
            *(
                Mistake(late(hide), hints.HIDDEN_LATE)
                for hide in (
                    lambda weights, mask: weights * mask,
                    lambda weights, mask: weights.masked_fill(~mask, -math.inf),
                )
            ),
            Mistake(
                late(lambda weights, mask: (weights * mask).softmax(-1)),
                "you take the softmax twice: hide the scores before the first one",
            ),
            Mistake(
                lambda q, k, v, mask: answer(q, k, v, mask).transpose(1, 2),
                "your result is (B, T, H, D): expected (B, H, T, D), as q is",
            ),
            Mistake(
                lambda q, k, v, mask: answer(q, k, v, mask).transpose(1, 2).flatten(2),
                "you join the heads: the result is (B, H, T, D), as q is",
            ),
        ],
    )
