"""Pictures of a model in a fixed amount of memory: what it takes beside what there is; which choices it changes."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from .arrays import as_amount_intervals, as_amounts
from .canvas import axes_or_new
from .marks import draw_interval_series, some_labels
from .model import draw_parts
from .style import INK, SERIES, STYLE, decade_axis, legend_above

LIMIT_LOOKS = ("-", "--", ":")
LOOKS = ("o-", "s-", "^-", "D-")


@mpl.rc_context(STYLE)
def plot_budget(
    amounts: np.ndarray,
    *,
    names: Sequence[str],
    parts: Sequence[str],
    limits: Mapping[str, float],
    unit: str,
    columns: int = 3,
    ax: Axes | None = None,
) -> Axes:
    """Draw what each way takes beside what there is: one bar per way, one segment per part, an upright line per limit.

    Args:
        amounts: (ways, parts), in `unit`.
        names: of the ways, the first on top; more than one.
        parts: name of each segment, from the left, of `PART_COLOURS`.
        limits: name to amount in `unit`, at most three.
        unit: the label of the axis.
        columns: of the legend.
    """
    amounts = as_amounts(amounts, (len(names), len(parts)))
    most = as_amounts(list(limits.values()), (len(limits),))
    if len(limits) > len(LIMIT_LOOKS):
        raise ValueError(f"{len(limits)} limits: expected at most {len(LIMIT_LOOKS)}")
    ax = draw_parts(amounts, names=names, parts=parts, unit=unit, ax=ax)
    for (name, limit), look in zip(limits.items(), LIMIT_LOOKS, strict=False):
        ax.axvline(limit, color=INK, linewidth=1.8, linestyle=look, label=name)
    ax.set_xlim(0, 1.04 * max(amounts.sum(axis=1).max(), *most))
    legend_above(ax, columns=columns)
    return ax


@mpl.rc_context(STYLE)
def plot_changed(
    lows: np.ndarray,
    shares: np.ndarray,
    highs: np.ndarray,
    *,
    names: Sequence[str],
    unit: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw the share of choices that changed, layer by layer with an interval, on a logarithmic axis.

    Args:
        lows, shares, highs: (ways, layers), above 0 and up to 1; a bar spans low to high.
        names: of the ways, at most four.
        unit: the label of the axis, in %.
    """
    shape = (len(names), np.shape(shares)[-1] if np.ndim(shares) else 0)
    bounds = as_amount_intervals(lows, shares, highs, shape, of="share")
    if bounds.min() <= 0 or bounds.max() > 1:
        raise ValueError(
            f"shares run from {bounds.min()} to {bounds.max()}: expected above 0, for the axis, and up to 1"
        )
    ax = axes_or_new(ax, height_in=3.4)
    layers = np.arange(shape[1])
    draw_interval_series(ax, layers, 100 * bounds, names=names, looks=LOOKS, colours=SERIES, gap=0.06)
    ax.set_xticks(layers[some_labels(len(layers))])
    ax.set_xlim(-0.5, len(layers) - 0.5)
    decade_axis(ax.yaxis)
    ax.set_xlabel("layer")
    ax.set_ylabel(f"{unit}\n(logarithmic axis)")
    ax.grid(axis="y")
    legend_above(ax, columns=4)
    return ax
