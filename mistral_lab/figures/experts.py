"""Pictures of a mixture: a token's route, experts touched by a batch, loads, repeated choices, balance."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from .arrays import as_amounts, as_finite, as_intervals
from .canvas import axes_or_new
from .language import EXPERTS, QUIET, by_depth, draw_expert, draw_link, draw_token, write
from .marks import draw_interval_series, draw_percent_map, label_rows, write_beside
from .style import FADED, INK, MEASURED, PREDICTED, SERIES, STYLE, doubling_axis, legend_above
from .tokens import drawable

LAYER_MARKS = "osv^"


@mpl.rc_context(STYLE)
def plot_route(
    logits: np.ndarray, *, chosen: Sequence[int], weights: Sequence[float], title: str, ax: Axes | None = None
) -> Axes:
    """Draw the logits of one token's router, each chosen expert in its hue and with its weight.

    Args:
        logits: (E,), of any sign.
        chosen: (A,) experts.
        weights: (A,) of the chosen.
        title: which token.
    """
    logits = np.asarray(logits, float)
    if logits.ndim != 1 or not np.isfinite(logits).all() or len(chosen) != len(weights):
        raise ValueError(
            f"logits has shape {logits.shape}, with {len(chosen)} experts chosen and {len(weights)} weights: "
            "expected finite (E,), and a weight for each chosen expert"
        )
    ax = axes_or_new(ax, height_in=3.0)
    ax.bar(range(len(logits)), logits, color=[_hue(e) if e in chosen else FADED for e in range(len(logits))])
    for expert, weight in zip(chosen, weights, strict=True):
        write_beside(ax, f"weight {weight:.2f}", (expert, max(logits[expert], 0)), shift=(0, 4), va="bottom")
    ax.axhline(0, color=INK, linewidth=0.8)
    ax.margins(y=0.16)
    ax.set_xticks(range(len(logits)))
    ax.set_xlim(-0.6, len(logits) - 0.4)  # as the doors of `plot_way`, which may stand above
    ax.set_xlabel("expert (in colour: chosen)")
    ax.set_ylabel("router logit")
    ax.set_title(title)
    return ax


@mpl.rc_context(STYLE)
def plot_way(
    token: str, *, chosen: Sequence[int], weights: Sequence[float], experts: int, ax: Axes | None = None
) -> Axes:
    """Draw a token's way to the doors of its chosen experts, and from there to the sum of their answers.

    Args:
        token: its text.
        chosen: (A,) experts.
        weights: (A,) of the chosen, the width of their lines.
        experts: E; those that are not chosen are idle.
    """
    if len(chosen) != len(weights) or not set(chosen) <= set(range(experts)):
        raise ValueError(
            f"chosen is {list(chosen)} with {len(weights)} weights: expected experts below {experts}, a weight for each"
        )
    ax = axes_or_new(ax, height_in=3.0)
    middle = (experts - 1) / 2
    for expert in range(experts):
        draw_expert(ax, expert, 1.6, expert, width=0.62, height=0.9, state="now" if expert in chosen else "idle")
    for expert, weight in zip(chosen, weights, strict=True):
        line = {"colour": _hue(expert), "width": 1 + 7 * weight, "curved": True}
        draw_link(ax, (middle, 3.3), (expert, 2.05), **line)
        draw_link(ax, (expert, 1.15), (middle, -0.1), **line)
        outward = -1 if expert < middle else 1  # away from where the line bends to
        write(ax, expert + outward * 0.14, 0.85, f"× {weight:.2f}", ha="right" if outward < 0 else "left")
    draw_token(ax, middle, 3.55, drawable(token), width=1.3, state="now")
    draw_token(ax, middle, -0.35, "sum", width=1.3)
    write(ax, middle + 0.8, 3.55, "the router picks its doors", ha="left", colour=QUIET)
    write(ax, middle + 0.8, -0.35, "of their answers, times the weights", ha="left", colour=QUIET)
    ax.set_xlim(-0.6, experts - 0.4)
    ax.set_ylim(-0.7, 3.9)
    ax.axis("off")
    return ax


@mpl.rc_context(STYLE)
def plot_touched(
    tokens: Sequence[int], measured: np.ndarray, predicted: np.ndarray, *, experts: int, ax: Axes | None = None
) -> Axes:
    """Draw how many experts of a layer a batch reads: measured (solid) and predicted (hollow).

    Args:
        tokens: (n,) in the batch.
        measured, predicted: (n,) experts.
        experts: in the layer.
    """
    measured, predicted = (as_amounts(values, (len(tokens),)) for values in (measured, predicted))
    ax = axes_or_new(ax, height_in=3.0)
    ax.axhline(experts, color=INK, linewidth=1, linestyle=":")
    ax.plot(tokens, predicted, label="predicted, if tokens chose at random", **_HOLLOW_MARK, markersize=11)
    ax.plot(tokens, measured, "o-", color=MEASURED, label="measured")
    doubling_axis(ax, tokens)
    ax.set_ylim(0, 1.08 * experts)
    ax.set_xlabel("tokens in the batch (logarithmic axis)")
    ax.set_ylabel("experts read in a layer")
    ax.grid()
    legend_above(ax, columns=2)
    return ax


@mpl.rc_context(STYLE)
def plot_fewer(
    tokens: Sequence[int],
    lows: np.ndarray,
    means: np.ndarray,
    highs: np.ndarray,
    *,
    names: Sequence[str],
    title: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw how many experts fewer a batch reads than another one, layer by layer, with intervals about a line at 0.

    Args:
        tokens: (n,) in the batch.
        lows, means, highs: (layers, n) experts, of any sign.
        names: of the layers, at most four, the first one the palest.
        title: than which batch.
    """
    lows, means, highs = (as_finite(values, (len(names), len(tokens))) for values in (lows, means, highs))
    bounds = as_intervals(lows, means, highs)
    ax = axes_or_new(ax, height_in=3.0)
    ax.axhline(0, color=INK, linewidth=1)
    looks = [f"{mark}-" for mark in LAYER_MARKS[: len(names)]]
    draw_interval_series(ax, tokens, bounds, names=names, looks=looks, colours=by_depth(len(names)))
    doubling_axis(ax, tokens)
    ax.set_xlabel("tokens in the batch (logarithmic axis)")
    ax.set_ylabel("experts fewer")
    ax.grid(axis="y")
    ax.set_title(title, pad=38)  # the legend stands between, in two rows
    legend_above(ax, columns=2)
    return ax


@mpl.rc_context(STYLE)
def plot_load_map(
    loads: np.ndarray,
    *,
    names: Sequence[str],
    title: str,
    even: float,
    most: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw shares of the assignments in per cent as a map: a row per kind of text, a column per expert.

    A share above the even one is teal, one below it grey, and the colour deepens with the distance.

    Args:
        loads: (rows, E) shares.
        names: of the rows.
        title: which layer.
        even: the share where all experts carry the same; it is white.
        most: the share with the last colour, so that panels can agree; None takes what is farthest from even here.
    """
    loads = np.asarray(loads, float)
    loads = as_amounts(loads, (len(names), loads.shape[-1] if loads.ndim else 0))
    ax = axes_or_new(ax, height_in=1.2 + 0.35 * len(names))
    draw_percent_map(ax, loads, about=even, most=most)
    ax.set_xticks(range(loads.shape[1]))
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("expert (number: % of assignments)")
    ax.set_title(title)
    return ax


@mpl.rc_context(STYLE)
def plot_load_bars(load: np.ndarray, *, ax: Axes) -> Axes:
    """Draw the share of the assignments that each expert gets, in its hue, beside the share if all were even.

    It shows one row of `plot_load_map` in the colours of `plot_coloured_tokens`, beside which it stands.

    Args:
        load: (E,) shares.
    """
    load = as_amounts(load, np.shape(load))
    colours = [_hue(expert) for expert in range(len(load))]
    bars = ax.barh(range(len(load)), 100 * load, color=colours, height=0.74)
    ax.axvline(100 / len(load), color=INK, linewidth=1, linestyle=":")
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # or the line would cross out the numbers
    ax.bar_label(bars, [f"{100 * share:.0f}" for share in load], padding=4, fontsize=9, bbox=paper)
    label_rows(ax, [f"expert {expert}" for expert in range(len(load))], room=0.6)
    ax.tick_params(axis="y", labelsize=9)
    ax.set_xlim(0, 1.25 * 100 * max(load.max(), 1 / len(load)))
    ax.set_xlabel("load, % (dotted: even)")
    return ax


@mpl.rc_context(STYLE)
def plot_repeats(
    rates: Sequence[np.ndarray],
    shuffled: Sequence[np.ndarray | None],
    *,
    names: Sequence[str],
    uniform: float,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often the next token takes the same expert: a row per layer, a dot per subject, beside its own chance.

    Args:
        rates: for each row (subjects,) shares; their number may differ.
        shuffled: for each row (subjects,) shares after shuffling, drawn hollow; None where they are not known.
        names: of the rows, the first on top.
        uniform: the share under uniform choice.
    """
    if len(rates) != len(names) or len(shuffled) != len(names):
        raise ValueError(
            f"{len(rates)} rows of rates, {len(shuffled)} of shuffled: expected {len(names)} of each, as names"
        )
    rates = [as_amounts(row, (len(row),)) for row in rates]
    shuffled = [
        None if chance is None else as_amounts(chance, row.shape) for chance, row in zip(shuffled, rates, strict=True)
    ]
    ax = axes_or_new(ax, height_in=1.0 + 0.5 * len(names))
    ax.axvline(100 * uniform, color=INK, linewidth=1.5, linestyle=":", label="uniform choice")
    for row, (values, chance) in enumerate(zip(rates, shuffled, strict=True)):
        places = np.full(len(values), float(row))
        if chance is not None:
            places += np.linspace(-0.33, 0.33, len(values)) if len(values) > 1 else 0.0
            ax.hlines(places, 100 * chance, 100 * values, color=FADED, linewidth=2, zorder=1)
            ax.plot(100 * chance, places, **_HOLLOW_MARK, markersize=5)
        ax.plot(100 * values, places, "o", color=MEASURED, markersize=5)
    ax.plot([], [], "o", color=MEASURED, markersize=5, label="measured")
    ax.plot([], [], label="the same tokens shuffled", **_HOLLOW_MARK, markersize=5)
    label_rows(ax, names)
    ax.set_xlim(0, 1.06 * 100 * max(values.max() for values in rates))
    ax.set_xlabel("next token has the same first choice, %")
    ax.grid(axis="x")
    legend_above(ax, columns=3)
    return ax


@mpl.rc_context(STYLE)
def plot_balance(
    steps: Sequence[int],
    smallest: np.ndarray,
    largest: np.ndarray,
    *,
    names: Sequence[str],
    even: float,
    ax: Axes | None = None,
) -> Axes:
    """Draw the smallest and the largest share of any expert along two trainings.

    Args:
        steps: (n,) of training.
        smallest, largest: (trainings, n) shares of a layer's assignments.
        names: of the trainings, at most two.
        even: the share where all experts carry the same.
    """
    smallest, largest = (as_amounts(values, (len(names), len(steps))) for values in (smallest, largest))
    ax = axes_or_new(ax, height_in=3.2)
    looks = list(zip(SERIES, "os", strict=False))[: len(names)]
    for low, high, name, (colour, marker) in zip(smallest, largest, names, looks, strict=True):
        look = {"color": colour, "marker": marker, "markersize": 4}
        ax.plot(steps, 100 * high, label=name, **look)
        ax.plot(steps, 100 * low, **look)
    ax.axhline(100 * even, color=INK, linewidth=1, linestyle=":", label="even")
    ax.set_ylim(0, 106 * largest.max())
    ax.set_xlabel("training step")
    ax.set_ylabel("smallest and largest load, %")
    ax.grid(axis="y")
    legend_above(ax, columns=3)
    return ax


def _hue(expert: int) -> str:
    return EXPERTS[expert % len(EXPERTS)]


_HOLLOW_MARK = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": PREDICTED, "linestyle": "none"}
