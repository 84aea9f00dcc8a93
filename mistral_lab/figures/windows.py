"""Pictures of the sliding window: who sees whom, how far a stack sees, what a ring holds, what it costs and saves."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle, Wedge

from .arrays import as_amount_intervals, as_amounts, as_positive
from .canvas import axes_or_new
from .style import (
    COLOURS,
    FADED,
    INK,
    MEASURED,
    PREDICTED,
    STYLE,
    decade_axis,
    doubling_axis,
    hide_frame,
    legend_above,
    readable_on,
    shade,
)

VISIBLE, MARKED = COLOURS[4], COLOURS[2]  # a key that may be seen; the cell or row to look at
WAY_COLOURS = (MEASURED, COLOURS[5], COLOURS[8], COLOURS[9])
SERIES_COLOURS = (INK, COLOURS[2], COLOURS[4], COLOURS[8])  # for lines that do not compare measured with predicted
MARKERS = "osv^"


@mpl.rc_context(STYLE)
def plot_mask(mask: np.ndarray, *, row: int, title: str, ax: Axes | None = None) -> Axes:
    """Draw who may attend to whom, a cell for each query and key, with a frame around one query's row.

    Args:
        mask: (T, S) bool, True where query i may attend to key j.
        row: the query to frame.
        title: which mask.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"mask has shape {mask.shape} in {mask.dtype}: expected bool (T, S)")
    queries, keys = mask.shape
    if not 0 <= row < queries:
        raise ValueError(f"row is {row}: expected a query from 0 to {queries - 1}")
    ax = axes_or_new(ax, height_in=4.2)
    colours = np.where(mask[..., None], mpl.colors.to_rgb(VISIBLE), mpl.colors.to_rgb(FADED))
    ax.pcolormesh(np.arange(keys + 1) - 0.5, np.arange(queries + 1) - 0.5, colours, edgecolor="white", linewidth=1)
    ax.add_patch(Rectangle((-0.5, row - 0.5), keys, 1, fill=False, edgecolor=MARKED, linewidth=2.5))
    ax.invert_yaxis()
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    hide_frame(ax)
    ax.set_title(title)
    return ax


@mpl.rc_context(STYLE)
def plot_influence(
    influence: np.ndarray, *, reaches: np.ndarray, names: Sequence[str], unit: str, ax: Axes | None = None
) -> Axes:
    """Draw how much each earlier token moves an output, a line per depth, on a logarithmic axis.

    Args:
        influence: (depths, T); column d belongs to the token d positions back. What is exactly 0 is not drawn.
        reaches: (depths,) how many tokens each depth can see; a dashed line stands at the furthest of them.
        names: of the depths.
        unit: the label of the vertical axis.
    """
    influence, reaches = as_amounts(influence, np.shape(influence)), np.asarray(reaches)
    if influence.ndim != 2 or not len(influence) == len(reaches) == len(names):
        raise ValueError(
            f"influence has shape {influence.shape}, with {len(reaches)} reaches and {len(names)} names: "
            "expected a row, a reach and a name for each depth"
        )
    ax = axes_or_new(ax, height_in=2.8)
    colours = mpl.colormaps["viridis"](np.linspace(0.85, 0, len(names)))  # the last one dark: it is the whole model
    for line, reach, name, colour in zip(influence, reaches, names, colours, strict=True):
        # Not antialiased: the soft edges of ragged lines would be most of the picture's bytes.
        ax.plot(np.where(line > 0, line, np.nan), color=colour, linewidth=1.2, label=name, antialiased=False)
        ax.axvline(reach - 1, color=colour, linewidth=1.4, linestyle="--")
    ax.set_yscale("log")
    ax.set_xlim(0, influence.shape[1] - 1)
    ax.set_xlabel("tokens back from the last one (dashed: the furthest that can be seen)")
    ax.set_ylabel(f"{unit}\n(logarithmic axis)")
    ax.grid(axis="y")
    legend_above(ax, columns=len(names))
    return ax


@mpl.rc_context(STYLE)
def plot_slots(positions: np.ndarray, *, written: np.ndarray, window: int, ax: Axes | None = None) -> Axes:
    """Draw what every slot of a ring holds, a row per step, with a frame around the slots that the step wrote.

    Args:
        positions: (steps, slots) whole numbers, the position that a slot holds, -1 where it is empty.
        written: (steps, slots) bool.
        window: slots that are drawn as one ring, for the axis.
    """
    positions, written = np.asarray(positions), np.asarray(written)
    if positions.ndim != 2 or positions.shape != written.shape or written.dtype != bool:
        raise ValueError(
            f"positions has shape {positions.shape}, written {written.shape} in {written.dtype}: "
            "expected the same (steps, slots), written as bool"
        )
    steps, slots = positions.shape
    ax = axes_or_new(ax, height_in=0.9 + 0.2 * steps)
    newest = max(1, positions.max())
    for step, slot in np.ndindex(steps, slots):
        held = positions[step, slot]
        colour = _position_colour(held, newest)
        ax.add_patch(Rectangle((slot - 0.5, step - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
        if held >= 0:
            ax.text(slot, step, str(held), ha="center", va="center", fontsize=9, color=readable_on(colour))
        if written[step, slot]:
            ax.add_patch(
                Rectangle((slot - 0.45, step - 0.45), 0.9, 0.9, fill=False, edgecolor=MARKED, linewidth=2.5, zorder=3)
            )
    ax.set_xlim(-0.5, slots - 0.5)
    ax.set_ylim(steps - 0.5, -0.5)
    ax.set_xticks(range(slots), [str(slot % window) for slot in range(slots)])
    ax.set_yticks(range(steps))
    ax.set_xlabel("slot (grey: empty; framed: written in this step; the number is the position it holds)")
    ax.set_ylabel("token")
    hide_frame(ax)
    return ax


@mpl.rc_context(STYLE)
def plot_ring(held: np.ndarray, *, written: int, longest: int, ax: Axes) -> Axes:
    """Draw a ring of slots, clockwise from the top, each with the position it holds and a frame around one.

    Args:
        held: (W,) whole numbers, the position in each slot, -1 where it is empty.
        written: the slot to frame.
        longest: the position with the last colour.
    """
    held = np.asarray(held)
    if held.ndim != 1 or not 0 <= written < len(held):
        raise ValueError(f"held has shape {held.shape} and written is {written}: expected (W,), and one of its slots")
    turn = 360 / len(held)
    for slot, position in enumerate(held):
        colour = _position_colour(position, longest)
        start = 90 - (slot + 1) * turn
        ax.add_patch(Wedge((0, 0), 1, start, start + turn, width=0.45, facecolor=colour, edgecolor="white"))
        angle = np.radians(start + turn / 2)
        if position >= 0:
            place = 0.775 * np.cos(angle), 0.775 * np.sin(angle)
            ax.text(*place, str(position), ha="center", va="center", color=readable_on(colour))
        side = "center" if abs(np.cos(angle)) < 0.3 else "left" if np.cos(angle) > 0 else "right"
        place = 1.09 * np.cos(angle), 1.13 * np.sin(angle)
        ax.text(*place, f"slot {slot}", ha=side, va="center", fontsize=9)
    start = 90 - (written + 1) * turn
    ax.add_patch(Wedge((0, 0), 1, start, start + turn, width=0.45, fill=False, edgecolor=MARKED, linewidth=2.5))
    ax.set_aspect("equal")
    ax.set_xlim(-1.6, 1.6)
    ax.set_ylim(-1.3, 1.3)
    ax.axis("off")
    return ax


@mpl.rc_context(STYLE)
def plot_positions(visible: np.ndarray, *, newest: int, title: str, per_row: int = 8, ax: Axes) -> Axes:
    """Draw all positions of a text as cells: in colour if they can be seen, empty if they are still to come, else grey.

    Args:
        visible: (T,) bool.
        newest: the position that is framed; what comes after it is empty.
        title: what the colours are.
        per_row: cells in a row.
    """
    visible = np.asarray(visible)
    if visible.ndim != 1 or visible.dtype != bool or not 0 <= newest < len(visible):
        raise ValueError(
            f"visible has shape {visible.shape} in {visible.dtype}, newest is {newest}: expected bool (T,), one of T"
        )
    for position, seen in enumerate(visible):
        row, column = divmod(position, per_row)
        colour = "white" if position > newest else _position_colour(position if seen else -1, len(visible) - 1)
        edge = FADED if position > newest else "white"
        ax.add_patch(Rectangle((column - 0.46, row - 0.4), 0.92, 0.8, facecolor=colour, edgecolor=edge))
        ink = "#8c8c8c" if position > newest else readable_on(colour)
        ax.text(column, row, str(position), ha="center", va="center", color=ink)
    row, column = divmod(newest, per_row)
    ax.add_patch(Rectangle((column - 0.46, row - 0.4), 0.92, 0.8, fill=False, edgecolor=MARKED, linewidth=2.5))
    ax.set_xlim(-0.6, per_row - 0.4)
    ax.set_ylim((len(visible) - 1) // per_row + 0.6, -0.6)
    ax.axis("off")
    ax.set_title(title)
    return ax


@mpl.rc_context(STYLE)
def plot_growth(
    sizes: Sequence[int],
    measured: np.ndarray,
    predicted: np.ndarray,
    *,
    names: Sequence[str],
    x_label: str,
    unit: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw how costs grow with a size, measured (solid) and predicted (dashed, hollow), on two logarithmic axes.

    Args:
        sizes: (n,) along the horizontal axis.
        measured: (ways, n) in `unit`; NaN where nothing was measured.
        predicted: (ways, n) in `unit`; NaN where nothing was predicted.
        names: of the ways, at most four; a way has one marker in both.
        x_label, unit: the labels of the axes.
    """
    shape = (len(names), len(sizes))
    measured = as_positive("measured", measured, shape, gaps=True)
    predicted = as_positive("predicted", predicted, shape, gaps=True)
    ax = axes_or_new(ax, height_in=3.4)
    for way, (name, marker) in enumerate(zip(names, MARKERS[: len(names)], strict=True)):
        ax.plot(sizes, measured[way], f"{marker}-", color=WAY_COLOURS[way], markeredgecolor=INK, label=name, zorder=3)
        ax.plot(sizes, predicted[way], f"{marker}--", color=PREDICTED, markerfacecolor="white", markersize=8, zorder=2)
    ax.plot([], [], "--", color=PREDICTED, label="predicted (hollow)")
    doubling_axis(ax, sizes)
    decade_axis(ax.yaxis)
    ax.set_xlabel(f"{x_label} (logarithmic axis)")
    ax.set_ylabel(f"{unit} (logarithmic axis)")
    ax.grid()
    legend_above(ax, columns=min(len(names) + 1, 3))
    return ax


@mpl.rc_context(STYLE)
def plot_by_range(
    means: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    *,
    names: Sequence[str],
    ranges: Sequence[str],
    x_label: str,
    unit: str,
    divider: tuple[float, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw means with their intervals, a line per series, at places that have names.

    Args:
        means, lows, highs: (series, places), in `unit`; the axis starts at 0.
        names: of the series, at most four.
        ranges: names of the places, from the left.
        x_label, unit: the labels of the axes.
        divider: a place, such as 1.5 between the second and the third, and what changes there.
    """
    bounds = as_amount_intervals(lows, means, highs, (len(names), len(ranges)))
    ax = axes_or_new(ax, height_in=2.8)
    places = np.arange(len(ranges))
    looks = zip(names, MARKERS[: len(names)], SERIES_COLOURS[: len(names)], strict=True)
    for series, (name, marker, colour) in enumerate(looks):
        shift = 0.06 * (series - (len(names) - 1) / 2)  # or intervals at one place would cover each other
        low, mean, high = bounds[:, series]
        look = {"fmt": f"{marker}-", "color": colour, "linewidth": 1.2, "capsize": 3, "label": name}
        ax.errorbar(places + shift, mean, yerr=[mean - low, high - mean], **look)
    ax.set_xticks(places, ranges)
    ax.set_ylim(-0.03 * bounds.max(), 1.08 * bounds.max())  # room for a marker at 0
    ax.set_xlabel(x_label)
    ax.set_ylabel(unit)
    ax.grid(axis="y")
    if divider:
        ax.axvline(divider[0], color=INK, linewidth=1, linestyle=":")
        ax.annotate(
            divider[1],
            (divider[0], 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=9,
        )
    legend_above(ax, columns=min(len(names), 3))
    return ax


def _position_colour(position: int, longest: int) -> str:
    """The colour of a position, `longest` having the last one; grey where there is none, -1."""
    return FADED if position < 0 else shade(Normalize(0, longest)(position))
