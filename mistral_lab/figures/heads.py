"""Pictures of attention heads: who shares keys and values, where they look, and their cost in memory, time and loss."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from .arrays import as_amount_intervals, as_amounts, as_intervals, as_positive
from .canvas import axes_or_new
from .marks import draw_interval_series, draw_intervals, label_rows, write_beside
from .style import (
    COLOURS,
    FADED,
    INK,
    MEASURED,
    PREDICTED,
    STYLE,
    doubling_axis,
    hide_frame,
    legend_above,
    readable_on,
)

SCHEME_COLOURS = {"multi-head": COLOURS[2], "grouped-query": COLOURS[4], "multi-query": COLOURS[8]}
# The first is the colour of "measured" in every lesson; the last reads as much as multi-head attention does.
WAY_COLOURS = (MEASURED, COLOURS[5], SCHEME_COLOURS["multi-head"])


@mpl.rc_context(STYLE)
def plot_head_groups(shared: np.ndarray, *, scheme: str, ax: Axes | None = None) -> Axes:
    """Draw which query head reads which key and value head.

    Args:
        shared: (H,) whole numbers; query head h reads key and value head `shared[h]`, and each of 0 ... K - 1 is read.
        scheme: "multi-head", "grouped-query" or "multi-query"; it is the title and decides the colour.
    """
    shared = np.asarray(shared)
    if shared.ndim != 1 or not np.array_equal(np.unique(shared), np.arange(shared.max(initial=0) + 1)):
        raise ValueError(f"shared is {shared.tolist()}: expected (H,) numbers that use each of 0 ... K - 1")
    colour = _scheme_colour(scheme)
    ax = axes_or_new(ax, height_in=2.2)
    heads, targets = np.arange(len(shared)), np.arange(shared.max() + 1)
    places = np.bincount(shared, weights=heads) / np.bincount(shared)  # each in the middle of its group
    for head, target in enumerate(shared):
        ax.plot([head, places[target]], [1, 0], color=colour, linewidth=2, zorder=1)
    # All heads of a kind at once: one call per head would take most of a drawing's time.
    size = min(230, 5500 / len(shared))
    ax.scatter(heads, np.ones(len(heads)), s=size, color="white", edgecolor=INK, zorder=2)
    ax.scatter(places, np.zeros(len(places)), s=size, marker="s", color=colour, edgecolor=INK, zorder=2)
    middle = {"ha": "center", "va": "center", "fontsize": 9}
    for head in heads:
        ax.text(head, 1, str(head), **middle)
    for target, place in zip(targets, places, strict=True):
        ax.text(place, 0, str(target), color=readable_on(colour), **middle)
    ax.set_yticks([1, 0], ["query\nheads", "key and\nvalue heads"])
    ax.set_xticks([])
    ax.set_xlim(-0.7, len(shared) - 0.3)
    ax.set_ylim(-0.4, 1.4)
    hide_frame(ax)
    ax.set_title(scheme)
    return ax


@mpl.rc_context(STYLE)
def plot_head_weights(
    weights: np.ndarray, *, shared: np.ndarray, tokens: Sequence[str], title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw how much each query head looks at each token: one row per head, with a line between groups.

    Args:
        weights: (H, S) attention weights of one query token, each row from 0 to 1.
        shared: (H,) whole numbers; query head h reads key and value head `shared[h]`.
        tokens: (S,) text of each token.
        title: whose weights these are.
    """
    weights, shared = np.asarray(weights, float), np.asarray(shared)
    if weights.shape != (len(shared), len(tokens)):
        raise ValueError(f"weights has shape {weights.shape}: expected ({len(shared)}, {len(tokens)}), heads by tokens")
    if not ((weights >= 0) & (weights <= 1)).all():
        raise ValueError("a weight is NaN or lies outside 0 to 1: an attention weight is a share")
    ax = axes_or_new(ax, height_in=1.5 + 0.24 * len(shared) + 0.4)
    image = ax.imshow(weights, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    for row in np.flatnonzero(np.diff(shared)):
        ax.axhline(row + 0.5, color="white", linewidth=3)
    ax.set_yticks(range(len(shared)), [f"query head {head} (KV head {target})" for head, target in enumerate(shared)])
    look = {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "parse_math": False}
    ax.set_xticks(range(len(tokens)), tokens, **look)
    hide_frame(ax)
    ax.set_title(title)
    ax.figure.colorbar(image, ax=ax, label="weight", pad=0.02)
    return ax


@mpl.rc_context(STYLE)
def plot_token_bytes(
    as_built: np.ndarray,
    multi_head: np.ndarray,
    *,
    models: Sequence[str],
    schemes: Sequence[str],
    ax: Axes | None = None,
) -> Axes:
    """Draw the cache that one token takes in each model, beside what it would take without shared heads.

    Args:
        as_built: (models,) bytes per token.
        multi_head: (models,) bytes per token if every query head had its own keys and values.
        models: name of each model, the first on top.
        schemes: "multi-head", "grouped-query" or "multi-query": how each model is built.
    """
    as_built, multi_head = as_amounts(as_built, (len(models),)), as_amounts(multi_head, (len(models),))
    if len(schemes) != len(models):
        raise ValueError(f"{len(schemes)} schemes for {len(models)} models: expected one for each")
    colours = [_scheme_colour(scheme) for scheme in schemes]
    ax = axes_or_new(ax, height_in=1.1 + 0.55 * len(models))
    rows = np.arange(len(models))
    named = [f"as built: {scheme}" if scheme not in schemes[:row] else "_" for row, scheme in enumerate(schemes)]
    would = {"facecolor": "white", "edgecolor": SCHEME_COLOURS["multi-head"], "hatch": "////", "label": "if multi-head"}
    for amounts, offset, look in (
        (as_built, -0.2, {"color": colours, "label": named}),
        (multi_head, 0.2, would),
    ):
        bars = ax.barh(rows + offset, amounts / 2**10, height=0.36, **look)
        ax.bar_label(bars, [f"{amount / 2**10:,.0f}" for amount in amounts], padding=3, fontsize=9)
    ax.set_yticks(rows, models)
    ax.invert_yaxis()
    ax.margins(x=0.08)
    ax.set_xlabel("KiB of cache per token, 16 bits per value")
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    legend_above(ax, columns=3)
    return ax


@mpl.rc_context(STYLE)
def plot_context(
    tokens: np.ndarray,
    memory_bytes: np.ndarray,
    *,
    schemes: Sequence[str],
    longest: np.ndarray,
    limit_bytes: float,
    title: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw the memory of weights and cache against the length of the text, and where it reaches the limit.

    Args:
        tokens: (n,) lengths.
        memory_bytes: (schemes, n), weights included.
        schemes: "multi-head", "grouped-query" or "multi-query", one for each line.
        longest: (schemes,) the most tokens that fit.
        limit_bytes: what there is.
        title: which weights.
    """
    memory_bytes, longest = np.asarray(memory_bytes, float), np.asarray(longest, float)
    if memory_bytes.shape != (len(schemes), len(tokens)) or longest.shape != (len(schemes),):
        raise ValueError(
            f"memory_bytes has shape {memory_bytes.shape} and longest {longest.shape}: "
            f"expected ({len(schemes)}, {len(tokens)}) and ({len(schemes)},)"
        )
    ax = axes_or_new(ax, height_in=3.2)
    ax.axhline(limit_bytes / 2**30, color=INK, linewidth=1, linestyle=":", label=f"{limit_bytes / 2**30:g} GiB")
    for scheme, line, most in zip(schemes, memory_bytes, longest, strict=True):
        colour = _scheme_colour(scheme)
        ax.plot(np.asarray(tokens) / 1e3, line / 2**30, color=colour, linewidth=2, label=scheme)
        ax.scatter(most / 1e3, limit_bytes / 2**30, s=50, color=colour, edgecolor=INK, zorder=3)
        beside = {"shift": (8, -4), "ha": "left", "va": "top"}  # the line comes from below left, and goes on upwards
        write_beside(ax, f"{most / 1e3:,.0f}", (most / 1e3, limit_bytes / 2**30), fontsize=9.5, **beside)
    ax.set_ylim(0, 1.25 * limit_bytes / 2**30)
    ax.set_xlim(0, np.max(tokens) / 1e3)
    ax.set_xlabel("thousand tokens of text")
    ax.set_ylabel("GiB, weights and cache")
    ax.grid()
    ax.set_title(title)
    ax.legend(loc="lower right")
    return ax


@mpl.rc_context(STYLE)
def plot_decode(
    n_kv_heads: Sequence[int],
    lowest_s: np.ndarray,
    median_s: np.ndarray,
    highest_s: np.ndarray,
    *,
    ways: Sequence[str],
    predicted_s: np.ndarray,
    ax: Axes | None = None,
) -> Axes:
    """Draw the time of attention for one new token against the number of key and value heads, both axes logarithmic.

    Args:
        n_kv_heads: (n,) key and value heads.
        lowest_s, median_s, highest_s: (ways, n) seconds over the runs; a bar spans lowest to highest.
        ways: name of each way of computing it, at most three.
        predicted_s: (n,) seconds.
    """
    shape = (len(ways), len(n_kv_heads))
    lowest_s, median_s, highest_s = (
        as_positive(name, seconds, shape)
        for name, seconds in (("lowest_s", lowest_s), ("median_s", median_s), ("highest_s", highest_s))
    )
    bounds_s = as_intervals(lowest_s, median_s, highest_s, of="median")
    predicted_s = as_positive("predicted_s", predicted_s, shape[1:])
    ax = axes_or_new(ax, height_in=3.8)
    predicted = {"color": PREDICTED, "markeredgecolor": INK, "label": "predicted: the least", "zorder": 4}
    ax.plot(n_kv_heads, predicted_s * 1e3, "D--", **predicted)
    names, looks = [f"measured: {way}" for way in ways], ["o-"] * len(ways)
    draw_interval_series(ax, n_kv_heads, 1e3 * bounds_s, names=names, looks=looks, colours=WAY_COLOURS)
    doubling_axis(ax, n_kv_heads)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("key and value heads K (logarithmic axis)")
    ax.set_ylabel("milliseconds (logarithmic axis)")
    ax.grid()
    legend_above(ax, columns=2)
    return ax


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


def _scheme_colour(scheme: str) -> str:
    if scheme not in SCHEME_COLOURS:
        raise ValueError(f"scheme is {scheme!r}: expected one of {', '.join(SCHEME_COLOURS)}")
    return SCHEME_COLOURS[scheme]
