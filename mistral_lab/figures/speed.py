"""Pictures of times: a token beside what it takes at least, passes with more tokens, models with fewer layers."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from .arrays import as_positive
from .canvas import axes_or_new
from .language import FLOOR, draw_guess
from .marks import label_rows, write_beside
from .style import FADED, INK, MEASURED, PREDICTED, STYLE, decade_axis, doubling_axis, legend_above


@mpl.rc_context(STYLE)
def plot_times(
    measured_s: np.ndarray,
    predicted_s: np.ndarray,
    *,
    tasks: Sequence[str],
    expected: str = "predicted",
    guess_s: float | None = None,
    guess_label: str = "a guess",
    runs_s: Sequence[Sequence[float]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw measured times beside predicted ones, on a logarithmic axis, or from 0 on where all lie within a decade.

    Args:
        measured_s: (tasks,) seconds; NaN where nothing was measured, which leaves the prediction alone.
        predicted_s: (tasks,) seconds; NaN where nothing was predicted.
        tasks: what took that long, the first on top.
        expected: what the prediction is called; "at least" draws it as a limit, an upright line in its row.
        guess_s: seconds, where a flag stands in the first row; None draws none.
        guess_label: what is written at the flag.
        runs_s: of each task the seconds of its runs, the fastest and the slowest of which are the ends of a thin bar.
    """
    measured_s = as_positive("measured_s", measured_s, (len(tasks),), gaps=True)
    predicted_s = as_positive("predicted_s", predicted_s, (len(tasks),), gaps=True)
    guessed = guess_s is not None
    ax = axes_or_new(ax, height_in=(1.6 if guessed else 1.2) + 0.55 * len(tasks))
    rows = np.arange(len(tasks))
    ax.hlines(rows, predicted_s * 1e3, measured_s * 1e3, color=FADED, linewidth=3, zorder=1)
    mark = (
        {"marker": "|", "s": 420, "color": FLOOR, "linewidth": 2.2}
        if expected == "at least"
        else {"marker": "o", "s": 80, "facecolors": "white", "edgecolors": PREDICTED, "linewidth": 2}
    )
    below = {"shift": (0, -9), "va": "top"}
    ax.scatter(predicted_s * 1e3, rows, label=expected, **mark)
    ax.scatter(measured_s * 1e3, rows, s=60, color=MEASURED, edgecolor=INK, label="measured")
    for row, runs in zip(rows, runs_s or (), strict=runs_s is not None):
        ends = np.array([min(runs), max(runs)]) * 1e3
        ax.plot(ends, [row, row], "|-", color=INK, linewidth=1.4, markersize=9, zorder=3)
    for row, value, least in zip(rows, measured_s, predicted_s, strict=True):
        if not np.isnan(least):  # left of an upright line, which would strike through a number below it
            side, ha = (7, "left") if value < least else (-7, "right")
            place = {"shift": (side, 0), "ha": ha, "va": "center"} if expected == "at least" else below
            write_beside(ax, milliseconds(least), (least * 1e3, row), **place)
    for row, value in zip(rows, measured_s, strict=True):
        if not np.isnan(value):
            write_beside(ax, milliseconds(value), (value * 1e3, row), shift=(0, 7), va="bottom")
    label_rows(ax, tasks, room=0.6)
    spread = [value for runs in runs_s or () for value in runs]
    every_s = np.array([*measured_s, *predicted_s, *spread, guess_s if guessed else np.nan], float)
    longest, near = np.nanmax(every_s), np.nanmax(every_s) < 10 * np.nanmin(every_s)
    if near:
        ax.set_xlim(0, longest * 1e3 * 1.15)
    else:
        decade_axis(ax.xaxis)
        ax.margins(x=0.12)
        if expected == "at least":  # room for a number left of the first line
            ax.set_xlim(left=np.nanmin(every_s) * 1e3 / 8)
    if guessed:
        low, high = ax.get_xlim()
        ax.set_xlim(low if near else min(low, guess_s * 1e3 / 1.5), max(high, guess_s * 1e3 * (1.3 if near else 10)))
        ax.set_ylim(len(tasks) - 0.4, -1.25)
        draw_guess(ax, guess_s * 1e3, -0.5, label=guess_label)  # above the number of the measurement
    ax.set_xlabel("milliseconds" if near else "milliseconds (logarithmic axis)")
    ax.grid(axis="x")
    legend_above(ax, columns=2)
    return ax


@mpl.rc_context(STYLE)
def plot_passes(
    tokens: Sequence[int], measured_s: np.ndarray, *, read_s: float, compute_s: np.ndarray, ax: Axes | None = None
) -> Axes:
    """Draw the time of a pass against its tokens, above two limits: reading the weights, and computing with them.

    Args:
        tokens: in each pass.
        measured_s: (rounds, passes) seconds; the median is a dot, fastest and slowest are the ends of its bar.
        read_s: seconds to read all weights once.
        compute_s: (passes,) seconds to compute.
    """
    measured_s = as_positive("measured_s", measured_s, (len(measured_s), len(tokens)))
    compute_s = as_positive("compute_s", compute_s, (len(tokens),))
    ax = axes_or_new(ax, height_in=3.4)
    low, middle, high = (np.quantile(measured_s, share, axis=0) * 1e3 for share in (0, 0.5, 1))
    ax.errorbar(tokens, middle, yerr=[middle - low, high - middle], fmt="o-", color=MEASURED, capsize=3)
    ax.plot(tokens, np.full(len(tokens), read_s * 1e3), color=FLOOR)
    ax.plot(tokens, compute_s * 1e3, color=FLOOR, linestyle="--")
    doubling_axis(ax, tokens)
    decade_axis(ax.yaxis)
    last = tokens[-1]
    for seconds, text in (
        (middle[-1] / 1e3, "measured"),
        (read_s, "at least,\nto read"),
        (compute_s[-1], "at least,\nto compute"),
    ):
        write_beside(ax, text, (last, seconds * 1e3), shift=(8, 0), ha="left")
    ax.set_xlim(tokens[0] / 1.3, last * 2.2)
    ax.set_xlabel("tokens in one pass")
    ax.set_ylabel("milliseconds of the pass\n(logarithmic axes)")
    ax.grid(axis="y")
    return ax


@mpl.rc_context(STYLE)
def plot_layer_times(
    layers: Sequence[int],
    seconds: np.ndarray,
    *,
    names: Sequence[str],
    lines: Sequence[tuple[float, float]],
    ax: Axes | None = None,
) -> Axes:
    """Draw times against the layers of a model, each series with its line down to no layer at all.

    Args:
        layers: how many the model had.
        seconds: (series, counts), one time for each count.
        names: of the series.
        lines: of each series the seconds without a layer and those per layer.
    """
    seconds = as_positive("seconds", seconds, (len(names), len(layers)))
    ax = axes_or_new(ax, height_in=3.2)
    ends = np.array([0, max(layers)])
    written = []
    for number, (name, values, (fixed, each)) in enumerate(zip(names, seconds, lines, strict=True)):
        ax.plot(ends, (fixed + each * ends) * 1e3, color=MEASURED, linewidth=1, linestyle="--")
        face = "white" if number else MEASURED  # the first series is full, the others are hollow
        ax.plot(layers, values * 1e3, "o", color=MEASURED, markerfacecolor=face, markersize=7)
        write_beside(ax, name, (layers[-1], values[-1] * 1e3), shift=(10, 0), ha="left")
        if fixed > 0.05 * seconds.max() and all(abs(fixed - other) > 0.06 * seconds.max() for other in written):
            write_beside(ax, milliseconds(fixed), (0, fixed * 1e3), shift=(-5, 0), ha="right", va="center")
            written.append(fixed)
    ax.axvline(0, color=FADED, linewidth=1, zorder=0)
    ax.set_xlim(-0.18 * max(layers), max(layers) * 1.4)
    ax.set_ylim(bottom=0)
    ax.set_xticks([0, *layers])
    ax.set_xlabel("layers that are left")
    ax.set_ylabel("milliseconds per token")
    ax.grid(axis="y")
    return ax


def milliseconds(seconds: float) -> str:
    """Write seconds as milliseconds in two digits, or whole ones from 100 on."""
    amount = seconds * 1e3
    return f"{amount:,.0f} ms" if amount >= 100 else f"{amount:.2g} ms"
