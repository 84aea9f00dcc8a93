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
from .language import WEIGHTS, pale
from .marks import write_beside
from .style import FADED, PREDICTED, STYLE, decade_axis, hide_frame

FIRST = {"facecolor": WEIGHTS, "edgecolor": "white"}
SECOND = {"facecolor": pale(WEIGHTS, 0.65), "edgecolor": "white"}
BOTH = {"facecolor": WEIGHTS, "edgecolor": pale(WEIGHTS, 0.75), "hatch": "////", "linewidth": 0}  # striped of the two
MOST_WAYS = 4
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
    if len(names) > MOST_WAYS:
        raise ValueError(f"{len(names)} ways: expected at most {MOST_WAYS}, or their panels are too narrow")
    if not np.isin(placed.compressed(), (0, 1, EVERYWHERE, HALVES)).all():
        raise ValueError("placed holds a number other than 0, 1, -1 and -2: expected two devices, both, or halves")
    axes = new_figure(1, len(names), height_in=3.5, share_y=True)[1][0] if axes is None else axes
    for ax, name, grid in zip(axes, names, placed, strict=True):
        for (row, column), where in np.ndenumerate(grid.filled(BLANK)):
            for start, height, look in _pieces(where):
                ax.add_patch(Rectangle((column - 0.46, row - 0.42 + start), 0.92, height, **look))
        ax.set(xlim=(-0.6, grid.shape[1] - 0.4), ylim=(len(rows) - 0.4, -0.6), title=name, xlabel=across)
        ax.set_xticks(range(grid.shape[1]))
        ax.set_yticks(range(len(rows)), rows)
        hide_frame(ax)
    keys = {
        "device 0": Patch(**FIRST),
        "device 1": Patch(**SECOND),
        "half on each": (Patch(**FIRST), Patch(**SECOND)),
        "whole on both": Patch(**BOTH),
    }
    side_by_side = {tuple: HandlerTuple(ndivide=None, pad=0)}
    axes[0].figure.legend(
        keys.values(), keys.keys(), handler_map=side_by_side, loc="outside upper left", ncols=len(keys)
    )
    return axes


def _pieces(where: int) -> list[tuple[float, float, dict]]:
    """The rectangles of a cell: how far from its upper edge, how high, how they look."""
    if where == HALVES:
        return [(0, 0.42, FIRST), (0.42, 0.42, SECOND)]
    return [] if where == BLANK else [(0, 0.84, {0: FIRST, 1: SECOND, EVERYWHERE: BOTH}[where])]


@mpl.rc_context(STYLE)
def plot_traffic(
    ranks: Sequence[int], received: np.ndarray, *, names: Sequence[str], unit: str, ax: Axes | None = None
) -> Axes:
    """Draw what is predicted to cross between ranks, by their number, a line per way, on a logarithmic axis.

    Args:
        ranks: (n,) numbers of ranks, upwards.
        received: (ways, n), above 0, in `unit`; NaN where a way does not go with so many ranks.
        names: of the ways, at most four.
        unit: the label of the axis.
    """
    received = as_positive("received", received, (len(names), len(ranks)), gaps=True)
    if len(names) > MOST_WAYS:
        raise ValueError(f"{len(names)} ways: expected at most {MOST_WAYS}")
    if np.isnan(received).all():
        raise ValueError("received holds no number: expected at least one, because a logarithmic axis needs a scale")
    ax = axes_or_new(ax, height_in=3.2)
    hollow = {"color": PREDICTED, "linewidth": 1.2, "markerfacecolor": "white", "markeredgewidth": 2, "markersize": 8}
    for name, row, marker in zip(names, received, MARKERS, strict=False):
        there = ~np.isnan(row)
        ax.plot(np.asarray(ranks)[there], row[there], marker=marker, **hollow)
        if there.any():
            last = np.flatnonzero(there)[-1]
            write_beside(ax, name, (ranks[last], row[last]), shift=(9, 0), ha="left")
    decade_axis(ax.yaxis)
    ax.set_xticks(ranks)
    ax.set_xlim(ranks[0] - 0.3, ranks[-1] + 0.15 * (ranks[-1] - ranks[0]) + 0.3)  # room for the names
    ax.set(xlabel="ranks", ylabel=unit)
    ax.grid(axis="y")
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
