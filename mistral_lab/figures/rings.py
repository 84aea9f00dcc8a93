"""The ring that a windowed layer keeps its keys in: drawn as a ring, written twice, and read in the wrong order."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle, Wedge

from .language import IDLE, IDLE_EDGE, KEY, QUERY, QUIET, WRONG, as_stage, draw_token, pale, write
from .style import INK, STYLE


@mpl.rc_context(STYLE)
def plot_ring(words: Sequence[str], held: np.ndarray, *, now: int, brief: bool = False, ax: Axes) -> Axes:
    """Draw a ring of slots, slot 0 at the top and on clockwise, with the token that each holds; the last one framed.

    Args:
        words: the whole text, (T,).
        held: (W,) positions, -1 where a slot is empty.
        now: the token just written.
        brief: positions without words, for a small picture.
        ax: a stage of 8 by 8 units.
    """
    held = np.asarray(held)
    if held.ndim != 1 or now not in held or held.max() >= len(words):
        raise ValueError(
            f"held is {held.tolist()} and now {now}: expected positions below {len(words)}, now among them"
        )
    as_stage(ax, 8, 8)
    turn = 360 / len(held)
    for slot, position in enumerate(held):
        start = 90 - (slot + 1) * turn
        angle = np.radians(start + turn / 2)
        newest = position == now
        face = "white" if position < 0 else KEY if newest else pale(KEY)
        edge = QUERY if newest else "white" if position >= 0 else IDLE_EDGE
        ax.add_patch(
            Wedge(
                (4, 4), 2.9, start + 0.6, start + turn - 0.6, width=1.45, facecolor=face, edgecolor=edge,
                linewidth=2.5 if newest else 1, zorder=2 + newest,
            )
        )  # fmt: skip
        place = 4 + 2.17 * np.cos(angle), 4 + 2.17 * np.sin(angle)
        if position >= 0:
            text = str(position) if brief else f"{words[position]}\n{position}"
            ax.text(*place, text, ha="center", va="center", fontsize=9, color="black", zorder=5, parse_math=False)
        outside = 4 + 3.35 * np.cos(angle), 4 + 3.35 * np.sin(angle)
        write(ax, *outside, str(slot) if brief else f"slot {slot}", colour=QUIET)
    write(ax, 4, 4, f"{now} mod {len(held)}\n= {now % len(held)}", fontsize=9 if brief else 12)
    return ax


@mpl.rc_context(STYLE)
def plot_ring_text(words: Sequence[str], *, now: int, window: int, ax: Axes) -> Axes:
    """Draw the text beside its ring: what the ring still holds orange, the newest framed, what was overwritten grey.

    Args:
        words: the whole text.
        now: the newest token; later ones are not written yet.
        window: W.
        ax: a stage of 8 by 8 units.
    """
    as_stage(ax, 8, 8)
    per_row = 4
    for place, word in enumerate(words[: now + 1]):
        row, column = divmod(place, per_row)
        x, y = 1.05 + 1.9 * column, 7.0 - 0.86 * row
        kept = place > now - window
        colour = QUERY if place == now else KEY
        draw_token(
            ax, x, y, word if kept else "", width=1.7, height=0.6, state="now" if kept else "idle", colour=colour
        )
        if not kept:
            write(ax, x, y, word, colour=QUIET)
            ax.plot([x - 0.6, x + 0.6], [y, y], color=QUIET, linewidth=1)
    return ax


@mpl.rc_context(STYLE)
def plot_double_write(moments: Sequence[tuple[int, np.ndarray]], *, window: int, ax: Axes) -> Axes:
    """Draw 2W slots at several moments: each token is written twice, and the last W stand side by side, in order.

    Args:
        moments: the newest position, and what the 2W slots hold (2W,), -1 where one is empty.
        window: W.
        ax: a stage of 16 by 1.25 units for each moment, and 1 more.
    """
    as_stage(ax, 16, 1.25 * len(moments) + 1)
    left, size = 3.2, 1.15
    for slot in range(2 * window):
        write(ax, left + size * (slot + 0.5), 0.35, str(slot), colour=QUIET)
    write(ax, left - 0.25, 0.35, "slot", colour=QUIET, ha="right")
    for row, (now, held) in enumerate(moments):
        y = 1.25 * (len(moments) - row) - 0.25
        held = np.asarray(held)
        if held.shape != (2 * window,):
            raise ValueError(f"held has shape {held.shape}: expected ({2 * window},), two slots for each key")
        end = window + now % window
        begin = end - min(now, window - 1)
        for slot, position in enumerate(held):
            face = "white" if position < 0 else pale(KEY, 0.45) if begin <= slot <= end else IDLE
            corner = (left + size * slot + 0.05, y - 0.32)
            ax.add_patch(Rectangle(corner, size - 0.1, 0.64, facecolor=face, edgecolor=IDLE_EDGE))
            text = str(position) if position >= 0 else ""
            write(ax, left + size * (slot + 0.5), y, text, weight="bold" if position == now else "normal", fontsize=10)
            if position == now:
                ax.add_patch(Rectangle(corner, size - 0.1, 0.64, fill=False, edgecolor=QUERY, linewidth=2.2))
        span = (left + size * begin, size * (end - begin + 1))
        ax.add_patch(
            Rectangle((span[0] - 0.03, y - 0.42), span[1] + 0.06, 0.84, fill=False, edgecolor=INK, linewidth=1.4)
        )
        write(ax, left - 0.25, y, f"token {now}", ha="right")
    ax.plot([left + size * window] * 2, [0.15, 1.25 * len(moments) + 0.5], color=QUIET, linewidth=1, linestyle=":")
    right = left + 2 * window * size
    if right < 14.5:
        write(ax, right + 0.2, 1.25 * len(moments) - 0.25, "black frame:\nread as one piece", ha="left", va="center")
        write(ax, right + 0.2, 1.25 * len(moments) - 1.5, "blue frames:\njust written", colour=QUERY, ha="left")
    return ax


@mpl.rc_context(STYLE)
def plot_padded_ring(held: np.ndarray, *, padding: int, ax: Axes) -> Axes:
    """Draw why slot order goes wrong where a prompt was padded: the mask counts positions, the keys stand in slots.

    Args:
        held: (W,) the position in each slot of a full ring.
        padding: positions below it are fillers, which nobody may see.
        ax: a stage of 16 by 5.6 units.
    """
    held = np.asarray(held)
    order = np.sort(held)
    as_stage(ax, 16, 5.6)
    left, size = 4.6, 1.3
    rows = (("keys by position", order, 4.7), ("the mask", None, 3.0), ("keys by slot", held, 1.3))
    for label, row, y in rows:
        write(ax, left - 0.3, y, label, ha="right", fontsize=10)
        for place in range(len(held)):
            x = left + size * (place + 0.5)
            if row is None:
                hidden = order[place] < padding
                write(ax, x, y, "hide" if hidden else "show", colour=QUIET if hidden else INK, weight="bold")
                continue
            filler = row[place] < padding
            right = (order[place] < padding) == filler
            face = IDLE if filler else pale(KEY, 0.3)
            box = (x - 0.55, y - 0.4)
            ax.add_patch(Rectangle(box, 1.1, 0.8, facecolor=face, edgecolor=IDLE_EDGE, hatch="///" if filler else None))
            ax.text(x, y, str(row[place]), ha="center", va="center", fontsize=11, bbox=_paper(face))
            if not right:
                ax.add_patch(Rectangle(box, 1.1, 0.8, fill=False, edgecolor=WRONG, linewidth=2.6))
                write(ax, x, y - 0.68, "shown" if filler else "hidden", colour=WRONG)
    for place in range(len(held)):
        x = left + size * (place + 0.5)
        for start, stop in ((3.3, 4.2), (2.7, 1.8)):
            arrow = FancyArrowPatch((x, start), (x, stop), arrowstyle="-|>", mutation_scale=8, color=IDLE_EDGE)
            ax.add_patch(arrow)
    return ax


def _paper(face: str) -> dict:
    return {"facecolor": face, "edgecolor": "none", "pad": 1.2}
