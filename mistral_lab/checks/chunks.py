"""Lesson 3: a prompt read in chunks, through a window."""

import math
from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode

from ..masks import position_mask
from . import hints
from .compat import Products
from .judging import Mistake, judge
from .values import read_answer


class ZeroedMemory(TorchFunctionMode):
    """Fresh tensors hold zeros, so that rows which nobody wrote are the same in every run."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        fresh = getattr(func, "__name__", "") in ("empty", "empty_like", "new_empty")
        return result.zero_() if fresh else result


def prefill_in_chunks(function: Callable) -> Callable:
    """Check `function(q, k, v (T, D), window, chunk) -> (T, D)`: windowed attention, `chunk` queries at a time.

    A right answer touches no key that no query of a chunk sees, and takes the queries of a chunk together: one at a
    time would read nearly every key W times, and a chunk is there to read it once for all of its queries.

    >>> my_answer = prefill_in_chunks(lambda q, k, v, window, chunk: NotImplemented)
    prefill_in_chunks: not tried yet; the lesson goes on with its own
    """

    def plain(scores, seen):
        return scores.masked_fill(~seen, -math.inf).softmax(1)

    def by_positions(rows, columns, window):
        return position_mask(rows, columns, window=window)

    def chunks(q, k, v, window, chunk, *, before=0, visible=by_positions, weigh=plain, root=None):
        """The right answer, or with one step replaced; `before` is the number of keys more than W - 1."""
        out = torch.zeros_like(v)
        for start in range(0, len(q), chunk):
            end = min(start + chunk, len(q))
            rows = torch.arange(start, end, device=q.device)
            columns = torch.arange(max(0, min(start, start - (window - 1 + before))), end, device=q.device)
            scores = q[rows] @ k[columns].T / math.sqrt(root or q.shape[1])
            out[rows] = weigh(scores, visible(rows, columns, window)) @ v[columns]
        return out

    def answer(q, k, v, window, chunk):
        return chunks(q, k, v, window, chunk)

    def wrong(**changes):
        return lambda q, k, v, window, chunk: chunks(q, k, v, window, chunk, **changes)

    def everything(rows, columns, window):
        return torch.ones(len(rows), len(columns), dtype=torch.bool)

    def from_zero(rows, columns, window):
        return position_mask(torch.arange(len(rows)), torch.arange(len(columns)), window=window)

    def from_zero_without_window(rows, columns, window):
        return from_zero(rows, columns, len(columns))

    def without_end(rows, columns, window):
        return position_mask(rows, columns)

    def dropped(q, k, v, window, chunk):
        return len(q) // chunk * chunk

    def late(scores, seen):
        return scores.softmax(1) * seen

    def late_infinite(scores, seen):
        return scores.softmax(1).masked_fill(~seen, -math.inf)

    def over_all(q, k, v, window, chunk, weigh):
        """Each chunk with all keys of the text, before and after it."""
        everywhere = torch.arange(len(q))
        return weigh(q @ k.T / math.sqrt(q.shape[1]), by_positions(everywhere, everywhere, window)) @ v

    def cut(q, k, v, window, chunk):
        return answer(q, k, v, window, chunk)[: dropped(q, k, v, window, chunk)]

    def zeros(q, k, v, window, chunk):
        out = answer(q, k, v, window, chunk)
        out[dropped(q, k, v, window, chunk) :] = 0
        return out

    def touches_too_much(function):
        """Poison one value after the other: which of them spoil a chunk, although none of its queries sees them?"""
        window, chunk, T = 3, 4, len(q)
        touched = torch.zeros(T, T, dtype=torch.bool)
        for key in range(T):
            spoiled = v.clone()
            spoiled[key] = math.nan  # a hidden key has weight 0, and 0 times NaN is NaN
            try:
                got = read_answer(function(q, k, spoiled, window, chunk), v)
                touched[:, key] = torch.from_numpy(got).isnan().any(1)
            except Exception:  # a function that refuses NaN cannot be asked in this way
                return None
        for start in range(0, T, chunk):
            end = min(start + chunk, T)
            keys = touched[start:end].any(0).nonzero().flatten()
            seen = end - max(0, start - window + 1)
            if len(keys) > seen:
                return (
                    f"the values are right, but your chunk of queries {start} to {end - 1} touches {len(keys)} keys "
                    f"where {seen} are seen (W = {window}): cut k and v before you multiply"
                )
        return None

    def takes_one_at_a_time(function):
        """Does a chunk of all queries take as many products as chunks of one? NumPy's products are not seen."""
        counts = []
        for chunk in (1, len(q)):
            with Products() as products:
                function(q.clone(), k.clone(), v.clone(), 3, chunk)
            counts.append(products.count)
        if not 0 < counts[0] <= counts[1]:
            return None
        return (
            f"the values are right, but a chunk of {len(q)} queries takes {counts[1]} products, and {len(q)} chunks of "
            f"one take {counts[0]}: the queries of a chunk belong in one product, which reads each key once for all"
        )

    generator = torch.Generator().manual_seed(0)

    def example(T, D):
        return torch.randn(3, T, D, generator=generator).unbind()

    (q, k, v), others = example(11, 4), example(11, 4)
    last_chunk = (
        "the last chunk of your answer is missing: {chunk} does not divide the number of queries, and the rest of them "
        "are a shorter chunk"
    )
    over_chunk = "your mask counts from the first query of the chunk: it needs positions in the whole text"
    return judge(
        "prefill_in_chunks",
        function,
        answer=answer,
        cases=[(q, k, v, 3, 11), (q, k, v, 3, 4), (q, k, v, 5, 4), (q, k, v, 5, 2), (q, k, v, 20, 4), (q, k, v, 3, 1)]
        + [(others[0], k, v, 3, 4), (q, others[1], v, 3, 4), (q, k, others[2], 3, 4)]
        + [(*example(7, 6), 2, 3), (*example(6, 64), 4, 5), (*example(1, 2), 4, 1), (q, k, v, 1, 4)],
        mistakes=[
            Mistake(
                wrong(visible=everything),
                "your chunk is read without a mask: inside it a query sees keys that come after it",
            ),
            Mistake(
                wrong(visible=without_end),
                "in a chunk of {chunk} later queries see more than W = {window} keys: the mask needs the window too",
            ),
            Mistake(
                wrong(before=len(q), visible=without_end),
                "your queries see everything before them: W = {window} hides what lies further back",
            ),
            Mistake(
                lambda q, k, v, window, chunk: chunks(q, k, v, window, chunk, before=1 - window),
                "your chunks see only themselves: the first query of a chunk also sees the W - 1 keys before it",
            ),
            Mistake(
                lambda q, k, v, window, chunk: chunks(q, k, v, window, chunk, before=1 - window, visible=without_end),
                "your chunks see only themselves, and without a window: the first query of a chunk also sees the W - 1 "
                "keys before it",
            ),
            Mistake(
                lambda q, k, v, window, chunk: chunks(q, k, v, window + 1, chunk),
                "your queries see one key too many: W = {window} counts the token itself",
            ),
            Mistake(
                lambda q, k, v, window, chunk: chunks(q, k, v, max(1, window - 1), chunk),
                "your queries see one key too few: W = {window} counts the token itself",
            ),
            Mistake(
                wrong(visible=lambda rows, columns, window: position_mask(rows, columns, window=window + 1)),
                "your mask shows one key too many where W = {window}: W counts the token itself",
            ),
            *(
                Mistake(
                    lambda q, k, v, window, chunk, visible=visible: chunks(
                        q, k, v, window, chunk, before=chunk - window + 1, visible=visible
                    ),
                    "you keep the previous chunk, which is {chunk} keys: the first query of a chunk also sees the "
                    "W - 1 keys before it, where W = {window}",
                )
                for visible in (by_positions, without_end)
            ),
            Mistake(wrong(before=-1), "the first query of your chunks misses one key: keep the W - 1 before it"),
            Mistake(wrong(visible=from_zero), over_chunk),
            Mistake(wrong(visible=from_zero, weigh=lambda scores, seen: plain(scores, seen).nan_to_num()), over_chunk),
            Mistake(wrong(visible=from_zero_without_window), over_chunk + "; and it needs the window"),
            Mistake(wrong(root=1), hints.TOO_EXTREME),
            *(Mistake(wrong(root=D), hints.CONSTANT.format(D)) for D in (4, 64, 128)),
            Mistake(
                lambda q, k, v, window, chunk: chunks(q, k, v, window, chunk, root=q.shape[1] ** 2),
                hints.TOO_EVEN,
            ),
            Mistake(
                wrong(weigh=lambda scores, seen: scores.masked_fill(~seen, -math.inf).softmax(0)), hints.OVER_QUERIES
            ),
            Mistake(
                wrong(weigh=lambda scores, seen: scores.masked_fill(~seen, -math.inf).softmax(0).nan_to_num()),
                hints.OVER_QUERIES,
            ),
            *(
                Mistake(hidden_late, hints.HIDDEN_LATE)
                for weigh in (late, late_infinite)
                for hidden_late in (
                    wrong(weigh=weigh),
                    lambda q, k, v, window, chunk, weigh=weigh: chunks(
                        q, k, v, window, chunk, before=len(q), weigh=weigh
                    ),
                    lambda *given, weigh=weigh: over_all(*given, weigh),
                )
            ),
            Mistake(
                wrong(weigh=lambda scores, seen: (scores * seen).softmax(1)),
                hints.HIDDEN_BY_ZERO,
            ),
            Mistake(wrong(weigh=lambda scores, seen: scores * seen), hints.NO_SOFTMAX),
            Mistake(cut, last_chunk),
            Mistake(zeros, last_chunk),
        ],
        watch=ZeroedMemory,
        also=lambda function: touches_too_much(function) or takes_one_at_a_time(function),
    )
