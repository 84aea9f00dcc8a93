"""Explorers of the sliding window: who sees whom through one layer and through many; what the ring cache keeps."""

from functools import lru_cache

import numpy as np
import torch

from ..cache import KVRing
from ..figures import bare_figure, plot_mask, plot_positions, plot_ring
from ..masks import causal_mask, receptive_field, sliding_window_mask
from .base import Explorer, count_slider, moving_slider

LEAST_TOKENS, MOST_TOKENS, MOST_LAYERS = 2, 24, 8
STEPS = 24  # tokens that the ring is given
MOST_SLOTS = 8


def mask_and_reach() -> Explorer:
    """Slide a query over a windowed mask; see its keys in one layer and the tokens that reach it through a stack.

    Equation: reach = mask^L as a boolean product: token j reaches query i if a chain of L keys leads from i to j.
    Source: arXiv:2310.06825, section 2 and figure 1.
    """

    def adapt(controls) -> None:
        for name, most in (("window", controls["tokens"].value), ("query", controls["tokens"].value - 1)):
            controls[name].max = most

    def view(tokens: int, window: int, layers: int, query: int):
        mask = sliding_window_mask(tokens, window)
        through = torch.linalg.matrix_power(mask.double(), layers) > 0
        figure, axes = bare_figure(1, 2, height_in=4.0)
        plot_mask(mask.numpy(), row=query, title="one layer (coloured: seen)", ax=axes[0, 0])
        title = f"{layers} layer{'s' * (layers > 1)} (coloured: it reaches the query)"
        plot_mask(through.numpy(), row=query, title=title, ax=axes[0, 1])
        for ax in axes[0]:
            places = range(0, tokens, 1 + tokens // 10)  # with few tokens matplotlib would put numbers between them
            ax.set_xticks(places)
            ax.set_yticks(places)
        seen, reached = int(mask[query].sum()), int(through[query].sum())
        most = receptive_field(window, layers)
        kind = "a causal mask without a window" if mask.equal(causal_mask(tokens)) else f"a window of {window}"
        return figure, (
            f"With {kind}, query {query} sees {_keys(query, seen)}. Through {layers} layer{'s' * (layers > 1)} "
            f"{reached} token{'s reach' if reached > 1 else ' reaches'} it, of at most {most}, L·(W − 1) + 1."
        )

    controls = {
        "tokens": count_slider("tokens T", 16, LEAST_TOKENS, MOST_TOKENS),
        "window": count_slider("window W", 4, 1, 16),
        "layers": count_slider("layers L", 3, 1, MOST_LAYERS),
        "query": count_slider("query", 12, 0, 15),
    }
    return Explorer(controls, view, adapt=adapt)


def ring_cache() -> Explorer:
    """Give a `KVRing` one token after another, by hand or with the play button, and see what each slot holds.

    The slots hold what `slot_positions()` says. Visible are the positions that `append` returned.
    """

    def view(window: int, step: int):
        held, visible = _ring_history(window)
        figure, axes = bare_figure(1, 2, height_in=3.2, widths=[1, 1.25])
        plot_ring(held[step], written=step % window, longest=STEPS - 1, ax=axes[0, 0])
        title = "in colour: handed out to the newest token (framed)"
        plot_positions(visible[step], newest=step, title=title, ax=axes[0, 1])
        gone = step + 1 - int(visible[step].sum())
        return figure, (
            f"W = {window}: token {step} goes to slot {step} mod {window} = {step % window}. The token sees "
            f"{_keys(step, int(visible[step].sum()))}; {gone} earlier token{'s are' if gone != 1 else ' is'} gone."
        )

    controls = {"window": count_slider("window W", 4, 1, MOST_SLOTS), "step": moving_slider("token", 6, 0, STEPS - 1)}
    return Explorer(controls, view)


@lru_cache(MOST_SLOTS)
def _ring_history(window: int) -> tuple[np.ndarray, np.ndarray]:
    """What each slot holds after each step (STEPS, W), and which positions `append` returned (STEPS, STEPS) bool."""
    ring, held, visible = KVRing(window, 1, 2), [], np.zeros((STEPS, STEPS), bool)
    for step in range(STEPS):
        token = torch.zeros(1, 1, 1, 2)
        _, _, positions = ring.append(token, token)
        visible[step, positions.numpy()] = True
        held.append(ring.slot_positions().numpy())
    return np.stack(held), visible


def _keys(newest: int, count: int) -> str:
    return f"only key {newest}, itself" if count == 1 else f"{count} keys, {newest - count + 1} to {newest}"
