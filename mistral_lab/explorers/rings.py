"""Explorer of the ring: tokens arrive, and each overwrites what has just left the window."""

from functools import lru_cache

import numpy as np
import torch

from ..cache import KVRing
from ..figures import bare_figure, plot_ring, plot_ring_text
from .base import Explorer, count_slider, moving_slider

WORDS = (
    "Once", "there", "was", "a", "farmer", "called", "Lena", "Grant", ",", "and", "she", "lived", "near", "the",
    "harbour", ".", "She", "had", "fish", "for", "supper", ".",
)  # fmt: skip
LAST, MOST_SLOTS = len(WORDS) - 1, 10
MOMENTS = (2, 5, 6, 13)  # of the strip that stands for the explorer


def ring_cache() -> Explorer:
    """Give a `KVRing` one token after another, and see what each slot holds. The slots hold what it says they hold."""

    def view(token: int, window: int):
        figure, axes = bare_figure(1, 2, height_in=4.0)
        figure.set_layout_engine("none")
        for column, ax in enumerate(axes[0]):
            ax.set_position((column / 2, 0, 0.5, 1))
        plot_ring(WORDS, _held(window)[token], now=token, ax=axes[0, 0])
        plot_ring_text(WORDS, now=token, window=window, ax=axes[0, 1])
        return figure, _sentence(token, window)

    def still():
        window = 6
        figure, axes = bare_figure(1, len(MOMENTS), height_in=2.45)
        figure.set_layout_engine("none")
        for number, (ax, token) in enumerate(zip(axes[0], MOMENTS, strict=True)):
            ax.set_position((number / len(MOMENTS), 0, 1 / len(MOMENTS), 0.82))
            plot_ring(WORDS, _held(window)[token], now=token, brief=True, ax=ax)
            lost = token - window
            replaced = f"replaces {lost}, “{WORDS[lost]}”" if lost >= 0 else "fills an empty slot"
            ax.set_title(f"{token}, “{WORDS[token]}”,\n{replaced}", loc="center")
        return figure, f"Four moments of a ring with {window} slots. {_sentence(MOMENTS[-1], window)}"

    controls = {"token": moving_slider("token", 13, 0, LAST), "window": count_slider("window W", 6, 1, MOST_SLOTS)}
    return Explorer(controls, view, still)


@lru_cache(MOST_SLOTS)
def _held(window: int) -> np.ndarray:
    """What each slot holds after each token, (T, W)."""
    ring, held = KVRing(window, 1, 2), []
    for _ in WORDS:
        token = torch.zeros(1, 1, 1, 2)
        ring.append(token, token)
        held.append(ring.slot_positions().numpy())
    return np.stack(held)


def _sentence(token: int, window: int) -> str:
    slot, lost = token % window, token - window
    fate = f"overwrites “{WORDS[lost]}”, token {lost}" if lost >= 0 else "fills an empty slot"
    return f"Token {token}, “{WORDS[token]}”, goes to slot {token} mod {window} = {slot} and {fate}; nothing is moved."
