"""Pictures of one model on several devices: which tensor lies where, and what crosses between them."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from .arrays import as_amounts, as_positive
from .canvas import axes_or_new, new_figure
from .style import COLOURS, FADED, PREDICTED, STYLE, decade_axis, hide_frame, legend_above

FIRST, SECOND, BOTH = COLOURS[4], COLOURS[9], COLOURS[7]
WAY_COLOURS = (COLOURS[5], COLOURS[6], COLOURS[8], COLOURS[3])
EVERYWHERE, HALVES, BLANK = -1, -2, -3  # in the arrays of plot_placement, where other numbers name the device
MARKERS = "osDv"


@mpl.rc_context(STYLE)
def plot_placement(
    placed: np.ndarray,
    *,
    names: Sequence[str],
    rows: Sequence[str],
    across: str,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Draw for each way to split a model over two devices where every tensor lies: one panel per way.

    Args:
        placed: (ways, rows, columns) whole numbers: 0 or 1 for the device that holds a tensor, -1 for both, -2 for half
            of it on each. A masked cell is left blank: no such tensor.
        names: of the ways, the titles of the panels; at most four.
        rows: their labels, at the first panel alone.
        across: what the columns are, numbered from 0.
        axes: one per way; None makes a figure.

    Returns:
        the Axes, one per way.
    """
    placed = np.ma.asarray(placed)
    if placed.ndim != 3 or placed.shape[:2] != (len(names), len(rows)):
        raise ValueError(f"placed has shape {placed.shape}: expected {(len(names), len(rows))} and columns")
    if len(names) > len(WAY_COLOURS):
        raise ValueError(f"{len(names)} ways: expected at most {len(WAY_COLOURS)}, or their panels are too narrow")
    if not np.isin(placed.compressed(), (0, 1, EVERYWHERE, HALVES)).all():
        raise ValueError("placed holds a number other than 0, 1, -1 and -2: expected two devices, both, or halves")
    axes = new_figure(1, len(names), height_in=3.5, share_y=True)[1][0] if axes is None else axes
    for ax, name, grid in zip(axes, names, placed, strict=True):
        for (row, column), where in np.ndenumerate(grid.filled(BLANK)):
            for start, height, colour in _pieces(where):
                corner = (column - 0.46, row - 0.42 + start)
                ax.add_patch(Rectangle(corner, 0.92, height, facecolor=colour, edgecolor="white"))
        ax.set(xlim=(-0.6, grid.shape[1] - 0.4), ylim=(len(rows) - 0.4, -0.6), title=name, xlabel=across)
        ax.set_xticks(range(grid.shape[1]))
        ax.set_yticks(range(len(rows)), rows)
        hide_frame(ax)
    keys = {
        "device 0": Patch(facecolor=FIRST),
        "device 1": Patch(facecolor=SECOND),
        "half on each": (Patch(facecolor=FIRST), Patch(facecolor=SECOND)),
        "whole on both": Patch(facecolor=BOTH),
    }
    side_by_side = {tuple: HandlerTuple(ndivide=None, pad=0)}
    axes[0].figure.legend(
        keys.values(), keys.keys(), handler_map=side_by_side, loc="outside upper left", ncols=len(keys)
    )
    return axes


def _pieces(where: int) -> list[tuple[float, float, str]]:
    """The rectangles of a cell: how far from its upper edge, how high, in which colour."""
    if where == HALVES:
        return [(0, 0.42, FIRST), (0.42, 0.42, SECOND)]
    return [] if where == BLANK else [(0, 0.84, {0: FIRST, 1: SECOND, EVERYWHERE: BOTH}[where])]


@mpl.rc_context(STYLE)
def plot_traffic(
    ranks: Sequence[int], received: np.ndarray, *, names: Sequence[str], unit: str, ax: Axes | None = None
) -> Axes:
    """Draw what crosses between ranks against their number, a line per way, on a logarithmic axis.

    Args:
        ranks: (n,) numbers of ranks, upwards.
        received: (ways, n), above 0, in `unit`; NaN where a way does not go with so many ranks.
        names: of the ways, at most four.
        unit: the label of the axis.
    """
    received = as_positive("received", received, (len(names), len(ranks)), gaps=True)
    if len(names) > len(WAY_COLOURS):
        raise ValueError(f"{len(names)} ways: expected at most {len(WAY_COLOURS)}")
    if np.isnan(received).all():
        raise ValueError("received holds no number: expected at least one, because a logarithmic axis needs a scale")
    ax = axes_or_new(ax, height_in=3.2)
    for name, row, colour, marker in zip(names, received, WAY_COLOURS, MARKERS, strict=False):
        there = ~np.isnan(row)
        ax.plot(np.asarray(ranks)[there], row[there], color=colour, marker=marker, label=name)
    decade_axis(ax.yaxis)
    ax.set_xticks(ranks)
    ax.set(xlabel="ranks", ylabel=unit)
    ax.grid(axis="y")
    legend_above(ax, columns=len(names))
    return ax


@mpl.rc_context(STYLE)
def plot_received(
    received: np.ndarray, *, names: Sequence[str], chosen: str, unit: str, ax: Axes | None = None
) -> Axes:
    """Draw what each way is predicted to bring to a device: a hollow bar per way with its number, one in colour.

    Args:
        received: (ways,), in `unit`.
        names: of the ways, the first on top.
        chosen: the one in colour.
        unit: the label of the axis.
    """
    received = as_amounts(received, (len(names),))
    if chosen not in names:
        raise ValueError(f"chosen is {chosen!r}: expected one of {', '.join(names)}")
    ax = axes_or_new(ax, height_in=1.2 + 0.35 * len(names))
    edges = [PREDICTED if name == chosen else FADED for name in names]
    bars = ax.barh(names, received, height=0.62, color="white", edgecolor=edges, linewidth=2)
    ax.bar_label(bars, [f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}" for amount in received], padding=4)
    ax.get_yticklabels()[list(names).index(chosen)].set_fontweight("bold")
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(0, 1.5 * received.max() or 1)  # room for the longest bar's number
    ax.xaxis.set_major_locator(MaxNLocator(3, prune="upper"))  # a number at the end could leave the picture
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.set_xlabel(unit)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    return ax
