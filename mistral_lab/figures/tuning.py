"""Pictures of fine-tuning: what counts, an adapter to scale, bytes predicted and measured, losses, ranks."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from .arrays import as_amount_intervals, as_positive
from .canvas import axes_or_new
from .language import WEIGHTS, draw_token, pale
from .marks import draw_interval_series, draw_intervals, label_rows, write_beside
from .style import FADED, INK, MEASURED, PREDICTED, STYLE, decade_axis, doubling_axis, legend_above
from .tokens import boxes_in_lines, quoted, text_width

LEARNT, FROZEN = WEIGHTS, pale(WEIGHTS, 0.6)  # what counts in the loss and what is trained; weights that stay
WIDTH, GAP, PITCH = 560.0, 5.0, 30.0  # of a line of tokens, between two of them, from line to line, in points
LONGEST = 40  # characters that are shown of a token, in its quotes


@mpl.rc_context(STYLE)
def plot_labels(tokens: Sequence[str], counted: np.ndarray, *, ax: Axes | None = None) -> Axes:
    """Draw the tokens of an example in reading order, those that the loss counts framed.

    Args:
        tokens: the text of each. It is drawn in quotes, cut if it is long, with escapes for what the font lacks.
        counted: (tokens,) bool.
    """
    counted = np.asarray(counted, bool)
    if counted.shape != (len(tokens),) or not len(tokens):
        raise ValueError(f"counted has shape {counted.shape}: expected ({len(tokens)},), one for each of some tokens")
    labels = [_shortened(quoted(token)) for token in tokens]
    places = boxes_in_lines([text_width(label) + 12 for label in labels], line_width=WIDTH, gap=GAP)
    lines = places[-1, 2] + 1
    ax = axes_or_new(ax, height_in=0.4 + (lines * PITCH + 4) / 72)
    for label, (left, width, line), learnt in zip(labels, places, counted, strict=True):
        look = {"width": width, "height": PITCH - 8, "state": "now" if learnt else "past", "colour": LEARNT}
        draw_token(ax, left + width / 2, (line + 0.5) * PITCH, label, **look)
    ax.set_xlim(-2, WIDTH + 2)
    ax.set_ylim(lines * PITCH, 0)
    ax.set_aspect("equal", anchor="NW")  # a unit is a point on a page
    ax.set_axis_off()
    given = "" if counted.all() else "; the others are given: label -100"
    ax.set_title(f"framed: counts in the loss{given}")
    return ax


def _shortened(label: str) -> str:
    return label if len(label) <= LONGEST + 2 else f"{label[:LONGEST]}…{label[-1]}"


@mpl.rc_context(STYLE)
def plot_adapter(rows: int, columns: int, rank: int, *, ax: Axes | None = None) -> Axes:
    """Draw a frozen matrix, the two matrices of its adapter and the number that scales them: W + (α / r) · B A.

    All sides are to one scale, and the three stand at one height.

    Args:
        rows, columns: of the frozen matrix: its outputs and inputs.
        rank: columns of B and rows of A; it may be larger than the sides of the matrix.
    """
    if min(rows, columns, rank) < 1:
        raise ValueError(f"a side is below 1: rows {rows}, columns {columns}, rank {rank}")
    ax = axes_or_new(ax, height_in=3.2)
    space, tall = 0.32 * max(rows, columns, rank), max(rows, rank)
    left_B = columns + 1.6 * space
    left_A = left_B + rank + space
    for left, width, height, colour, label in (
        (0, columns, rows, FROZEN, f"W: {rows:,} × {columns:,}\nfour bits, frozen"),
        (left_B, rank, rows, LEARNT, f"B: {rows:,} × {rank:,}\ntrained"),
        (left_A, columns, rank, LEARNT, f"A: {rank:,} × {columns:,}\ntrained"),
    ):
        ax.add_patch(Rectangle((left, -height / 2), width, height, facecolor=colour, edgecolor=INK, linewidth=0.8))
        write_beside(ax, label, (left + width / 2, -height / 2), shift=(0, -7), va="top", fontsize=10)
    for place, sign in ((columns + 0.8 * space, r"$+\ \dfrac{\alpha}{r}\ \cdot$"), (left_A - space / 2, "×")):
        ax.text(place, 0, sign, ha="center", va="center", fontsize=14)
    ax.set_xlim(-0.05 * left_A, left_A + columns + 0.05 * left_A)
    ax.set_ylim(-0.9 * tall, 0.55 * tall)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


@mpl.rc_context(STYLE)
def plot_bytes(measured: np.ndarray, predicted: np.ndarray, *, parts: Sequence[str], ax: Axes | None = None) -> Axes:
    """Draw measured bytes (a solid dot) beside predicted ones (a hollow dot), part by part, on a logarithmic axis.

    Args:
        measured: (parts,) bytes; NaN where nothing was measured, which leaves the prediction alone.
        predicted: (parts,) bytes.
        parts: what takes that much, the first on top.
    """
    measured = as_positive("measured", measured, (len(parts),), gaps=True)
    predicted = as_positive("predicted", predicted, (len(parts),), gaps=True)
    ax = axes_or_new(ax, height_in=1.2 + 0.5 * len(parts))
    rows = np.arange(len(parts))
    hollow = {"marker": "o", "facecolor": "white", "edgecolor": PREDICTED, "linewidth": 2}
    ax.scatter(predicted / 1e6, rows, s=190, label="predicted (hollow)", **hollow)
    ax.scatter(measured / 1e6, rows, s=40, color=MEASURED, label="measured")
    for row, amount in zip(rows, predicted, strict=True):
        write_beside(ax, f"{amount / 1e6:,.3g}", (amount / 1e6, row), shift=(11, 0), ha="left")
    decade_axis(ax.xaxis)
    ax.margins(x=0.15)
    label_rows(ax, parts)
    ax.set_xlabel("MB (logarithmic axis)")
    ax.grid(axis="x")
    legend_above(ax, columns=2)
    return ax


@mpl.rc_context(STYLE)
def plot_training(losses: np.ndarray, *, ax: Axes | None = None) -> Axes:
    """Draw the loss of every step, on a logarithmic axis.

    Args:
        losses: (steps,) nats per answer token, above 0.
    """
    losses = np.asarray(losses, float)
    if losses.ndim != 1 or not len(losses) or not np.isfinite(losses).all() or losses.min() <= 0:
        raise ValueError(f"losses of shape {losses.shape}: expected one finite number above 0 for each step")
    ax = axes_or_new(ax, height_in=2.6)
    ax.plot(1 + np.arange(len(losses)), losses, "o-", color=MEASURED, markersize=4)
    decade_axis(ax.yaxis)
    ax.set_xlabel("step")
    ax.set_ylabel("loss, nats per answer token\n(logarithmic axis)")
    ax.grid(axis="y")
    return ax


@mpl.rc_context(STYLE)
def plot_before_after(
    means: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    *,
    rows: Sequence[str],
    times: Sequence[str],
    unit: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw two numbers with their intervals in each row, and a line from the first to the second.

    Args:
        means, lows, highs: (2, rows), in `unit`, from 0 on.
        rows: names, the first on top.
        times: names of the two.
        unit: the label of the axis.
    """
    if len(times) != 2:
        raise ValueError(f"times has {len(times)} names: expected two")
    if wrong := {len(values) for table in (means, lows, highs) for values in table} - {len(rows)}:
        raise ValueError(f"a row of numbers has {min(wrong)} of them: expected {len(rows)}, one for each name")
    bounds = as_amount_intervals(lows, means, highs, (2, len(rows)))
    ax = axes_or_new(ax, height_in=1.1 + 0.42 * len(rows))
    places = np.arange(len(rows))
    ax.hlines(places, *bounds[1], color=FADED, linewidth=3, zorder=1)
    draw_interval_series(ax, places, bounds, names=times, looks="os", colours=(INK, MEASURED), level=True)
    label_rows(ax, rows)
    ax.set_xlim(0, 1.08 * bounds.max())
    ax.set_xlabel(unit)
    ax.grid(axis="x")
    legend_above(ax, columns=2)
    return ax


@mpl.rc_context(STYLE)
def plot_ranks(
    ranks: Sequence[int],
    means: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    *,
    unit: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw a share with its interval for each rank.

    Args:
        ranks: ascending.
        means, lows, highs: (ranks,), from 0 to 1.
        unit: the label of the upright axis, in %.
    """
    if list(ranks) != sorted(set(ranks)):
        raise ValueError(f"ranks are {', '.join(map(str, ranks))}: expected ascending numbers, each once")
    bounds = as_amount_intervals(lows, means, highs, (len(ranks),))
    if bounds.max() > 1:
        raise ValueError(f"a share is {bounds.max()}: expected at most 1")
    ax = axes_or_new(ax, height_in=2.9)
    draw_intervals(ax, ranks, 100 * bounds, look="o-", colour=MEASURED, capsize=4)
    doubling_axis(ax, ranks)
    ax.set_ylim(-4, 104)  # the caps of an interval that ends at 0 or 100 are whole
    ax.set_xlabel("rank (logarithmic axis)")
    ax.set_ylabel(unit)
    ax.grid(axis="y")
    return ax


@mpl.rc_context(STYLE)
def plot_rank_choice(
    ranks: Sequence[int],
    means: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    *,
    chosen: int,
    offered: Sequence[int],
    unit: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw what `plot_ranks` draws, and mark one rank: with a ring if it was measured, otherwise with "not measured".

    Args:
        ranks, means, lows, highs, unit: as in `plot_ranks`.
        chosen: the rank to mark, one of those offered.
        offered: ascending; the axis shows them all.
    """
    if chosen not in offered:
        raise ValueError(f"chosen is {chosen}: expected one of {', '.join(map(str, offered))}")
    ax = plot_ranks(ranks, means, lows, highs, unit=unit, ax=ax)
    doubling_axis(ax, offered)
    ax.set_xlim(offered[0] / 1.3, offered[-1] * 1.3)
    measured = chosen in ranks
    ax.axvline(chosen, color=INK, linewidth=1.2, linestyle="--" if measured else ":", zorder=0)
    if measured:
        height = 100 * means[list(ranks).index(chosen)]
        ax.plot(chosen, height, "o", markersize=14, color=INK, fillstyle="none", clip_on=False)
    else:
        words = write_beside(ax, "not measured", (chosen, 4), shift=(-4, 0), ha="right", va="bottom", fontsize=10)
        words.set_rotation(90)
    return ax
