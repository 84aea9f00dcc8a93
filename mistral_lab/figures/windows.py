"""Charts of the sliding window: how far a stack sees, who is recalled, what it costs and saves."""

from collections.abc import Sequence
from os.path import commonprefix

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .arrays import as_amount_intervals, as_amounts, as_positive
from .canvas import axes_or_new
from .language import FLOOR, GUESS, KEY, draw_guess
from .style import FADED, INK, SERIES, STYLE, decade_axis, doubling_axis

MARKERS, SIGNS = "osv^", "●■▼▲"  # of lines, and how a name says which is its own


@mpl.rc_context(STYLE)
def plot_influence(
    influence: np.ndarray, *, reaches: np.ndarray, names: Sequence[str], unit: str, ax: Axes | None = None
) -> Axes:
    """Draw how much each earlier token moves an output, a line per depth, on a logarithmic axis.

    Args:
        influence: (depths, T); column d belongs to the token d positions back. What is exactly 0 is not drawn.
        reaches: (depths,) how many tokens each depth can see; a dashed line stands at the furthest of them.
        names: of the depths, at most four, each written over its dashed line.
        unit: the label of the vertical axis.
    """
    influence, reaches = as_amounts(influence, np.shape(influence)), np.asarray(reaches)
    if influence.ndim != 2 or not len(influence) == len(reaches) == len(names):
        raise ValueError(
            f"influence has shape {influence.shape}, with {len(reaches)} reaches and {len(names)} names: "
            "expected a row, a reach and a name for each depth"
        )
    ax = axes_or_new(ax, height_in=2.8)
    colours = SERIES[: len(names)][::-1]  # the last one dark: it is the whole model
    before, raised = -np.inf, 0
    for place, (line, reach, name, colour) in enumerate(zip(influence, reaches, names, colours, strict=True)):
        # A deeper line goes on where a shallower one ends, so it lies below it.
        # Not antialiased: the soft edges of ragged lines would be most of the picture's bytes.
        look = {"color": colour, "linewidth": 1.2, "antialiased": False, "zorder": 3 - place / 10}
        ax.plot(np.where(line > 0, line, np.nan), **look)
        ax.axvline(reach - 1, color=colour, linewidth=1.4, linestyle="--")
        raised = raised + 1 if reach - before < 0.12 * influence.shape[1] else 0  # or neighbours would touch
        at = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center", "fontsize": 9}
        ax.annotate(name, (reach - 1, 1), (0, 3 + 12 * raised), **at)
        before = reach
    ax.set_yscale("log")
    ax.set_xlim(0, influence.shape[1] - 1)
    ax.set_xlabel("tokens back from the last one (dashed: the furthest that can be seen)")
    ax.set_ylabel(f"{unit}\n(logarithmic axis)")
    ax.grid(axis="y")
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
    floors: bool = False,
    guess: float | None = None,
    guess_label: str = "a guess",
    ax: Axes | None = None,
) -> Axes:
    """Draw how costs grow with a size, measured (solid) and predicted, on two logarithmic axes.

    Args:
        sizes: (n,) along the horizontal axis.
        measured: (ways, n) in `unit`; NaN where nothing was measured.
        predicted: (ways, n) in `unit`; NaN where nothing was predicted.
        names: of the ways, at most four, each at the end of its line; a way has one marker in both.
        x_label, unit: the labels of the axes.
        floors: whether the predictions are the least that is possible: lines labelled "at least", else hollow markers.
        guess, guess_label: an amount at the largest size that was guessed, and whose guess it is.
    """
    shape = (len(names), len(sizes))
    measured = as_positive("measured", measured, shape, gaps=True)
    predicted = as_positive("predicted", predicted, shape, gaps=True)
    ax = axes_or_new(ax, height_in=3.4)
    for way, (marker, colour) in enumerate(zip(MARKERS[: len(names)], SERIES, strict=False)):
        ax.plot(sizes, measured[way], f"{marker}-", color=colour, markersize=5, zorder=3)
        if floors:
            ax.plot(sizes, predicted[way], "-", color=FLOOR, linewidth=1, zorder=2)
        else:
            hollow = {"markerfacecolor": "white", "markersize": 9, "zorder": 2}
            ax.plot(sizes, predicted[way], f"{marker}--", color=colour, **hollow)
    doubling_axis(ax, sizes)
    decade_axis(ax.yaxis)
    ends = list(zip(measured[:, -1], names, strict=True))
    if floors:  # ways with one floor share its label
        for least in np.unique(predicted[:, -1]):
            shared = commonprefix([name for name, at in zip(names, predicted[:, -1], strict=True) if at == least])
            ends.append((least, f"at least: {shared}".rstrip(" ,:")))
    else:
        ax.annotate("solid: measured\nhollow: predicted", (0, 1), (4, -3), xycoords="axes fraction",
                    textcoords="offset points", va="top", fontsize=9)  # fmt: skip
    ax.set_ylim(*_limits_with(ax.get_ylim(), guess))
    if guess is not None:
        draw_guess(ax, sizes[-1], guess, label="")
        ends.append((guess, guess_label))
    _label_ends(ax, sizes[-1], ends, indent=20 if guess is not None else 8)
    ax.set_xlabel(f"{x_label} (logarithmic axis)")
    ax.set_ylabel(f"{unit} (logarithmic axis)")
    ax.grid()
    return ax


def _limits_with(limits: tuple[float, float], guess: float | None) -> tuple[float, float]:
    """Limits of a logarithmic axis that leave room for the flag of a guess."""
    low, high = limits
    return (low, high) if guess is None else (min(low, guess / 1.3), max(high, guess * 1.6))


def _label_ends(ax: Axes, x: float, ends: Sequence[tuple[float, str]], *, indent: float = 8) -> list[float]:
    """Write names to the right of where their lines end, pushed apart where they would touch; limits must be set.

    Returns:
        the height of each name, as a share of the axes; a line that has no end has none.
    """
    least = 15 / (0.7 * 72 * ax.figure.get_figheight())  # of the axes' height: a line of text, and a gap
    to_share = ax.transData + ax.transAxes.inverted()
    placed = [(to_share.transform((x, y))[1], name) for y, name in ends if np.isfinite(y)]
    order = sorted(range(len(placed)), key=placed.__getitem__)  # from the bottom
    shares = np.array([placed[number][0] for number in order])
    for _ in range(200):  # two neighbours that are too near give way to each other
        gaps = np.diff(shares)
        if not len(gaps) or gaps.min() >= least - 1e-6:
            break
        near = int(gaps.argmin())
        move = (least - gaps[near]) / 2
        shares[near], shares[near + 1] = shares[near] - move, shares[near + 1] + move
    for share, number in zip(shares, order, strict=True):
        name = placed[number][1]
        ax.annotate(
            name,
            (x, share),
            (indent, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=GUESS if name.endswith("guess") else INK,
        )
    return shares[np.argsort(order)].tolist()


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
        names: of the series, at most four, each at the end of its line with the marker of the line.
        ranges: names of the places, from the left.
        x_label, unit: the labels of the axes.
        divider: a place, such as 1.5 between the second and the third, and what changes there.
    """
    bounds = as_amount_intervals(lows, means, highs, (len(names), len(ranges)))
    ax = axes_or_new(ax, height_in=2.8)
    places = np.arange(len(ranges))
    for series, (marker, colour) in enumerate(zip(MARKERS[: len(names)], SERIES, strict=False)):
        shift = 0.06 * (series - (len(names) - 1) / 2)  # or intervals at one place would cover each other
        low, mean, high = bounds[:, series]
        look = {"fmt": f"{marker}-", "color": colour, "linewidth": 1.2, "capsize": 3}
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
    heights = _label_ends(ax, places[-1], list(zip(bounds[1, :, -1], names, strict=True)), indent=24)
    beside = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "center", "fontsize": 9}
    for sign, colour, height in zip(SIGNS, SERIES, heights, strict=False):  # lines often end at one place
        ax.annotate(sign, (places[-1], height), (12, 0), color=colour, **beside)
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
        names: of the series, at most four, each beside its line.
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
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    at = {"textcoords": "offset points", "va": "center", "fontsize": 9, "bbox": paper, "zorder": 5}
    for number in range(1, hops + 1):
        ax.axvline(hop * number, color=FADED, linewidth=1.2, zorder=1)
        text = f"{number} hop{'s' * (number > 1)}" if number < hops else f"at most\n{hop * number} tokens"
        ax.annotate(text, (hop * number, 0.3), (3, 0), **at)
    ends = []
    for series, (name, marker, colour) in enumerate(zip(names, MARKERS, SERIES, strict=False)):
        line = shares[series]
        look = {"markersize": 9 - 2 * series, "linewidth": 3 - 0.7 * series}  # so that lines on each other are all seen
        ax.plot(distances, line, f"{marker}-", color=colour, zorder=3, **look)
        height = 0.8 - 0.13 * series  # of the name beside the line's fall; a line that does not fall has it at its end
        if (fallen := np.flatnonzero(line < height)).size and fallen[0]:
            last, next_ = fallen[0] - 1, fallen[0]
            share = (line[last] - height) / (line[last] - line[next_])
            x = distances[last] + share * (distances[next_] - distances[last])
            ax.annotate(name, (x, height), (6 if share else 8, 0), **at)
        else:
            ends.append((line[-1], name))
        if bounds is not None:
            low, high = bounds[0][series], bounds[1][series]
            ax.fill_between(distances, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
    if guess is not None:
        draw_guess(ax, guess, 0, label=guess_label)
    ax.set_ylim(-0.04, 1.06)
    ax.set_xlim(0, 1.02 * max(distances.max(), hop * hops + 45, guess or 0))
    _label_ends(ax, distances[-1], ends)
    ax.set_xlabel("tokens back to the name")
    ax.set_ylabel(unit)
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
    for line, marker in zip(gib, MARKERS, strict=False):
        ax.plot(contexts, line, f"{marker}--", color=KEY, markerfacecolor="white", markersize=6, clip_on=False)
    for label, amount in free:
        ax.axhline(amount, color=INK, linewidth=1)
        ax.annotate(label, (contexts[-1], amount), (0, 3), textcoords="offset points", ha="right", fontsize=9)
    ax.set_xlim(0, contexts[-1])
    ax.set_ylim(0, None)
    _label_ends(ax, contexts[-1], list(zip(gib[:, -1], names, strict=True)))
    ax.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 4, 5, 10]))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("tokens of text")
    ax.set_ylabel("GiB of keys and values in 16 bits")
    ax.grid(axis="y")
    return ax
