"""Pictures of four-bit numbers: the sixteen values, a block and its outlier, errors by block size, format and layer."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from .arrays import as_amounts, as_finite, as_intervals
from .canvas import axes_or_new
from .language import WEIGHTS, pale
from .marks import draw_interval_series, draw_percent_map, label_rows, write_beside
from .style import FADED, INK, MEASURED, PREDICTED, SERIES, STYLE, doubling_axis, legend_above

HOLLOW = {"markerfacecolor": "white", "markeredgecolor": PREDICTED, "linestyle": "none"}


@mpl.rc_context(STYLE)
def plot_quantiles(
    x: np.ndarray, density: np.ndarray, *, values: np.ndarray, heights: np.ndarray, ax: Axes | None = None
) -> Axes:
    """Draw the bell curve with the values of a codebook, each a line as high as the curve, numbered from the left.

    The areas between neighbours are shaded in turn, so that they can be compared.

    Args:
        x, density: (n,), the curve; x in standard deviations.
        values, heights: (values,), where each value stands on x, and the curve's density there.
    """
    x, values = as_finite(x, np.shape(density)), as_finite(values, np.shape(heights))
    density, heights = as_amounts(density, x.shape), as_amounts(heights, values.shape)
    ax = axes_or_new(ax, height_in=3.0)
    for step, (left, right) in enumerate(zip(values[:-1], values[1:], strict=True)):
        inside = np.linspace(left, right, 20)
        face = pale(WEIGHTS, 0.55 if step % 2 else 0.8)
        ax.fill_between(inside, np.interp(inside, x, density), color=face, linewidth=0)
    ax.plot(x, density, color=INK)
    ax.vlines(values, 0, heights, color=WEIGHTS, linewidth=2)
    for number, (value, height) in enumerate(zip(values, heights, strict=True)):
        away = 5 * np.sign(value)  # from the curve, which falls to both sides
        write_beside(ax, str(number), (value, height), shift=(away, 3), va="bottom")
    ax.set_xlim(x.min(), x.max())
    ax.set_ylim(0, 1.14 * density.max())
    ax.set_xlabel("standard deviations")
    ax.set_ylabel("probability density")
    return ax


@mpl.rc_context(STYLE)
def plot_codebooks(
    edges: np.ndarray,
    shares: np.ndarray,
    *,
    codebooks: Sequence[np.ndarray],
    names: Sequence[str],
    title: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw how scaled weights are spread, and under it a row of marks for the values of each codebook.

    Args:
        edges, shares: (n + 1,) and (n,), a histogram of weights over their block's absmax.
        codebooks: (values,) each.
        names: of the codebooks, from the top.
        title: whose weights.
    """
    edges = as_finite(edges, np.shape(edges))
    shares = as_amounts(shares, (len(edges) - 1,))
    rows = -0.16 * shares.max() * np.arange(1, len(names) + 1)
    ax = axes_or_new(ax, height_in=2.2 + 0.35 * len(names))
    ax.stairs(shares, edges, fill=True, color=pale(WEIGHTS, 0.6))
    ax.axhline(0, color=INK, linewidth=0.8)
    for row, codebook in zip(rows, codebooks, strict=True):
        codebook = as_finite(codebook, np.shape(codebook))
        ax.plot(codebook, np.full(codebook.shape, row), "|", color=WEIGHTS, markersize=13, markeredgewidth=2)
    ax.set_yticks([shares.max() / 2, *rows], ["weights", *names])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlim(-1.02, 1.02)
    ax.set_ylim(rows[-1] - 0.12 * shares.max(), 1.05 * shares.max())
    ax.set_xlabel("weight / largest absolute weight of its block")
    ax.set_title(title)
    return ax


@mpl.rc_context(STYLE)
def plot_rounded_block(
    weights: np.ndarray,
    rounded: np.ndarray,
    *,
    levels: np.ndarray,
    title: str,
    limit: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a block of weights, what each is rounded to, and every level that it could be rounded to.

    Args:
        weights, rounded: (block size,).
        levels: (values,), the codebook times the block's absmax.
        title: which block.
        limit: the largest absolute value that is drawn; None draws all. An arrow points to a weight beyond it.
    """
    weights = as_finite(weights, np.shape(rounded))
    rounded, levels = as_finite(rounded, weights.shape), as_finite(levels, np.shape(levels))
    ax = axes_or_new(ax, height_in=3.0)
    limit = 1.05 * np.abs(weights).max() if limit is None else limit
    places = np.arange(len(weights))
    ax.hlines(levels[np.abs(levels) <= limit], -1, len(weights), color=FADED, linewidth=0.8)
    ax.vlines(places, weights, rounded, color=INK, linewidth=0.8)
    ax.plot(places, weights, "o", color="white", markeredgecolor=INK, markersize=4.5, label="weight")
    ax.plot(places, rounded, "o", color=WEIGHTS, markersize=4, label="rounded to")
    for place in np.flatnonzero(np.abs(weights) > limit):
        _point_beyond(ax, place, weights[place], limit)
    ax.set_xlim(-1, len(weights))
    ax.set_ylim(-limit, limit)
    ax.set_xlabel("place in the block")
    ax.set_ylabel("weight")
    ax.set_title(title, pad=24)
    legend_above(ax, columns=2)
    return ax


@mpl.rc_context(STYLE)
def plot_errors_by_block(
    block_sizes: Sequence[int],
    measured: np.ndarray,
    predicted: np.ndarray,
    *,
    bits: Sequence[float],
    names: Sequence[str],
    ax: Axes | None = None,
) -> Axes:
    """Draw the error of four-bit weights against the block size: measured (solid) and predicted (hollow).

    Args:
        block_sizes: (n,), ascending.
        measured: (lines, n), shares of the weights' root mean square, at most two lines.
        predicted: (n,).
        bits: (n,) per weight, scales included, written below the block sizes.
        names: of the measured lines.
    """
    measured = as_amounts(measured, (len(names), len(block_sizes)))
    predicted = as_amounts(predicted, (len(block_sizes),))
    ax = axes_or_new(ax, height_in=3.2)
    bits = as_amounts(bits, (len(block_sizes),))
    ax.plot(block_sizes, 100 * predicted, "o", markersize=11, label="predicted (hollow)", **HOLLOW)
    for line, name, colour, marker in zip(measured, names, SERIES[: len(names)], "os"[: len(names)], strict=True):
        ax.plot(block_sizes, 100 * line, f"{marker}-", color=colour, markersize=5, label=name)
    doubling_axis(ax, block_sizes)
    ax.set_xticks(block_sizes, [f"{size:,}\n{stored:.3f}" for size, stored in zip(block_sizes, bits, strict=True)])
    ax.set_ylim(0, 106 * max(measured.max(), predicted.max()))
    ax.set_xlabel("weights in a block (logarithmic axis), and below it the bits per weight")
    ax.set_ylabel("error, % of the weights' rms")
    ax.grid()
    legend_above(ax, columns=3)
    return ax


@mpl.rc_context(STYLE)
def plot_format_errors(
    measured: np.ndarray, predicted: np.ndarray, *, names: Sequence[str], what: str, ax: Axes | None = None
) -> Axes:
    """Draw the error of each format on every matrix of a model, a mark each, and what is predicted.

    Args:
        measured: (formats, matrices), shares of each matrix's root mean square.
        predicted: (formats,).
        names: of the formats, from the top.
        what: the label of a measured mark.
    """
    measured = np.asarray(measured, float)
    measured = as_amounts(measured, (len(names), measured.shape[-1] if measured.ndim else 0))
    predicted = as_amounts(predicted, (len(names),))
    ax = axes_or_new(ax, height_in=1.4 + 0.45 * len(names))
    rows = np.arange(len(names))
    see_through = HOLLOW | {"markerfacecolor": "none", "markeredgewidth": 2, "zorder": 4}  # many marks lie behind it
    ax.plot(100 * predicted, rows, "o", label="predicted (hollow)", markersize=12, **see_through)
    spread = np.linspace(-0.22, 0.22, measured.shape[1]) if measured.shape[1] > 1 else np.zeros(1)
    places = rows[:, None] + spread
    ax.plot(100 * measured.ravel(), places.ravel(), "o", color=MEASURED, markersize=4, alpha=0.7, label=what)
    label_rows(ax, names)
    ax.set_xlabel("error, % of the weights' rms (the axis does not start at 0)")
    ax.grid(axis="x")
    legend_above(ax, columns=2)
    return ax


@mpl.rc_context(STYLE)
def plot_error_map(
    errors: np.ndarray,
    *,
    kinds: Sequence[str],
    layers: Sequence[int],
    predicted: float,
    title: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw the error of each kind of matrix in each layer as a map, with the number in per cent.

    What is predicted is white; a larger error is teal, a smaller one grey.

    Args:
        errors: (kinds, layers), shares of each matrix's root mean square.
        kinds, layers: names of the rows and of the columns.
        predicted: the error that each would have if its weights were normal numbers.
        title: of which format.
    """
    errors = as_amounts(errors, (len(kinds), len(layers)))
    ax = axes_or_new(ax, height_in=1.2 + 0.32 * len(kinds))
    draw_percent_map(ax, errors, about=predicted, digits=1)
    ax.set_xticks(range(len(layers)), layers)
    ax.set_yticks(range(len(kinds)), kinds)
    ax.set_xlabel("layer (number: error, % of the weights' rms)")
    ax.set_title(title)
    return ax


@mpl.rc_context(STYLE)
def plot_code_shares(shares: np.ndarray, *, title: str, ax: Axes) -> Axes:
    """Draw how often each code is used.

    Args:
        shares: (codes,), from 0 to 1.
        title: where.
    """
    shares = as_amounts(shares, np.shape(shares))
    ax.bar(range(len(shares)), 100 * shares, color=WEIGHTS)
    ax.set_xticks(range(0, len(shares), 3))
    ax.set_ylim(0, 105)
    ax.set_xlabel("code")
    ax.set_ylabel("weights that have it, %")
    ax.grid(axis="y")
    ax.set_title(title, pad=24)  # as high as that of `plot_rounded_block`, beside which it stands
    return ax


@mpl.rc_context(STYLE)
def plot_loss_changes(
    means: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    *,
    formats: Sequence[str],
    models: Sequence[str],
    ax: Axes | None = None,
) -> Axes:
    """Draw how each format changes the loss of each model, with intervals, about a line at no change.

    Args:
        means, lows, highs: (models, formats), in nats per token; at most two models.
        formats: names of the rows, from the top.
        models: names.
    """
    shape = (len(models), len(formats))
    means, lows, highs = (as_finite(values, shape) for values in (means, lows, highs))
    bounds = 1000 * as_intervals(lows, means, highs)
    ax = axes_or_new(ax, height_in=1.4 + 0.45 * len(formats))
    rows = np.arange(len(formats))
    ax.axvline(0, color=INK, linewidth=1, linestyle=":")
    draw_interval_series(ax, rows, bounds, names=models, looks="os", colours=SERIES, gap=0.3, level=True)
    label_rows(ax, formats)
    ax.set_xlabel("change of held-out loss, thousandths of a nat a token")
    ax.grid(axis="x")
    legend_above(ax, columns=2)
    return ax


def _point_beyond(ax: Axes, place: int, weight: float, limit: float) -> None:
    """Draw an arrow at the edge of the picture to a weight that lies beyond it, and write down where."""
    end, start = (limit, 0.86 * limit) if weight > 0 else (-limit, -0.86 * limit)
    ax.annotate("", (place, end), (place, start), arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 1.5})
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    side = {"ha": "left", "textcoords": "offset points", "xytext": (5, 0), "va": "center", "fontsize": 9}
    ax.annotate(f"{weight:.2g}", (place, (start + end) / 2), bbox=paper, **side)
