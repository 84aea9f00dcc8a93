"""The relay: a name hops from floor to floor, at most W - 1 tokens at a time; each floor keeps its keys in a ring."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.patches import FancyBboxPatch, Rectangle, Wedge

from .language import IDLE, IDLE_EDGE, KEY, QUERY, QUIET, as_stage, draw_token, pale, write
from .style import STYLE

FLOOR_GAP, BOTTOM = 1.45, 1.55  # stage units between floors, and up to the lowest one
ROW = 1.0  # between the two rows of tokens in a small picture
LEFT, RIGHT, RING_X, WIDTH = 2.0, 13.1, 15.0, 16.0


def relay_height(layers: int, *, brief: bool = False) -> float:
    """Height of the stage that `plot_relay` needs, in its units; it is 16 of them wide."""
    return BOTTOM + ROW * brief + layers * FLOOR_GAP + 2.1


@mpl.rc_context(STYLE)
def plot_relay(
    words: Sequence[str],
    knows: np.ndarray,
    path: Sequence[tuple[int, int]],
    held: np.ndarray,
    *,
    now: int,
    source: int,
    title: str,
    brief: bool = False,
    ax: Axes,
) -> Axes:
    """Draw a stack of layers over a row of tokens, what has heard of the name so far, and the ring below each layer.

    Args:
        words: the tokens, (T,).
        knows: (L + 1, T) bool, whether the state of a token after a layer can depend on the name; row 0 are embeddings.
        path: (token, floor) of the stations by which the name reached the newest token, from the top; may be empty.
        held: (W,) positions in the slots of each ring, -1 where one is empty; slot p mod W holds position p.
        now: the newest token; what comes after it has not arrived yet.
        source: the token that is the name.
        title: above the picture.
        brief: for a small picture: tokens in two rows, every second one lower, and short labels.
        ax: a stage of 16 by `relay_height(L, brief=brief)` units.
    """
    knows, held = np.asarray(knows), np.asarray(held)
    if knows.ndim != 2 or knows.dtype != bool or knows.shape[1] != len(words) or not 0 <= now < len(words):
        raise ValueError(
            f"knows has shape {knows.shape} in {knows.dtype}, for {len(words)} words, and now is {now}: "
            "expected bool (L + 1, words), and one of them"
        )
    layers, tokens = knows.shape[0] - 1, len(words)
    height, bottom = relay_height(layers, brief=brief), BOTTOM + ROW * brief
    as_stage(ax, WIDTH, height)
    x, y = np.linspace(LEFT, RIGHT, tokens), bottom + FLOOR_GAP * np.arange(layers + 1)
    write(ax, 0.1, height - 0.45, title, fontsize=9 if brief else 11, ha="left")
    for floor in range(1, layers + 1):
        write(ax, 0.1, y[floor], str(floor) if brief else f"after layer {floor}", colour=QUIET, ha="left")
    write(ax, 0.1, y[0], "words" if brief else "embedding", colour=QUIET, ha="left")
    if brief:
        write(ax, 0.1, y[layers] + 0.8, "layer", colour=QUIET, ha="left")
    _draw_reading(ax, x, y, knows, held, now)
    _draw_states(ax, x, y, knows, path, now)
    _draw_words(ax, x, words, now=now, source=source, brief=brief)
    for layer in range(layers):
        _draw_ring(ax, (RING_X, (y[layer] + y[layer + 1]) / 2), held, knows[layer], now=now)
    write(ax, RING_X, bottom - 0.3, "keys" if brief else "keys kept", colour=QUIET)
    arrived = bool(knows[layers, now])
    if now == tokens - 1:
        text, colour = (words[source], KEY) if arrived else ("?", QUIET)
        width, height = (1.9, 0.8) if brief else (1.15, 0.5)
        write(ax, x[now] - width / 2 - 0.15, y[layers] + 0.8, "can answer", colour=QUIET, ha="right")
        draw_token(ax, x[now], y[layers] + 0.8, text, width=width, height=height, state="now", colour=colour)
    return ax


def _draw_reading(ax: Axes, x, y, knows, held, now: int) -> None:
    """Lines from each state of the newest token to the states below that its layer reads."""
    seen = np.sort(held[held >= 0])
    lines, colours = [], []
    for floor in range(1, len(y)):
        for key in seen:
            lines.append([(x[now], y[floor]), (x[key], y[floor - 1])])
            colours.append(pale(KEY, 0.45) if knows[floor - 1, key] else IDLE_EDGE)
    ax.add_collection(LineCollection(lines, colors=colours, linewidths=1, zorder=0.8))


def _draw_states(ax: Axes, x, y, knows, path, now: int) -> None:
    """A dot for each token on each floor: orange where it may know the name, hollow where it has not arrived yet."""
    floors, places = np.indices(knows.shape)
    stations = np.zeros_like(knows)
    for token, floor in path:
        stations[floor, token] = True
    come = places <= now
    faces = np.full(knows.shape, "white", dtype=object)
    faces[come] = IDLE
    faces[come & knows] = pale(KEY, 0.55)
    faces[stations] = KEY
    edges = np.where(come, "white", IDLE)
    ax.scatter(
        x[places.ravel()],
        y[floors.ravel()],
        s=130 if len(x) * len(y) < 90 else 90,
        c=faces.ravel().tolist(),
        edgecolors=edges.ravel().tolist(),
        zorder=3,
    )
    hops = [[(x[a], y[f]), (x[b], y[g])] for (a, f), (b, g) in zip(path, path[1:], strict=False)]
    ax.add_collection(LineCollection(hops, colors=KEY, linewidths=3.5, capstyle="round", zorder=2))


def _draw_words(ax: Axes, x, words: Sequence[str], *, now: int, source: int, brief: bool) -> None:
    """The tokens: the name orange, the newest framed in the query's blue, what has not arrived as an empty box."""
    rows = 2 if brief else 1
    width = 0.94 * rows * (x[1] - x[0]) if len(x) > 1 else 1.0
    for place, word in enumerate(words):
        state = "now" if place in (source, now) and place <= now else "past" if place <= now else "idle"
        y = 0.6 + ROW * (rows - 1 - place % rows)
        colour = KEY if place == source else QUERY
        text = word if place <= now else ""
        draw_token(ax, x[place], y, text, width=width, height=0.8 if brief else 0.62, state=state, colour=colour)


def _draw_ring(ax: Axes, centre, held, knows, *, now: int) -> None:
    """A ring of slots, slot 0 at the top and on clockwise, as `plot_ring` draws it; the newest is framed in blue."""
    turn = 360 / len(held)
    for slot, position in enumerate(held):
        start, newest = 90 - (slot + 1) * turn, position == now
        face = "white" if position < 0 else KEY if knows[position] else IDLE
        edge = {"edgecolor": QUERY, "linewidth": 1.8} if newest else {"edgecolor": IDLE_EDGE, "linewidth": 1}
        ax.add_patch(
            Wedge(centre, 0.56, start, start + turn, width=0.3, facecolor=face, zorder=2 + 0.5 * newest, **edge)
        )


@mpl.rc_context(STYLE)
def plot_lost_name(words: Sequence[str], *, source: int, size: int, window: int, answered: str, ax: Axes) -> Axes:
    """Draw a whole text as a line of tokens to scale: where a name was told, what one layer sees, and the answer.

    Args:
        words: all tokens up to the question.
        source: which of them begins the name.
        size: tokens of the name.
        window: W, which is shaded at the end.
        answered: what the model said.
        ax: a stage of 16 by 5 units.
    """
    if not 0 <= source < source + size < len(words):
        raise ValueError(f"the name is at {source}, of {size} tokens, in a text of {len(words)}: expected it to fit")
    as_stage(ax, 16, 5)
    left, right, line, tokens = 0.3, 15.7, 2.55, len(words)
    step = (right - left) / tokens
    boxes = [Rectangle((left + step * at, line), 0.72 * step, 0.42) for at in range(tokens)]
    faces = [IDLE_EDGE if at < tokens - window else pale(QUERY, 0.35) for at in range(tokens)]
    faces[source : source + size] = [KEY] * size
    faces[-1] = QUERY
    ax.add_collection(PatchCollection(boxes, facecolor=faces, edgecolor="none"))
    name, last = left + step * (source + 0.5), right - step / 2
    arrow = {"arrowstyle": "<->", "color": QUIET, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (name, line + 0.85), (last, line + 0.85), arrowprops=arrow)
    write(ax, (name + last) / 2, line + 1.12, f"{tokens - 1 - source} tokens", colour=QUIET)
    write(ax, last - 0.5, line - 0.3, f"what one layer sees: {window} tokens", colour=QUERY, ha="right")
    opening = range(max(0, source - 3), source + size)
    marked = [at for at, place in enumerate(opening) if place >= source]
    _draw_phrase(ax, 0.3, 1.1, [words[at] for at in opening], marked, KEY, towards=(name, line))
    question = words[-5:]
    _draw_phrase(ax, 9.6, 1.1, question, [len(question) - 1], QUERY, towards=(last, line))
    told = " ".join(words[source : source + size])
    shape = FancyBboxPatch((13.2, 3.95), 2.5, 0.72, boxstyle="round,pad=0,rounding_size=0.15")
    shape.set(facecolor="white", edgecolor=QUERY, linewidth=2)
    ax.add_patch(shape)
    write(ax, 14.45, 4.31, answered, fontsize=12, weight="bold")
    write(ax, 13.0, 4.31, f"The text said {told}. The model answers", fontsize=11, ha="right")
    return ax


def _draw_phrase(ax: Axes, x: float, y: float, words, marked, colour: str, *, towards: tuple[float, float]) -> None:
    """A few tokens in boxes, and a line from the marked ones to their place in the text."""
    for place, word in enumerate(words):
        width = 0.42 + 0.145 * len(word)
        state = "now" if place in marked else "past"
        draw_token(ax, x + width / 2, y, word, width=width, height=0.6, state=state, colour=colour, fontsize=9.5)
        if place == marked[0]:
            ax.plot([x + width / 2, towards[0]], [y + 0.32, towards[1]], color=colour, linewidth=1.2, zorder=0.5)
        x += width + 0.08
