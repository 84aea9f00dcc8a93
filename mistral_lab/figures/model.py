"""Pictures of a whole model: its parameters, its next token and what each layer would answer, its time."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from .arrays import as_amounts, as_positive
from .canvas import axes_or_new
from .marks import label_rows, write_beside
from .style import COLOURS, FADED, INK, MEASURED, PREDICTED, STYLE, decade_axis, legend_above, readable_on
from .tokens import drawable, quoted

NARROW = 0.06  # of the axis: a narrower segment has no room for its number


@mpl.rc_context(STYLE)
def plot_parameters(
    amounts: np.ndarray, *, models: Sequence[str], parts: Sequence[str], unit: str, ax: Axes | None = None
) -> Axes:
    """Draw what models are made of: one bar per model, one segment per part.

    Args:
        amounts: (models, parts), in `unit`; 0 where a model lacks a part.
        models: name of each bar, the first on top.
        parts: name of each segment, from the left.
        unit: the label of the axis, such as "billion parameters".
    """
    amounts = as_amounts(amounts, (len(models), len(parts)))
    ax = axes_or_new(ax, height_in=1.4 + 0.7 * len(models))
    wide = NARROW * amounts.sum(axis=1).max()
    start = np.zeros(len(models))
    for part, amount, colour in zip(parts, amounts.T, COLOURS[: len(parts)], strict=True):
        bars = ax.barh(
            models, amount, left=start, height=0.62, color=colour, edgecolor="white", linewidth=0.5, label=part
        )
        numbers = [f"{value:.3g}" if value > wide else "" for value in amount]
        ax.bar_label(bars, numbers, label_type="center", color=readable_on(colour))
        start += amount
    ax.invert_yaxis()
    ax.set_xlim(0, 1.02 * start.max())
    ax.set_xlabel(unit)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    legend_above(ax, columns=min(len(parts), 3))
    return ax


def keep_numbers_readable(ax: Axes, *, narrow: float) -> None:
    """Keep the numbers in stacked bars readable where lines cross them, and leave out those that have no room.

    Args:
        ax: of `plot_parameters` or `plot_budget`.
        narrow: a segment of a smaller share of the axis has no room for its number.
    """
    bars = [bar for container in ax.containers for bar in container]
    for bar, number in zip(bars, ax.texts, strict=True):
        if bar.get_width() < narrow * ax.get_xlim()[1]:
            number.set_text("")
        elif number.get_text():
            number.set_bbox({"facecolor": bar.get_facecolor(), "edgecolor": "none", "pad": 1})


@mpl.rc_context(STYLE)
def plot_next_tokens(
    probabilities: np.ndarray,
    *,
    tokens: Sequence[str],
    kept: np.ndarray | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw the probability of each candidate for the next token.

    Args:
        probabilities: (tokens,), the first on top.
        tokens: the text of each candidate. It is drawn in quotes, with what the font cannot draw as escapes.
        kept: (tokens,) bool, False for candidates that a filter takes out: they are drawn grey and hatched.
        title: what was done to the distribution.
    """
    probabilities = as_amounts(probabilities, (len(tokens),))
    label = "probability" if kept is None else "probability\n(hatched: left out)"
    kept = np.ones(len(tokens), bool) if kept is None else np.asarray(kept, bool)
    if kept.shape != probabilities.shape:
        raise ValueError(f"kept has shape {kept.shape}: expected {probabilities.shape}, one for each token")
    ax = axes_or_new(ax, height_in=0.9 + 0.26 * len(tokens))
    rows = np.arange(len(tokens))
    for chosen, look in (
        (kept, {"color": COLOURS[0]}),
        (~kept, {"facecolor": FADED, "edgecolor": "#8c8c8c", "hatch": "////", "linewidth": 0}),
    ):
        if chosen.any():
            bars = ax.barh(rows[chosen], probabilities[chosen], height=0.74, **look)
            ax.bar_label(bars, [f"{value:.2f}" for value in probabilities[chosen]], padding=3, fontsize=9)
    label_rows(ax, [quoted(token) for token in tokens], room=0.6)
    for name in ax.get_yticklabels():
        name.set_parse_math(False)  # a token may hold dollar signs
    ax.set_xlim(0, max(ax.get_xlim()[1], 1.25 * probabilities.max()))  # room for the number beside the longest bar
    ax.set_xlabel(label)
    ax.set_title(title)
    return ax


@mpl.rc_context(STYLE)
def plot_guesses(
    probabilities: np.ndarray, *, guesses: Sequence[str], names: Sequence[str], same: np.ndarray, ax: Axes
) -> Axes:
    """Draw the likeliest token at each depth as a bar with its text, in grey where the last depth has another one.

    Args:
        probabilities: (depths,), of each guess.
        guesses: its text.
        names: of the depths, the first on top.
        same: (depths,) bool, where the guess is that of the last depth.
    """
    probabilities = as_amounts(probabilities, (len(names),))
    same = np.asarray(same)
    if len(guesses) != len(names) or same.shape != (len(names),) or same.dtype != bool:
        raise ValueError(
            f"{len(guesses)} guesses, same has shape {same.shape} in {same.dtype}: expected a guess and a bool for "
            f"each of {len(names)} depths"
        )
    ax.barh(range(len(names)), probabilities, color=[COLOURS[0] if equal else FADED for equal in same], height=0.74)
    for row, (probability, guess) in enumerate(zip(probabilities, guesses, strict=True)):
        text = write_beside(ax, f"{drawable(guess)}  {probability:.2f}", (probability, row), shift=(5, 0), ha="left")
        text.set_parse_math(False)
    label_rows(ax, names, room=0.6)
    ax.set_xlim(0, 1.45)  # room for the text beside the longest bar
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.spines["bottom"].set_bounds(0, 1)  # a probability is never more
    ax.set_xlabel("probability of the likeliest next token (grey: not the final answer)")
    return ax


@mpl.rc_context(STYLE)
def plot_times(
    measured_s: np.ndarray,
    predicted_s: np.ndarray,
    *,
    tasks: Sequence[str],
    expected: str = "predicted",
    ax: Axes | None = None,
) -> Axes:
    """Draw measured times beside predicted ones, on a logarithmic axis.

    Args:
        measured_s: (tasks,) seconds; NaN where nothing was measured, which leaves the prediction alone.
        predicted_s: (tasks,) seconds; NaN where nothing was predicted.
        tasks: what took that long, the first on top.
        expected: what the legend calls `predicted_s`; "at least" where it is a floor.
    """
    measured_s = as_positive("measured_s", measured_s, (len(tasks),), gaps=True)
    predicted_s = as_positive("predicted_s", predicted_s, (len(tasks),), gaps=True)
    ax = axes_or_new(ax, height_in=1.2 + 0.55 * len(tasks))
    rows = np.arange(len(tasks))
    ax.hlines(rows, predicted_s * 1e3, measured_s * 1e3, color=FADED, linewidth=3, zorder=1)
    for seconds, colour, marker, label, side in (
        (predicted_s, PREDICTED, "D", expected, "below"),
        (measured_s, MEASURED, "o", "measured", "above"),
    ):
        ax.scatter(seconds * 1e3, rows, s=60, color=colour, edgecolor=INK, marker=marker, label=label)
        beside = {"shift": (0, 7), "va": "bottom"} if side == "above" else {"shift": (0, -7), "va": "top"}
        for row, value in zip(rows, seconds, strict=True):
            if not np.isnan(value):
                write_beside(ax, _milliseconds(value), (value * 1e3, row), **beside)
    decade_axis(ax.xaxis)
    ax.margins(x=0.12)
    label_rows(ax, tasks, room=0.6)
    ax.set_xlabel("milliseconds (logarithmic axis)")
    ax.grid(axis="x")
    legend_above(ax, columns=2)
    return ax


def _milliseconds(seconds: float) -> str:
    milliseconds = seconds * 1e3
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.2g} ms"
