"""What `watch_experts` noted, token by token, as arrays for a picture."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .experts import ExpertUse

HELD, GUESSED, FETCHED = 0, 1, 2  # where a needed expert was found: in a slot, in one on a guess, or outside


class ExpertTraffic(NamedTuple):
    """T tokens that were decoded one by one, L layers, A experts per token."""

    needed: np.ndarray  # (T, L, A) numbers of experts, ascending
    origin: np.ndarray  # (T, L, A) of 0, 1 and 2, as above
    moved_bytes: np.ndarray  # (T,) brought for the token, wrong guesses included


def expert_traffic(uses: Sequence[ExpertUse]) -> ExpertTraffic:
    """Arrange what the experts of a model did, token by token; forwards of more than one token are left out.

    Args:
        uses: what `watch_experts` yields, of one sequence.

    Raises:
        ValueError: no single token was decoded.

    >>> use = ExpertUse(0, 1, needed=(2, 5), held=(2,), guessed=(), brought=(5,), computed_outside=(), ahead=(),
    ...                 moved_bytes=10)
    >>> traffic = expert_traffic([use])
    >>> traffic.needed.tolist(), traffic.origin.tolist(), traffic.moved_bytes.tolist()
    ([[[2, 5]]], [[[0, 2]]], [10])
    """
    layers = max((use.layer for use in uses), default=-1) + 1
    single = [use for use in uses if use.tokens == 1]
    # A generation that was interrupted leaves a part of a token at the end.
    tokens = [single[start : start + layers] for start in range(0, len(single) - layers + 1, max(layers, 1))]
    if not single or not tokens:
        raise ValueError("no token was decoded by itself: expected a generation inside watch_experts(model)")
    origin = [[[_origin(use, expert) for expert in use.needed] for use in token] for token in tokens]
    return ExpertTraffic(
        np.array([[use.needed for use in token] for token in tokens]),
        np.array(origin),
        np.array([sum(use.moved_bytes for use in token) for token in tokens]),
    )


def _origin(use: ExpertUse, expert: int) -> int:
    return HELD if expert in use.held else GUESSED if expert in use.guessed else FETCHED
