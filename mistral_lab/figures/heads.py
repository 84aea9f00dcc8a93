"""Drawn pictures of attention heads: what asks, what is kept, who shares, and rows in one product."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .canvas import axes_or_new
from .language import (
    FLOOR,
    IDLE_EDGE,
    KEY,
    QUERY,
    QUIET,
    VALUE,
    WEIGHTS,
    draw_bytes,
    draw_key,
    draw_link,
    draw_query,
    draw_token,
    draw_value,
    new_stage,
    pale,
    write,
)
from .style import INK, STYLE, hide_frame

MOST_NAMED = 16  # heads of which each has room for its number


@mpl.rc_context(STYLE)
def draw_wall(
    *,
    sizes_bytes: Sequence[float],
    text: str,
    tokens: Sequence[str] = ("My", "favourite", "condiment", "is", "mu"),
    n_heads: int = 32,
) -> Figure:
    """Draw what one layer keeps if every query head remembers for itself: a wall of keys and values.

    Args:
        sizes_bytes: of the model's weights, and of all keys and values of a long text: two bars to one scale.
        text: how long that text is, as in "32,768 tokens".
        tokens: the text so far, the newest last; it asks.
        n_heads: query heads, each with keys and values of its own.
    """
    pitch, left, top = 0.43, 2.1, 5.2
    figure, [ax] = new_stage(16, 6.75)
    xs = left + pitch * (np.arange(n_heads) + 0.5)
    place = 0.0
    for number, token in enumerate(tokens):
        width = 0.45 + 0.15 * len(token)
        state = "now" if number == len(tokens) - 1 else "past"
        draw_token(ax, left + place + width / 2, top + 1.05, token, width=width, state=state)
        place += width + 0.12
    asking = left + place - 0.12 - width / 2
    for x in xs:
        draw_link(ax, (asking, top + 0.78), (x, top + 0.19), width=0.6, state="past")
        draw_query(ax, x, top, size=0.34)
    write(ax, left - 0.25, top, f"{n_heads} heads ask", ha="right", colour=QUERY)
    for row, token in enumerate(tokens):
        y, state = top - 0.55 - 0.36 * row, "now" if row == len(tokens) - 1 else "past"
        for x in xs:
            draw_key(ax, x - 0.095, y, size=0.19, state=state)
            draw_value(ax, x + 0.095, y, size=0.19, state=state)
        write(ax, left - 0.25, y, token, ha="right", colour=INK if state == "now" else QUIET)
    scale = (n_heads * pitch - 0.4) / max(sizes_bytes)
    names = ("its weights", f"keys and values of {text}, if every head remembers for itself")
    for y, amount, colour, name in zip((1.75, 0.8), sizes_bytes, (WEIGHTS, KEY), names, strict=True):
        draw_bytes(ax, left, y, amount, scale=scale, colour=colour, text=f"{name}: {amount / 2**30:.1f} GiB")
    write(ax, left - 0.25, 1.75, "Mistral 7B", ha="right")
    return figure


class Layout(NamedTuple):
    """Where the parts of `draw_kept` stand on a stage of this size, in its units."""

    width: float
    height: float
    left: float  # the first circle
    top: float
    pitch: float  # from one circle to the next
    bars: tuple[float, float]  # left end of the upper bar
    bar_width: float


STRIP = Layout(4, 6.5, left=1.9, top=4.5, pitch=0.58, bars=(0.25, 1.75), bar_width=3.4)
PAGE = Layout(16, 8, left=2.6, top=5.5, pitch=1.35, bars=(9.2, 4.4), bar_width=6.2)


@mpl.rc_context(STYLE)
def draw_kept(
    ax: Axes,
    tokens: Sequence[str],
    places: np.ndarray,
    *,
    layout: Layout,
    title: str,
    kept_bytes: float,
    unshared_bytes: float,
    most_bytes: float,
    least_s: float,
    bytes_per_s: float,
) -> None:
    """Draw query circles over the columns of squares that they read, and what these squares cost in bytes and time.

    Each token adds a row of squares. The bar is the bytes of all squares drawn, and a mark on it shows what they would
    be with a column for every head. Below it, the floor is the least time in which the next token can read them.

    Args:
        ax: a stage of the layout's size.
        tokens: the text so far; the newest asks, and its row is full.
        places: (H,) where the column that each query head reads stands, counted in heads from the left; heads that name
            the same place share a column.
        layout: `STRIP` for a panel of four, `PAGE` for a picture of its own.
        title: what this moment shows.
        kept_bytes: of all squares, in between while columns are on their way to each other.
        unshared_bytes: of as many tokens with a column for every head.
        most_bytes: for which the bars have room.
        least_s: in which memory delivers what is kept.
        bytes_per_s: at which memory is read.
    """
    places = np.round(np.asarray(places, float), 6)
    x0, top, pitch = layout.left, layout.top, layout.pitch
    circle, square = 0.7 * pitch, 0.36 * pitch
    first, asking = top - 1.25 * pitch, top + 0.35 * pitch + 0.95
    write(ax, 0.25, layout.height - 0.35, title, ha="left", fontsize=10)
    place = 0.08
    for number, token in enumerate(tokens):
        width = 0.19 + 0.135 * len(token)
        state = "now" if number == len(tokens) - 1 else "past"
        middle = place + width / 2
        draw_token(ax, middle, asking, token, width=width, height=0.45, state=state)
        place += width + 0.04
    for head, place in enumerate(places):
        at = x0 + pitch * head
        draw_link(ax, (middle, asking - 0.25), (at, top + circle / 2), state="past")
        draw_link(ax, (at, top - circle / 2), (x0 + pitch * place, first + square / 2), colour=KEY, width=2.5)
        draw_query(ax, at, top, f"q{head}", size=circle)
    for row, token in enumerate(tokens):
        y, state = first - 1.2 * square * row, "now" if row == len(tokens) - 1 else "past"
        for place in np.unique(places):
            draw_key(ax, x0 + pitch * place - square / 2, y, size=square, state=state)
            draw_value(ax, x0 + pitch * place + square / 2, y, size=square, state=state)
        write(ax, x0 - circle / 2 - 0.15, y, token, ha="right", colour=INK if state == "now" else QUIET)

    x, y = layout.bars
    scale = layout.bar_width / most_bytes
    text = f"{kept_bytes / 2**10:,.3g} KiB kept"
    draw_bytes(ax, x, y, kept_bytes, scale=scale, most=most_bytes, mark=unshared_bytes, text=text)
    least = f"at least {1e6 * least_s:,.2f} µs at {bytes_per_s / 1e9:g} GB/s"
    draw_bytes(ax, x, y - 1.05, 0, scale=scale, most=most_bytes, text=least)
    ax.plot([x + kept_bytes * scale] * 2, [y - 1.25, y - 0.85], color=FLOOR, linewidth=1.5)
    write(ax, x + layout.bar_width, y + 0.38, "mark: unshared", ha="right", colour=QUIET)


@mpl.rc_context(STYLE)
def draw_rows(group_size: int = 4, *, keys: int = 7) -> Figure:
    """Draw one group's product twice: its queries one by one, each reading all keys, and as the rows of one block."""
    figure, stages = new_stage(8, 4.3, columns=2)
    titles = (f"one by one: the keys are read {group_size} times", "as rows of one block: they are read once")
    for ax, title, together in zip(stages, titles, (False, True), strict=True):
        write(ax, 0.4, 3.95, title, ha="left", fontsize=10)
        heights = 0.5 + 0.55 * (np.arange(group_size)[::-1] + (0 if together else 0.45 * np.arange(group_size)[::-1]))
        for head, y in enumerate(heights):
            draw_query(ax, 0.75, y, f"q{head}", size=0.5)
            for key in range(keys):
                x = 2.3 + 0.42 * key
                if not together or head == 0:
                    draw_key(ax, x, y + (0.62 if together else 0), size=0.34, state="now")
                if together:
                    ax.add_patch(
                        Rectangle((x - 0.17, y - 0.17), 0.34, 0.34, facecolor=pale(QUERY, 0.8), edgecolor=pale(QUERY))
                    )
            draw_link(ax, (1.05, y), (2.05, y), width=1.5)
        if together:
            low, high = heights.min() - 0.33, heights.max() + 0.33
            ax.add_patch(Rectangle((0.42, low), 0.66, high - low, facecolor="none", edgecolor=QUERY, linewidth=1.5))
            write(ax, 5.4, heights.max() + 0.62, "the shared keys", ha="left", colour=KEY)
            write(ax, 5.4, heights.mean(), "a score for each\nquery and key", ha="left", colour=QUERY)
        else:
            write(ax, 5.4, heights.mean(), "the same keys,\nagain and again", ha="left", colour=KEY)
    return figure


@mpl.rc_context(STYLE)
def plot_head_groups(shared: np.ndarray, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Draw which query head reads which key and value head: circles above, a pair of squares below for each of these.

    Args:
        shared: (H,) whole numbers; query head h reads key and value head `shared[h]`, and each of 0 ... K - 1 is read.
            Floats that are whole will do.
    """
    shared = np.asarray(shared)
    if shared.ndim != 1 or not np.array_equal(np.unique(shared), np.arange(shared.max(initial=0) + 1)):
        raise ValueError(f"shared is {shared.tolist()}: expected (H,) numbers that use each of 0 ... K - 1")
    shared = shared.astype(int)
    ax = axes_or_new(ax, height_in=2.2)
    heads = np.arange(len(shared))
    places = np.bincount(shared, weights=heads) / np.bincount(shared)  # each in the middle of its group
    lines = [[(head, 1), (places[target], 0)] for head, target in enumerate(shared)]
    ax.add_collection(mpl.collections.LineCollection(lines, colors=KEY, linewidths=1.8, zorder=1))
    # All heads of a kind at once: one call per head would take most of a drawing's time.
    size = min(230, 4200 / len(shared))
    side = np.sqrt(min(160, 2600 / len(shared)))
    ax.scatter(heads, np.ones(len(heads)), s=size, color="white", edgecolor=QUERY, linewidth=2, zorder=2)
    for shift, colour in ((-0.65, KEY), (0.65, VALUE)):  # a white gap between them
        moved = mpl.transforms.offset_copy(ax.transData, ax.figure, shift * side, 0, units="points")
        ax.scatter(places, np.zeros(len(places)), s=side**2, marker="s", color=colour, transform=moved, zorder=2)
    if len(shared) <= MOST_NAMED:
        for head in heads:
            ax.text(head, 1, str(head), ha="center", va="center", fontsize=9, color=QUERY)
    ax.set_yticks([1, 0], [f"{len(heads)} query heads", f"{len(places)} KV head{'s' * (len(places) > 1)}"])
    ax.set_xticks([])
    ax.set_xlim(-0.7, len(shared) - 0.3)
    ax.set_ylim(-0.4, 1.4)
    hide_frame(ax)
    ax.set_title(title)
    return ax


@mpl.rc_context(STYLE)
def draw_clocks(angles: np.ndarray, *, tokens: Sequence[str], pairs: Sequence[int], steps: Sequence[str]) -> Figure:
    """Draw rotary positions as clocks: one row for each pair of values, whose hand turns from token to token.

    Args:
        angles: (pairs, tokens) in radians, counter-clockwise from the right, as far as each pair has turned.
        tokens: above the columns.
        pairs: the number of each pair.
        steps: how far each pair turns from one token to the next, in words.
    """
    angles = np.asarray(angles, float)
    if angles.shape != (len(pairs), len(tokens)) or len(steps) != len(pairs):
        raise ValueError(f"angles has shape {angles.shape}: expected ({len(pairs)}, {len(tokens)}), pairs by tokens")
    rows = len(pairs)
    figure, [ax] = new_stage(16, 1.35 + 1.5 * rows)
    pitch = 11.2 / len(tokens)
    for column, token in enumerate(tokens):
        x = 2.6 + pitch * column
        draw_token(ax, x, 1.5 * rows + 0.85, token, width=pitch - 0.06)
        for row in range(rows):
            y, angle = 1.5 * (rows - row) - 0.6, angles[row, column]
            draw_query(ax, x, y, size=1.15, state="past")
            tip = (x + 0.5 * np.cos(angle), y + 0.5 * np.sin(angle))
            ax.plot([x, tip[0]], [y, tip[1]], color=QUERY, linewidth=2.5, solid_capstyle="round")
            ax.plot([x, x + 0.5], [y, y], color=IDLE_EDGE, linewidth=1, zorder=0.5)
    for row, (pair, step) in enumerate(zip(pairs, steps, strict=True)):
        y = 1.5 * (rows - row) - 0.6
        write(ax, 1.6, y, f"pair {pair}", ha="right")
        write(ax, 13.4, y, step, ha="left", colour=QUIET)
    return figure
