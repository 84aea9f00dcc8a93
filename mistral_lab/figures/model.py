"""Pictures of a whole model: its parameters, its next token, its time."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import findfont, get_font

from .style import (
    COLOURS,
    FADED,
    INK,
    MEASURED,
    PREDICTED,
    STYLE,
    as_amounts,
    decade_axis,
    legend_above,
    new_figure,
    readable_on,
)

NARROW = 0.06  # of the axis: a narrower segment has no room for its number


@mpl.rc_context(STYLE)
def plot_parameters(
    amounts: np.ndarray, *, models: Sequence[str], parts: Sequence[str], unit: str, ax: Axes | None = None
) -> Axes:
    """Draw what a model is made of: one bar a model, one segment a part.

    Args:
        amounts: (models, parts), in `unit`; 0 where a model lacks a part.
        models: name of each bar, the first on top.
        parts: name of each segment, from the left.
        unit: the label of the axis, such as "billion parameters".
    """
    amounts = as_amounts(amounts, (len(models), len(parts)))
    ax = new_figure(height_in=1.4 + 0.7 * len(models))[1][0, 0] if ax is None else ax
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
    ax = new_figure(height_in=0.9 + 0.26 * len(tokens))[1][0, 0] if ax is None else ax
    rows = np.arange(len(tokens))
    for chosen, look in (
        (kept, {"color": COLOURS[0]}),
        (~kept, {"facecolor": FADED, "edgecolor": "#8c8c8c", "hatch": "////", "linewidth": 0}),
    ):
        if chosen.any():
            bars = ax.barh(rows[chosen], probabilities[chosen], height=0.74, **look)
            ax.bar_label(bars, [f"{value:.2f}" for value in probabilities[chosen]], padding=3, fontsize=9)
    ax.set_yticks(rows, [_quoted(token) for token in tokens], parse_math=False)
    ax.set_ylim(len(tokens) - 0.4, -0.6)
    ax.set_xlim(0, max(ax.get_xlim()[1], 1.25 * probabilities.max()))  # room for the number beside the longest bar
    ax.set_xlabel(label)
    ax.set_title(title)
    ax.tick_params(axis="y", length=0)
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
        predicted_s: (tasks,) seconds.
        tasks: what took that long, the first on top.
        expected: what the legend calls `predicted_s`; "at least" where it is a floor.
    """
    measured_s, predicted_s = np.asarray(measured_s, float), np.asarray(predicted_s, float)
    for name, seconds in (("measured_s", measured_s), ("predicted_s", predicted_s)):
        if seconds.shape != (len(tasks),):
            raise ValueError(f"{name} has shape {seconds.shape}: expected ({len(tasks)},), one for each task")
        if (seconds <= 0).any() or np.isinf(seconds).any():
            raise ValueError(f"{name} is {seconds}: expected seconds above 0, a logarithmic axis has no other place")
    ax = new_figure(height_in=1.2 + 0.55 * len(tasks))[1][0, 0] if ax is None else ax
    rows = np.arange(len(tasks))
    ax.hlines(rows, predicted_s * 1e3, measured_s * 1e3, color=FADED, linewidth=3, zorder=1)
    for seconds, colour, marker, label, above in (
        (predicted_s, PREDICTED, "D", expected, -1),
        (measured_s, MEASURED, "o", "measured", 1),
    ):
        ax.scatter(seconds * 1e3, rows, s=60, color=colour, edgecolor=INK, marker=marker, label=label)
        for row, value in zip(rows, seconds, strict=True):
            if not np.isnan(value):
                ax.annotate(
                    _milliseconds(value),
                    (value * 1e3, row),
                    xytext=(0, 7 * above),
                    textcoords="offset points",
                    ha="center",
                    va="bottom" if above > 0 else "top",
                    fontsize=9,
                )
    decade_axis(ax.xaxis)
    ax.margins(x=0.12)
    ax.set_yticks(rows, tasks)
    ax.set_ylim(len(tasks) - 0.4, -0.6)
    ax.set_xlabel("milliseconds (logarithmic axis)")
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    legend_above(ax, columns=2)
    return ax


def _quoted(text: str) -> str:
    glyphs = get_font(findfont(STYLE["font.family"])).get_charmap()
    letters = (letter if ord(letter) in glyphs else letter.encode("unicode_escape").decode() for letter in repr(text))
    return "".join(letters)


def _milliseconds(seconds: float) -> str:
    milliseconds = seconds * 1e3
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.2g} ms"
