"""Lesson 3: what a window shows."""

from collections.abc import Callable

import torch

from ..masks import position_mask
from .judging import Mistake, judge


def window_mask(function: Callable) -> Callable:
    """Check `function(queries (T,), keys (S,), window) -> (T, S) bool`, True where a query sees a key, by position.

    >>> my_answer = window_mask(lambda queries, keys, window: NotImplemented)
    window_mask: not tried yet; the lesson goes on with its own
    """

    def answer(queries, keys, window):
        return position_mask(queries, keys, window=window)

    def visible(rule, by_index=False):
        def wrong(queries, keys, window):
            i, j = (torch.arange(len(x)) for x in (queries, keys)) if by_index else (queries, keys)
            return rule(i[:, None] - j, window)

        return wrong

    def transposed(queries, keys, window):
        return position_mask(queries, keys, window=window).T

    def paired(rule):
        """Each query with the key at its own place: a mask of one axis, and an error where there are fewer queries."""
        return lambda queries, keys, window: rule(queries - keys, window)

    one_axis = "your mask has one axis, as queries and keys are taken in pairs: give queries a second axis, [:, None]"
    positions = torch.arange(8)
    return judge(
        "window_mask",
        function,
        answer=answer,
        cases=[(positions, positions, 4), (positions, positions, 3), (positions[5:], positions, 4)]
        + [
            (positions[5:], positions[2:], 4),
            (positions, positions.flip(0), 4),
            (positions[7:] + 12, positions + 12, 5),
        ]
        + [(positions, positions, 1), (positions[:3], positions[[2, 0, 5, 1]], 2)],
        mistakes=[
            Mistake(paired(lambda back, window: back == 0), one_axis),
            Mistake(paired(lambda back, window: back != 0), one_axis),
            Mistake(
                visible(lambda back, window: (back >= 0) & (back <= window)),
                "your window shows {got} keys where W = {window}: is it `<=`?",
            ),
            Mistake(
                visible(lambda back, window: (back > 0) & (back <= window)),
                "your queries do not see themselves: a window counts the token itself",
            ),
            Mistake(
                visible(lambda back, window: (back > 0) & (back < window)),
                "your window shows {got} keys where W = {window}: the token itself is missing; is it `>`?",
            ),
            Mistake(
                visible(lambda back, window: back.abs() < window),
                "your queries see keys that come after them: a window looks back only",
            ),
            Mistake(
                visible(lambda back, window: (back <= 0) & (back > -window)),
                "your queries see keys that come after them: a window looks back only",
            ),
            Mistake(
                visible(lambda back, window: back < window),
                "your queries see keys that come after them: a window looks back only",
            ),
            Mistake(
                visible(lambda back, window: back >= 0),
                "your last query sees {got} keys where W = {window}: the window has no far end",
            ),
            Mistake(
                visible(lambda back, window: (back >= 0) & (back < window), by_index=True),
                "you count from the first query and the first key: use their positions, because the first query may "
                "be at position 5",
            ),
            Mistake(
                visible(lambda back, window: (back >= 0) & (back < window - 1)),
                "your window shows {got} keys where W = {window}, one too few: W counts the token itself",
            ),
            Mistake(
                visible(lambda back, window: back.abs() <= window // 2),
                "your window looks to both sides: it looks back only, over W = {window} tokens with the query's own",
            ),
            Mistake(
                visible(lambda back, window: back > 0),
                "your queries do not see themselves, and the window has no far end",
            ),
            Mistake(
                visible(lambda back, window: back >= window),
                "you mark what lies before the window: True means that the query sees the key",
            ),
            Mistake(
                lambda queries, keys, window: (
                    (queries[:, None] >= keys) & (queries[:, None] // window == keys // window)
                ),
                "your windows stand still, in blocks of {window}: the window of a query ends at the query itself",
            ),
            Mistake(
                visible(lambda back, window: (back >= 0) & (back <= window), by_index=True),
                "you count from the first query and the first key: use their positions; and your window shows one key "
                "too many",
            ),
            Mistake(transposed, "your rows are keys and your columns queries: it is the other way round"),
            Mistake(
                lambda queries, keys, window: ~position_mask(queries, keys, window=window),
                "you mark what is hidden: True means that the query sees the key",
            ),
        ],
        show=lambda mask: str(int(mask[-1].sum())),
    )
