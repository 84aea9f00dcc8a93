"""Charts of what heads cost: bytes per token, the longest text, and the time of one new token's attention."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .arrays import as_amount_intervals, as_amounts, as_positive
from .canvas import axes_or_new, new_figure
from .language import FLOOR, KEY, QUIET, VALUE, draw_floor, draw_guess, draw_predicted, pale
from .marks import draw_intervals, label_rows, write_beside
from .style import FADED, INK, MEASURED, STYLE, decade_axis, doubling_axis

UNKNOWN = "?"  # stands for the name of a way that is not shown yet


@mpl.rc_context(STYLE)
def plot_kept_bytes(
    kept: np.ndarray,
    multi_head: np.ndarray,
    *,
    names: Sequence[str],
    unit: str,
    unit_bytes: int,
    of: str,
    guess: float | None = None,
    guess_label: str = "a guess",
    ax: Axes | None = None,
) -> Axes:
    """Draw bytes of keys and values, half orange and half green, inside the outline of what a head each would take.

    Args:
        kept: (rows,) bytes.
        multi_head: (rows,) bytes if every query head had its own keys and values.
        names: of the rows, the first on top.
        unit, unit_bytes: of the axis, such as "KiB" and 1,024.
        of: what the bytes are for, as in "per token".
        guess, guess_label: bytes that were guessed for the first row, a flag above it; None draws none.
    """
    kept, multi_head = (as_amounts(amounts, (len(names),)) / unit_bytes for amounts in (kept, multi_head))
    ax = axes_or_new(ax, height_in=0.9 + 0.45 * len(names) + 0.3 * (guess is not None))
    rows = np.arange(len(names))
    ax.barh(rows, multi_head, height=0.56, facecolor="white", edgecolor=QUIET, linestyle=":", zorder=1)
    for left, colour in ((0 * kept, KEY), (kept / 2, VALUE)):
        ax.barh(rows, kept / 2, height=0.56, left=left, color=colour, edgecolor="white", linewidth=0.8, zorder=2)
    for row, mine, alone in zip(rows, kept, multi_head, strict=True):
        text = f"{mine:,.4g} {unit}" if mine == alone else f"{mine:,.4g} {unit}, unshared {alone:,.4g}"
        write_beside(ax, text, (alone, row), shift=(6, 0), ha="left")
    label_rows(ax, names)
    if guess is not None:
        draw_guess(ax, guess / unit_bytes, -0.28, label=guess_label)
        ax.set_ylim(len(names) - 0.5, -1.1)
    ticks = mpl.ticker.MaxNLocator(6).tick_values(0, multi_head.max())
    ax.set_xticks([tick for tick in ticks if tick <= multi_head.max()])  # what lies beyond is room for the labels
    ax.set_xlim(0, 1.42 * multi_head.max())
    ax.set_xlabel(f"{unit} of keys (left, orange) and values (right, green) {of}, 16 bits per number")
    ax.grid(axis="x")
    return ax


@mpl.rc_context(STYLE)
def plot_longest(
    tokens: np.ndarray, *, cards: Sequence[str], heads: Sequence[int], declared: int, ax: Axes | None = None
) -> Axes:
    """Draw the longest text that fits each card, with several numbers of KV heads, on a logarithmic axis.

    Args:
        tokens: (cards, heads), the most tokens that fit.
        declared: the longest text that the model was made for, an upright line.
    """
    thousands = as_positive("tokens", tokens, (len(cards), len(heads))) / 1e3
    ax = axes_or_new(ax, height_in=1.2 + 0.62 * len(cards))
    ax.axvline(declared / 1e3, color=INK, linewidth=1.2, linestyle=":", zorder=1)
    above = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center", "fontsize": 9}
    ax.annotate(f"made for {declared:,} tokens", (declared / 1e3, 1), (0, 3), **above)
    for place, count in enumerate(heads):
        rows = np.arange(len(cards)) + 0.26 * (place - (len(heads) - 1) / 2)
        share = 0.6 * place / max(1, len(heads) - 1)
        ax.plot(thousands[:, place], rows, "o", color=pale(KEY, share), markeredgecolor=INK, markersize=8, zorder=2)
        for row, most in zip(rows, thousands[:, place], strict=True):
            text = f"{count} KV head{'s' * (count > 1)}: {1e3 * most:,.0f} tokens"
            side, ha = (-8, "right") if 1e3 * most < declared else (8, "left")  # the line crosses no label
            write_beside(ax, text, (most, row), shift=(side, 0), ha=ha)
    label_rows(ax, cards)
    decade_axis(ax.xaxis)
    ax.set_xlim(thousands.min() / 15, 15 * thousands.max())
    ax.set_xlabel("thousand tokens of text that fit beside the weights in four bits (logarithmic axis)")
    return ax


@mpl.rc_context(STYLE)
def plot_head_times(
    n_kv_heads: Sequence[int], runs_s: np.ndarray, floor_s: np.ndarray, *, ax: Axes | None = None
) -> Axes:
    """Draw the time of attention for one new token against the number of KV heads, above the least that it can take.

    Args:
        n_kv_heads: (n,).
        runs_s: (n, rounds) measured; a dot is the median, its bar runs from the fastest to the slowest.
        floor_s: (n,) the least.
    """
    runs_s = np.asarray(runs_s, float)
    runs_s = as_positive("runs_s", runs_s, (len(n_kv_heads), *runs_s.shape[1:]))
    floor_s = as_positive("floor_s", floor_s, (len(n_kv_heads),))
    ax = axes_or_new(ax, height_in=3.2)
    bounds = 1e3 * np.array([runs_s.min(axis=1), np.median(runs_s, axis=1), runs_s.max(axis=1)])
    ax.plot(n_kv_heads, 1e3 * floor_s, color=FLOOR, linewidth=1.5)
    draw_intervals(ax, n_kv_heads, bounds, look="o-", colour=MEASURED)
    doubling_axis(ax, sorted(n_kv_heads))
    decade_axis(ax.yaxis)
    last = int(np.argmax(n_kv_heads))
    write_beside(ax, "measured", (n_kv_heads[last], bounds[1, last]), shift=(10, 0), ha="left")
    write_beside(ax, "at least,\nto read them", (n_kv_heads[last], 1e3 * floor_s[last]), shift=(10, 0), ha="left")
    ax.set_xlim(0.85 * min(n_kv_heads), 1.9 * max(n_kv_heads))
    ax.set_xlabel("KV heads under 32 query heads (logarithmic axis)")
    ax.set_ylabel("ms per layer (logarithmic axis)")
    ax.grid()
    return ax


@mpl.rc_context(STYLE)
def plot_ways(
    runs_s: Mapping[str, Mapping[str, np.ndarray]],
    floor_s: Mapping[str, float],
    *,
    shown: Sequence[str],
    guess_s: float | None = None,
    guess_label: str = "a guess",
) -> Figure:
    """Draw how long several ways take, one panel for each number format; one that is not shown yet is a "?".

    Args:
        runs_s: format -> way -> (rounds,) seconds; a bar ends at the median, a line runs from fastest to slowest.
        floor_s: format -> the least that any way can take.
        shown: the ways that are named and drawn; the others keep their rows. Where all are shown, dots on a logarithmic
            axis take the place of bars, so that even the fastest way and the floor can be told apart.
        guess_s: where a flag stands over the first shown way of the first panel; None draws none.
        guess_label: beside the flag.
    """
    ways = list(next(iter(runs_s.values())))
    solved = set(shown) == set(ways)
    figure, axes = new_figure(columns=len(runs_s), height_in=1.5 + 0.42 * len(ways), share_y=True)
    for ax, (dtype, times) in zip(axes[0], runs_s.items(), strict=True):
        most = max(np.max(runs) for runs in times.values())
        for row, (way, runs) in enumerate(times.items()):
            if way not in shown:
                continue
            low, middle, high = 1e3 * np.array([np.min(runs), np.median(runs), np.max(runs)])
            colour = MEASURED if way == "yours" else pale(MEASURED, 0.35)
            ax.plot([low, high], [row, row], color=INK, linewidth=1)
            if solved:
                ax.plot(middle, row, "o", color=colour, markeredgecolor=INK, markersize=9, zorder=3)
            else:
                ax.barh(row, middle, height=0.5, color=colour)
            write_beside(ax, f"{middle:.1f} ms", (max(high, middle), row), shift=(5, 0), ha="left")
        if guess_s is not None and ax is axes[0, 0]:
            draw_guess(ax, 1e3 * guess_s, ways.index(shown[0]) - 0.27, label=guess_label)
            most = max(most, guess_s)
        draw_floor(ax, 1e3 * floor_s[dtype], text=f"at least {1e3 * floor_s[dtype]:.1f} ms")
        label_rows(ax, [way if way in shown else UNKNOWN for way in ways])
        ax.set_ylim(len(ways) - 0.5, -1.35)
        if solved:
            decade_axis(ax.xaxis)
            ax.set_xlim(0.5e3 * floor_s[dtype], 6e3 * most)
        else:
            ax.set_xlim(0, 1.4e3 * most)
        ax.set_xlabel(f"ms per layer, {dtype}{' (logarithmic axis)' * solved}")
        ax.grid(axis="x")
    return figure


@mpl.rc_context(STYLE)
def plot_row_times(
    rows: Sequence[int],
    runs_s: Mapping[str, np.ndarray],
    head_by_head_s: Mapping[str, np.ndarray],
    predicted_s: Mapping[str, float],
    *,
    group_size: int = 4,
) -> Figure:
    """Draw how long the same keys take with more and more queries as rows, and a group's queries one by one.

    Args:
        rows: (n,) queries per KV head.
        runs_s: format -> (n, rounds) seconds; a dot is the median, its bar runs from the fastest to the slowest. A
            panel for each format.
        head_by_head_s: format -> (rounds,) seconds for `group_size` queries per KV head, one by one.
        predicted_s: format -> the seconds that these take if each query takes as long as one row; a hollow dot beside
            them.
    """
    runs_s = {name: as_positive("runs_s", runs, (len(rows), np.shape(runs)[1])) for name, runs in runs_s.items()}
    figure, axes = new_figure(columns=len(runs_s), height_in=3.2)
    for ax, (dtype, runs) in zip(axes[0], runs_s.items(), strict=True):
        apart = 1e3 * as_positive("head_by_head_s", head_by_head_s[dtype], np.shape(head_by_head_s[dtype]))
        low, middle, high = bounds = 1e3 * np.array([runs.min(axis=1), np.median(runs, axis=1), runs.max(axis=1)])
        draw_intervals(ax, rows, bounds, look="o-", colour=MEASURED)
        predicted = 1e3 * predicted_s[dtype]
        places = group_size / 1.06, group_size * 1.06  # side by side, so that they do not cover each other
        draw_predicted(ax, places[0], predicted)
        spread = np.array([[apart.min()], [np.median(apart)], [apart.max()]])
        draw_intervals(ax, places[1:], spread, look="s", colour=QUIET)
        write_beside(ax, f"{group_size} × one row", (places[0], predicted), shift=(-8, 0), ha="right")
        write_beside(ax, "one by one", (places[1], spread[1, 0]), shift=(9, 0), ha="left").set_color(QUIET)
        write_beside(ax, "as rows", (rows[-1], middle[-1]), shift=(9, 0), ha="left").set_color(MEASURED)
        doubling_axis(ax, rows)
        ax.set_xlim(0.8 * min(rows), 1.9 * max(rows))
        ax.set_ylim(0, 1.15 * max(high.max(), apart.max(), predicted))
        ax.set_xlabel(f"queries per KV head, {dtype}")
        ax.grid()
    axes[0, 0].set_ylabel("ms per layer")
    return figure


@mpl.rc_context(STYLE)
def plot_intervals(
    means: np.ndarray, lows: np.ndarray, highs: np.ndarray, *, names: Sequence[str], unit: str, ax: Axes | None = None
) -> Axes:
    """Draw a mean with its interval for each of several models, the first on top.

    Args:
        means, lows, highs: (models,), in `unit`; the axis starts at 0.
        names: of the models.
        unit: the label of the axis.
    """
    lows, means, highs = bounds = as_amount_intervals(lows, means, highs, (len(names),))
    ax = axes_or_new(ax, height_in=0.9 + 0.4 * len(names))
    rows = np.arange(len(names))
    ax.hlines(rows, 0, means, color=FADED, linewidth=3, zorder=1)
    draw_intervals(ax, rows, bounds, look="o", colour=MEASURED, level=True, capsize=4)
    for row, mean, high in zip(rows, means, highs, strict=True):
        write_beside(ax, f"{mean:.2f}", (high, row), shift=(7, 0), ha="left")
    label_rows(ax, names)
    ax.set_xlim(0, 1.12 * highs.max())
    ax.set_xlabel(unit)
    ax.grid(axis="x")
    return ax
