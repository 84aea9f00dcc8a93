"""What several pictures are made of: named rows, intervals, maps of percentages, text beside a place."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.text import Annotation

from .language import MORE_OR_LESS
from .style import INK, hide_frame, readable_on

MOST_LABELS = 17  # along a horizontal axis as wide as the page


def some_labels(count: int) -> slice:
    """Select every label of a horizontal axis, or every second or third one where all of them would overlap."""
    return slice(None, None, 1 + count // MOST_LABELS)


def label_rows(ax: Axes, names: Sequence[str], *, room: float = 0.5) -> None:
    """Give each row its name, the first on top, with some room beyond the first and the last."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 1 + room, -room)
    ax.tick_params(axis="y", length=0)


def draw_intervals(
    ax: Axes,
    places: np.ndarray,
    bounds: np.ndarray,
    *,
    look: str,
    colour: str,
    label: str | None = None,
    level: bool = False,
    capsize: float = 3,
) -> None:
    """Draw a mark at each middle, and through it a bar from low to high.

    Args:
        places: (n,) along the other axis.
        bounds: (3, n), lows, middles and highs.
        look: marker and line, as matplotlib writes them: "o-".
        level: whether the bars lie in rows, at heights that are the places.
        capsize: half the width of a bar's ends, in points.
    """
    low, middle, high = bounds
    reach = [middle - low, high - middle]
    style = {"fmt": look, "color": colour, "markeredgecolor": INK, "capsize": capsize, "label": label}
    if level:
        ax.errorbar(middle, places, xerr=reach, **style)
    else:
        ax.errorbar(places, middle, yerr=reach, **style)


def draw_interval_series(
    ax: Axes,
    places: Sequence[float],
    bounds: np.ndarray,
    *,
    names: Sequence[str],
    looks: Sequence[str],
    colours: Sequence[str],
    gap: float = 0,
    level: bool = False,
) -> None:
    """Draw several series of intervals at the same places, each in its own look and colour.

    Args:
        places: (n,) along the other axis.
        bounds: (3, series, n), lows, middles and highs.
        names: of the series, for the legend.
        looks: marker and line of each series, as in `draw_intervals`; there may be more than series.
        colours: of each series; there may be more than series.
        gap: between neighbouring series at one place, so that their bars do not cover each other.
        level: whether the bars lie in rows, at heights that are the places.
    """
    series = zip(names, looks[: len(names)], colours[: len(names)], strict=True)
    for number, (name, look, colour) in enumerate(series):
        shifted = np.asarray(places) + gap * (number - (len(names) - 1) / 2)
        draw_intervals(ax, shifted, bounds[:, number], look=look, colour=colour, label=name, level=level)


def draw_percent_map(ax: Axes, shares: np.ndarray, *, about: float, most: float | None = None, digits: int = 0) -> None:
    """Draw shares as cells of a map, each with its number in per cent, coloured by how far it lies from one of them.

    Args:
        shares: (rows, columns).
        about: the share that is white; above it cells are teal, below it grey.
        most: the share with the last colour; None takes what lies farthest from `about`.
        digits: of the numbers, after the point.
    """
    reach = np.abs(shares - about).max() if most is None else most - about
    colours = MORE_OR_LESS((shares - about) / (2 * reach or 1) + 0.5)
    ax.imshow(colours, aspect="auto")
    for row, column in np.ndindex(shares.shape):
        text = f"{100 * shares[row, column]:.{digits}f}"
        ink = readable_on(to_hex(colours[row, column]))
        ax.text(column, row, text, ha="center", va="center", fontsize=9, color=ink)
    hide_frame(ax)


def write_beside(
    ax: Axes,
    text: str,
    place: tuple[float, float],
    *,
    shift: tuple[float, float],
    ha: str = "center",
    va: str = "center",
    fontsize: float = 9,
) -> Annotation:
    """Write a text beside a place in the plot, shifted from it by so many points to the right and upwards."""
    return ax.annotate(text, place, xytext=shift, textcoords="offset points", ha=ha, va=va, fontsize=fontsize)
