"""Charts of the sliding window: who sees whom, how far a stack sees, who is recalled, what it costs and saves."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from .arrays import as_amount_intervals, as_amounts, as_positive
from .canvas import axes_or_new
from .language import KEY, QUERY, VALUE, draw_guess
from .style import (
    COLOURS,
    FADED,
    INK,
    MEASURED,
    STYLE,
    decade_axis,
    doubling_axis,
    hide_frame,
    legend_above,
)

VISIBLE, MARKED = COLOURS[4], COLOURS[2]  # a key that may be seen; the cell or row to look at
WAY_COLOURS = (MEASURED, COLOURS[5], COLOURS[8], COLOURS[9])
RECALL_COLOURS = (MEASURED, KEY, QUERY, VALUE)
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
    for place, (line, reach, name, colour) in enumerate(zip(influence, reaches, names, colours, strict=True)):
        # A deeper line goes on where a shallower one ends, so it lies below it.
        # Not antialiased: the soft edges of ragged lines would be most of the picture's bytes.
        look = {"color": colour, "linewidth": 1.2, "antialiased": False, "zorder": 3 - place / 10}
        ax.plot(np.where(line > 0, line, np.nan), label=name, **look)
        ax.axvline(reach - 1, color=colour, linewidth=1.4, linestyle="--")
    ax.set_yscale("log")
    ax.set_xlim(0, influence.shape[1] - 1)
    ax.set_xlabel("tokens back from the last one (dashed: the furthest that can be seen)")
    ax.set_ylabel(f"{unit}\n(logarithmic axis)")
    ax.grid(axis="y")
    legend_above(ax, columns=len(names))
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
        colour, hollow = WAY_COLOURS[way], {"markerfacecolor": "white", "markersize": 8, "zorder": 2}
        ax.plot(sizes, measured[way], f"{marker}-", color=colour, markeredgecolor=INK, label=name, zorder=3)
        ax.plot(sizes, predicted[way], f"{marker}--", color=colour, **hollow)
    ax.plot([], [], "--", color=INK, label="predicted (hollow)")
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


@mpl.rc_context(STYLE)
def plot_recall(
    distances: Sequence[float],
    shares: np.ndarray,
    *,
    names: Sequence[str],
    hop: int,
    hops: int,
    bounds: np.ndarray | None = None,
    guess: float | None = None,
    guess_label: str = "a guess",
    unit: str = "share of names recalled",
    ax: Axes | None = None,
) -> Axes:
    """Draw how many names are recalled by how far back they stand, over the hops that a relay would take.

    Args:
        distances: (n,) tokens back, ascending.
        shares: (series, n) from 0 to 1, measured; NaN where nothing was asked.
        names: of the series, at most four.
        hop: tokens of one hop, W - 1.
        hops: layers; a line stands after each hop, the last one labelled "at most".
        bounds: (2, series, n), the ends of the intervals; None draws none.
        guess, guess_label: a distance that was guessed, and whose guess it is.
        unit: the label of the vertical axis.
    """
    distances, shares = np.asarray(distances, dtype=float), np.asarray(shares, dtype=float)
    if shares.shape != (len(names), len(distances)) or (bounds is not None and np.shape(bounds) != (2, *shares.shape)):
        raise ValueError(
            f"shares has shape {shares.shape}: expected {(len(names), len(distances))}, a row for each name and a "
            "column for each distance, and bounds as (2, rows, columns)"
        )
    if np.nanmin(shares) < 0 or np.nanmax(shares) > 1:
        raise ValueError(f"shares go from {np.nanmin(shares)} to {np.nanmax(shares)}: expected 0 to 1")
    ax = axes_or_new(ax, height_in=3.2)
    for number in range(1, hops + 1):
        ax.axvline(hop * number, color=FADED, linewidth=1.2, zorder=1)
        text = f"{number} hop{'s' * (number > 1)}" if number < hops else f"at most\n{hop * number} tokens"
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        at = {"textcoords": "offset points", "va": "center", "fontsize": 9, "bbox": paper, "zorder": 5}
        ax.annotate(text, (hop * number, 0.45), (3, 0), **at)
    looks = zip(names, MARKERS[: len(names)], RECALL_COLOURS[: len(names)], strict=True)
    for series, (name, marker, colour) in enumerate(looks):
        line = shares[series]
        look = {"markersize": 9 - 2 * series, "linewidth": 3 - 0.7 * series}  # so that lines on each other are all seen
        ax.plot(distances, line, f"{marker}-", color=colour, label=name, zorder=3, **look)
        if bounds is not None:
            low, high = bounds[0][series], bounds[1][series]
            ax.fill_between(distances, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
    if guess is not None:
        draw_guess(ax, guess, 0, label=guess_label)
    ax.set_ylim(-0.04, 1.06)
    ax.set_xlim(0, 1.02 * max(distances.max(), hop * hops + 45, guess or 0))
    ax.set_xlabel("tokens back to the name")
    ax.set_ylabel(unit)
    legend_above(ax, columns=len(names))
    return ax


@mpl.rc_context(STYLE)
def plot_cache_bytes(
    contexts: Sequence[int], gib: np.ndarray, *, names: Sequence[str], free: Sequence[tuple[str, float]], ax=None
) -> Axes:
    """Draw how caches grow with the text, computed, with lines for what machines have left.

    Args:
        contexts: (n,) tokens, ascending.
        gib: (models, n).
        names: of the models, at most four, each written at the end of its line.
        free: name and GiB of each limit.
    """
    gib = as_positive("gib", gib, (len(names), len(contexts)))
    ax = axes_or_new(ax, height_in=3.6)
    for line, name, marker, colour in zip(gib, names, MARKERS, RECALL_COLOURS, strict=False):
        ax.plot(contexts, line, f"{marker}--", color=colour, markerfacecolor="white", markersize=6, clip_on=False)
        ax.annotate(name, (contexts[-1], line[-1]), (8, 0), textcoords="offset points", va="center", color=colour)
    for label, amount in free:
        ax.axhline(amount, color=INK, linewidth=1)
        ax.annotate(label, (contexts[-1], amount), (0, 3), textcoords="offset points", ha="right", fontsize=9)
    ax.set_xlim(0, contexts[-1])
    ax.set_ylim(0, None)
    ax.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 4, 5, 10]))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("tokens of text")
    ax.set_ylabel("GiB of keys and values in 16 bits")
    ax.grid(axis="y")
    return ax
