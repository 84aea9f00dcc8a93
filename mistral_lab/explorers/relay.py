"""Explorer of the relay: tokens arrive, rings turn, and a name hops from floor to floor, or gets lost."""

from functools import lru_cache

import numpy as np
import torch

from ..figures import bare_figure, plot_relay, relay_height
from ..masks import receptive_field, sliding_window_mask
from .base import Explorer, count_slider, moving_slider

WORDS = ("was", "Lena", "Grant", ",", "and", "she", "lived", "near", "the", "sea", ".", "All", "knew")
SOURCE, LAST = 1, len(WORDS) - 1  # the name's first word, and the token after which it is due
MOST_LAYERS, MOST_WINDOW = 4, 8
MOMENTS = (3, 5, 8, LAST)  # of the strip that stands for the explorer


def relay() -> Explorer:
    """Let a text arrive token by token over a stack of windowed layers, and follow one name through it.

    Equation: knows[l, i] = any(knows[l - 1, j] for j with 0 <= i - j < W).
    Source: arXiv:2310.06825, section 2 and figure 1.
    """

    def view(token: int, window: int, layers: int):
        figure, axes = bare_figure(height_in=relay_height(layers) / 2)
        figure.set_layout_engine("none")
        axes[0, 0].set_position((0, 0, 1, 1))
        _draw(axes[0, 0], token, window, layers)
        return figure, _sentence(token, window, layers)

    def still():
        window, layers = 5, 3
        figure, axes = bare_figure(2, 2, height_in=relay_height(layers, brief=True) / 2)
        figure.set_layout_engine("none")
        for number, (ax, token) in enumerate(zip(axes.flat, MOMENTS, strict=True)):
            ax.set_position((number % 2 / 2, 0.5 - number // 2 / 2, 0.5, 0.5))
            _draw(ax, token, window, layers, brief=True)
        return figure, "Four moments of the relay. " + _sentence(LAST, window, layers)

    controls = {
        "token": moving_slider("token", LAST, 0, LAST),
        "window": count_slider("window W", 5, 1, MOST_WINDOW),
        "layers": count_slider("layers L", 3, 1, MOST_LAYERS),
    }
    return Explorer(controls, view, still)


def _draw(ax, token: int, window: int, layers: int, *, brief: bool = False) -> None:
    knows, path = _heard(window, layers, token)
    held = np.full(window, -1)
    for position in range(max(0, token - window + 1), token + 1):
        held[position % window] = position
    title = f"Token {token}, “{WORDS[token]}”, arrives. Each layer reads the last {window} keys below it."
    brief_title = f"Token {token}, “{WORDS[token]}”, W = {window}"
    plot_relay(
        WORDS, knows, path, held, now=token, source=SOURCE, title=brief_title if brief else title,
        brief=brief, ax=ax,
    )  # fmt: skip


@lru_cache(64)
def _heard(window: int, layers: int, token: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Which states can depend on the name, and the chain of furthest hops to the highest one of this token."""
    mask = sliding_window_mask(len(WORDS), window)
    knows = torch.zeros(layers + 1, len(WORDS), dtype=torch.bool)
    knows[0, SOURCE] = True
    for layer in range(layers):
        knows[layer + 1] = (mask & knows[layer]).any(1)
    knows[:, token + 1 :] = False
    floors = knows[:, token].nonzero().flatten().tolist()
    path = []
    if floors:
        at = token
        path.append((at, floors[-1]))
        for floor in range(floors[-1], 0, -1):
            at = int((mask[at] & knows[floor - 1]).nonzero()[0])
            path.append((at, floor - 1))
    return knows.numpy(), path


def _sentence(token: int, window: int, layers: int) -> str:
    back = token - SOURCE
    if back < 0:
        return "The name has not been told yet."
    knows, _ = _heard(window, layers, token)
    floors = knows[:, token].nonzero()[0]
    most = receptive_field(window, layers) - 1
    hop = f"With W = {window} a hop is at most {window - 1} token{'s' * (window != 2)}"
    reach = f"{layers} layer{'s' * (layers > 1)} carry a name at most {most} tokens"
    kept = "still" if back < window else "no longer"
    name = f"{WORDS[SOURCE]} is {back} back, {kept} among the keys that the lowest layer keeps (in a ring, see below)"
    if not len(floors):
        return f"{hop}, so {reach}. {name}: it is lost for “{WORDS[token]}”."
    least = int(floors[0])
    heard = f"“{WORDS[token]}” hears of it after layer {least}" if least else "this token is the name itself"
    return f"{hop}, so {reach}. {name}; {heard}."
