"""Pictures of a whole decoder: its block, what each sub-layer adds to the stream, where the time of a token goes."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import MaxNLocator

from .arrays import as_amount_intervals, as_amounts, as_intervals, as_positive
from .canvas import axes_or_new
from .language import ATTENTION, QUIET, WEIGHTS, pale
from .marks import draw_interval_series, draw_intervals, label_rows, some_labels, write_beside
from .style import (
    EDGE,
    FADED,
    INK,
    MEASURED,
    PREDICTED,
    SERIES,
    STYLE,
    decade_axis,
    doubling_axis,
    legend_above,
    readable_on,
)

SUBLAYER_COLOURS = (ATTENTION, WEIGHTS)  # attention, feed-forward
OTHER_WEIGHTS = pale(WEIGHTS, 0.6)  # of the embedding and the output layer
WAY_MARKS = "osv^"
MOST_MARKS = 12  # along a line; one with more places has none of its own
# Inches on the page, so that a text of 9 points fits into its box.
BOX, LINE, GAP, ARM = 1.22, 0.2, 0.16, 1.9


@mpl.rc_context(STYLE)
def plot_block(
    sublayers: Sequence[Sequence[str]],
    *,
    before: Sequence[str],
    after: Sequence[str],
    repeated: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw a decoder: the stream as a line, boxes on it at both ends, and what reads from it and adds to it below.

    Args:
        sublayers: of one layer, at most two; each is (norm, network), the texts of its boxes.
        before, after: texts of the boxes on the stream, before the first layer and behind the last; a norm is grey.
        repeated: what stands at the frame around one layer.
    """
    if not 1 <= len(sublayers) <= len(SUBLAYER_COLOURS) or any(len(texts) != 2 for texts in sublayers):
        raise ValueError(
            f"sublayers has {[len(texts) for texts in sublayers]} texts: expected (norm, network), once or twice"
        )
    ax = axes_or_new(ax, height_in=3.1)
    layer_start = len(before) * (BOX + GAP) + GAP
    layer_end = layer_start + len(sublayers) * ARM
    end = layer_end + len(after) * (BOX + GAP) + 2 * GAP
    ax.plot([-2 * GAP, end], [0, 0], color=QUIET, linewidth=5, solid_capstyle="butt", zorder=1)
    ax.plot(end, 0, ">", color=QUIET, markersize=12, clip_on=False)
    for place, text in enumerate(before):
        _box(ax, place * (BOX + GAP) + BOX / 2, 0, text, OTHER_WEIGHTS)
    for place, text in enumerate(after):
        face = FADED if text.startswith("norm") else OTHER_WEIGHTS
        _box(ax, layer_end + GAP + place * (BOX + GAP) + BOX / 2 + GAP, 0, text, face)
    for number, (norm, network) in enumerate(sublayers):
        down = layer_start + number * ARM + BOX / 2 + GAP / 2
        up = down + ARM - BOX / 2 - 2 * GAP
        for start, stop in (((down, 0), (down, -1.6)), ((down, -1.6), (up, -1.6)), ((up, -1.6), (up, -0.13))):
            ax.plot(*zip(start, stop, strict=True), color=INK, linewidth=1.4, zorder=1)
        ax.plot(down, -0.48, "v", color=INK, markersize=6)
        ax.plot(up, -0.24, "^", color=INK, markersize=6)
        _box(ax, down, -0.85, norm, FADED)
        _box(ax, down, -1.6, network, SUBLAYER_COLOURS[number])
        ax.scatter(up, 0, s=170, color="white", edgecolor=INK, zorder=3)
        ax.plot(up, 0, "+", color=INK, markersize=9, zorder=4)
    frame = Rectangle(
        (layer_start, -2.02), layer_end - layer_start, 2.3, fill=False, edgecolor=EDGE, linestyle="--"
    )
    ax.add_patch(frame)
    ax.text((layer_start + layer_end) / 2, 0.36, repeated, ha="center", va="bottom", fontsize=9.5)
    ax.set_xlim(-2 * GAP, end + GAP)
    ax.set_ylim(-2.08, 0.66)
    ax.set_axis_off()
    return ax


@mpl.rc_context(STYLE)
def plot_stream(
    lows: np.ndarray,
    medians: np.ndarray,
    highs: np.ndarray,
    predicted: np.ndarray,
    *,
    places: Sequence[str],
    unit: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw how long the stream's vectors are along the model, measured with a spread and predicted, logarithmically.

    Args:
        lows, medians, highs: (places,) in `unit`, over the tokens; a bar spans low to high.
        predicted: (places,), in `unit`.
        places: where in the model, from the left.
        unit: the label of the axis.
    """
    bounds = _spreads(lows, medians, highs, (len(places),))
    predicted = as_positive("predicted", predicted, (len(places),))
    ax = axes_or_new(ax, height_in=3.2)
    rows = np.arange(len(places))
    hollow = {"markerfacecolor": "white", "markeredgecolor": PREDICTED, "linestyle": "none"}
    ax.plot(rows, predicted, "o", markersize=10, label="predicted (hollow)", **hollow)
    draw_intervals(ax, rows, bounds, look="o-", colour=MEASURED, label="measured")
    named = some_labels(len(places))
    ax.set_xticks(rows[named], places[named], rotation=60, ha="right", rotation_mode="anchor")
    ax.set_ylabel(f"{unit}\n(logarithmic axis)")
    decade_axis(ax.yaxis)
    ax.grid(axis="y")
    legend_above(ax, columns=2)
    return ax


@mpl.rc_context(STYLE)
def plot_added(
    lows: np.ndarray,
    medians: np.ndarray,
    highs: np.ndarray,
    *,
    names: Sequence[str],
    unit: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw what each sub-layer adds, layer by layer, with a spread, on a logarithmic axis; a line stands at 1.

    Args:
        lows, medians, highs: (sub-layers, layers) in `unit`, over the tokens; a bar spans low to high.
        names: of the sub-layers, attention first.
        unit: the label of the axis, such as a ratio.
    """
    bounds = _spreads(lows, medians, highs, (len(names), np.shape(medians)[-1] if np.ndim(medians) else 0))
    ax = axes_or_new(ax, height_in=3.2)
    layers = np.arange(bounds.shape[-1])
    ax.axhline(1, color=INK, linewidth=1, linestyle=":")
    draw_interval_series(ax, layers, bounds, names=names, looks="os", colours=SUBLAYER_COLOURS, gap=0.12)
    ax.set_xticks(layers)
    ax.set_xlim(-0.5, len(layers) - 0.5)
    ax.set_xlabel("layer")
    ax.set_ylabel(f"{unit}\n(logarithmic axis)")
    decade_axis(ax.yaxis)
    ax.grid(axis="y")
    legend_above(ax, columns=len(names))
    return ax


@mpl.rc_context(STYLE)
def plot_part_times(
    lows_s: np.ndarray,
    medians_s: np.ndarray,
    highs_s: np.ndarray,
    predicted_s: np.ndarray,
    *,
    parts: Sequence[str],
    title: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw the time of each part of one token, with its share of all, beside the time to read the part's bytes.

    Args:
        lows_s, medians_s, highs_s: (parts,) seconds over the tokens; a bar is as long as the median.
        predicted_s: (parts,) seconds, 0 where nothing is read.
        parts: names, the first on top.
        title: which model.
    """
    lows_s, medians_s, highs_s = as_amount_intervals(lows_s, medians_s, highs_s, (len(parts),), of="median")
    predicted_s = as_amounts(predicted_s, (len(parts),))
    ax = axes_or_new(ax, height_in=1.2 + 0.4 * len(parts))
    rows = np.arange(len(parts))
    spread = [(medians_s - lows_s) * 1e3, (highs_s - medians_s) * 1e3]
    ax.barh(rows, medians_s * 1e3, height=0.6, color=MEASURED, xerr=spread, ecolor=INK, capsize=3, label="measured")
    ax.scatter(
        predicted_s * 1e3,
        rows,
        s=45,
        color="white",
        edgecolor=PREDICTED,
        linewidth=1.5,
        zorder=3,
        clip_on=False,  # at 0 half of it lies beyond the axis
        label="predicted from bytes",
    )
    for row, share in zip(rows, medians_s / medians_s.sum(), strict=True):
        end = max(highs_s[row], predicted_s[row]) * 1e3
        write_beside(ax, "<1%" if share < 0.005 else f"{share:.0%}", (end, row), shift=(11, 0), ha="left")
    label_rows(ax, parts)
    ax.set_xlim(0, 1.25 * max(highs_s.max(), predicted_s.max()) * 1e3)  # room for the last share
    ax.xaxis.set_major_locator(MaxNLocator(4))  # or the numbers of two panels side by side would touch
    ax.set_xlabel("milliseconds per token")
    ax.set_title(title, pad=26)  # the legend stands between
    ax.grid(axis="x")
    ax.tick_params(axis="y", pad=7)  # beside a prediction of 0
    legend_above(ax, columns=2)
    return ax


@mpl.rc_context(STYLE)
def plot_beside(
    places: Sequence[float],
    measured: np.ndarray,
    expected: np.ndarray,
    *,
    names: Sequence[str],
    floor: bool,
    x_label: str,
    unit: str,
    doubling: bool = False,
    runs: Sequence[Sequence[Sequence[float]]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw what was measured along an axis (solid) beside what it takes at least (a line), or was predicted (hollow).

    Args:
        places: (n,) along the horizontal axis.
        measured: (ways, n) in `unit`, 0 or more; NaN where nothing was measured.
        expected: (ways, n) in `unit`, 0 or more; NaN where nothing was expected.
        names: of the ways, at most four.
        floor: whether nothing can lie below `expected`; it is then called "at least".
        x_label, unit: the labels of the axes.
        doubling: make the horizontal axis logarithmic, with a number at each place.
        runs: (ways, n, some) all runs behind `measured`, drawn as a thin bar from the smallest to the largest.
    """
    measured, expected = (np.asarray(values, float) for values in (measured, expected))
    shape = (len(names), len(places))
    for name, values in (("measured", measured), ("expected", expected)):
        if values.shape != shape or np.isinf(values).any() or (values < 0).any():
            raise ValueError(f"{name} has shape {values.shape}: expected {shape}, finite amounts of 0 or more, or NaN")
    lengths = [len(way) for way in runs or ()]
    if runs is not None and lengths != [len(places)] * len(names):
        raise ValueError(f"runs are of {lengths} places: expected {[len(places)] * len(names)}")
    ends = np.array([[[min(some), max(some)] for some in way] for way in runs or ()])  # (ways, n, 2)
    ax = axes_or_new(ax, height_in=3.2)
    few = len(places) <= MOST_MARKS
    looks = zip(names, WAY_MARKS[: len(names)], SERIES[: len(names)], strict=True)
    for way, (name, marker, colour) in enumerate(looks):
        look = {"color": colour, "marker": marker if few else "", "markeredgecolor": INK}
        ax.plot(places, measured[way], "-", label=name, zorder=3, **look)
        if runs:
            ax.vlines(places, *ends[way].T, color=colour, linewidth=1)
        if floor:
            ax.plot(places, expected[way], "--", color=colour, linewidth=1.2, zorder=2)
        else:
            some = slice(None, None, 1 + (len(places) - 1) // MOST_MARKS)
            hollow = {"marker": marker, "markerfacecolor": "white", "markeredgecolor": colour, "linestyle": "none"}
            ax.plot(np.asarray(places)[some], expected[way][some], markersize=6, zorder=4, **hollow)
    if floor:
        ax.plot([], [], "--", color=INK, linewidth=1.2, label="at least")
    else:
        ax.plot([], [], "o", markerfacecolor="white", markeredgecolor=INK, label="predicted (hollow)")
    if doubling:
        doubling_axis(ax, places)
    elif few:
        ax.set_xticks(places)
    ax.set_ylim(0, 1.08 * max(np.nanmax(amounts, initial=0) for amounts in (measured, expected, ends)) or 1)
    ax.set_xlabel(f"{x_label} (logarithmic axis)" if doubling else x_label)
    ax.set_ylabel(unit)
    ax.grid()
    legend_above(ax, columns=2)
    return ax


def _box(ax: Axes, x: float, y: float, text: str, colour: str) -> None:
    height = LINE * (text.count("\n") + 1) + 0.06
    box = FancyBboxPatch(
        (x - BOX / 2 + 0.05, y - height / 2),
        BOX - 0.1,
        height,
        boxstyle="round,pad=0.03",
        facecolor=colour,
        edgecolor=INK,
        linewidth=1,
        zorder=3,
    )
    ax.add_patch(box)
    ax.text(x, y, text, ha="center", va="center", fontsize=9, color=readable_on(colour), zorder=4)


def _spreads(lows, medians, highs, shape: tuple[int, ...]) -> np.ndarray:
    """The three as one array (3, *shape), above 0 for a logarithmic axis."""
    named = {"lows": lows, "medians": medians, "highs": highs}
    return as_intervals(*(as_positive(name, amounts, shape) for name, amounts in named.items()), of="median")
