"""Pictures of the sliding window: who sees whom, how far a stack sees, what a ring holds, what it costs and saves."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator

from .style import COLOURS, FADED, INK, MEASURED, PREDICTED, STYLE, doubling_axis, legend_above, new_figure, readable_on

VISIBLE, MARKED = COLOURS[4], COLOURS[2]  # a key that may be seen; the cell or row to look at
WAYS = (MEASURED, COLOURS[5], COLOURS[8], COLOURS[9])
SERIES = (INK, COLOURS[2], COLOURS[4], COLOURS[8])  # lines that are neither measured against predicted
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
    ax = new_figure(height_in=4.2)[1][0, 0] if ax is None else ax
    colours = np.where(mask[..., None], mpl.colors.to_rgb(VISIBLE), mpl.colors.to_rgb(FADED))
    ax.pcolormesh(np.arange(keys + 1) - 0.5, np.arange(queries + 1) - 0.5, colours, edgecolor="white", linewidth=1)
    ax.add_patch(Rectangle((-0.5, row - 0.5), keys, 1, fill=False, edgecolor=MARKED, linewidth=2.5))
    ax.invert_yaxis()
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title)
    return ax


@mpl.rc_context(STYLE)
def plot_influence(
    influence: np.ndarray, *, reaches: np.ndarray, names: Sequence[str], unit: str, ax: Axes | None = None
) -> Axes:
    """Draw how much each earlier token moves an output, a line a depth, on a logarithmic axis.

    Args:
        influence: (depths, T); column d belongs to the token d positions back. What is exactly 0 is not drawn.
        reaches: (depths,) tokens that can be seen from each depth: a dashed line stands at the furthest of them.
        names: of the depths.
        unit: the label of the vertical axis.
    """
    influence, reaches = np.asarray(influence, float), np.asarray(reaches)
    if influence.ndim != 2 or not len(influence) == len(reaches) == len(names):
        raise ValueError(
            f"influence has shape {influence.shape}, with {len(reaches)} reaches and {len(names)} names: "
            "expected a row, a reach and a name for each depth"
        )
    if not np.isfinite(influence).all() or (influence < 0).any():
        raise ValueError("influence is negative, infinite or NaN somewhere: expected amounts of 0 or more")
    ax = new_figure(height_in=2.8)[1][0, 0] if ax is None else ax
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
    """Draw what every slot of a ring holds, a row a step, with a frame around the slots that the step wrote.

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
    ax = new_figure(height_in=0.9 + 0.2 * steps)[1][0, 0] if ax is None else ax
    scale = Normalize(0, max(1, positions.max()))
    for step, slot in np.ndindex(steps, slots):
        held = positions[step, slot]
        colour = FADED if held < 0 else mpl.colors.to_hex(mpl.colormaps["viridis"](scale(held)))
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
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
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
        predicted: (ways, n), the same.
        names: of the ways, at most four; a way has one marker in both.
        x_label, unit: the labels of the axes.
    """
    measured, predicted = np.asarray(measured, float), np.asarray(predicted, float)
    shape = (len(names), len(sizes))
    for name, amounts in (("measured", measured), ("predicted", predicted)):
        if amounts.shape != shape:
            raise ValueError(f"{name} has shape {amounts.shape}: expected {shape}, ways by sizes")
        if (amounts <= 0).any() or np.isinf(amounts).any():
            raise ValueError(f"{name} is not above 0 everywhere: a logarithmic axis has no other place")
    ax = new_figure(height_in=3.4)[1][0, 0] if ax is None else ax
    for way, (name, marker) in enumerate(zip(names, MARKERS[: len(names)], strict=True)):
        ax.plot(sizes, measured[way], f"{marker}-", color=WAYS[way], markeredgecolor=INK, label=name, zorder=3)
        ax.plot(sizes, predicted[way], f"{marker}--", color=PREDICTED, markerfacecolor="white", markersize=8, zorder=2)
    ax.plot([], [], "--", color=PREDICTED, label="predicted (hollow)")
    doubling_axis(ax, sizes)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter("{x:,g}")
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
    """Draw means with their intervals, a line a series, at places that have names.

    Args:
        means, lows, highs: (series, places), in `unit`; the axis starts at 0.
        names: of the series, at most four.
        ranges: names of the places, from the left.
        x_label, unit: the labels of the axes.
        divider: a place, such as 1.5 between the second and the third, and what changes there.
    """
    means, lows, highs = (np.asarray(values, float) for values in (means, lows, highs))
    shape = (len(names), len(ranges))
    for name, values in (("means", means), ("lows", lows), ("highs", highs)):
        if values.shape != shape:
            raise ValueError(f"{name} has shape {values.shape}: expected {shape}, series by places")
    if not ((lows >= 0) & (lows <= means) & (means <= highs) & np.isfinite(highs)).all():
        raise ValueError("an interval is not finite or does not hold its mean: expected 0 <= lows <= means <= highs")
    ax = new_figure(height_in=2.8)[1][0, 0] if ax is None else ax
    places = np.arange(len(ranges))
    looks = zip(names, MARKERS[: len(names)], SERIES[: len(names)], strict=True)
    for series, (name, marker, colour) in enumerate(looks):
        shift = 0.06 * (series - (len(names) - 1) / 2)  # or intervals at one place would cover each other
        ax.errorbar(
            places + shift,
            means[series],
            yerr=[means[series] - lows[series], highs[series] - means[series]],
            fmt=f"{marker}-",
            color=colour,
            linewidth=1.2,
            capsize=3,
            label=name,
        )
    ax.set_xticks(places, ranges)
    ax.set_ylim(-0.03 * highs.max(), 1.08 * highs.max())  # room for a marker at 0
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
