"""Pictures of a whole model: its parameters and which of them are read, its next token, what each layer answers."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from .arrays import as_amounts
from .canvas import axes_or_new
from .language import ATTENTION, IDLE, KEY, QUERY, QUIET, WEIGHTS, draw_guess, pale, write
from .marks import label_rows, write_beside
from .style import EDGE, FADED, STYLE, legend_above, readable_on
from .tokens import drawable, with_spaces

NARROW = 0.06  # of the axis: a narrower segment has no room for its number
# The parts of a model and of its memory, and the colour of each wherever it stands: weights are violet, the cache has
# the keys' colour, what is there while tokens pass has the queries', and what only comes with them is grey.
PART_COLOURS = {
    "weights": WEIGHTS,
    "experts": WEIGHTS,
    "feed-forward": WEIGHTS,
    "feed-forward networks, in Mixtral experts": WEIGHTS,
    "attention": ATTENTION,
    "the rest": pale(WEIGHTS, 0.6),
    "embedding": pale(WEIGHTS, 0.6),
    "four-bit weights": pale(WEIGHTS, 0.6),  # frozen, beside an adapter that is trained
    "adapter": WEIGHTS,
    "gradients": QUIET,
    "optimiser": pale(QUIET, 0.65),
    "gradients, optimiser": pale(QUIET, 0.5),
    "activations": pale(QUERY),
    "cache": KEY,
    "runtime": QUIET,
    "workspace": pale(QUIET, 0.65),
    "overhead": pale(QUIET, 0.5),
}


@mpl.rc_context(STYLE)
def plot_parameters(
    amounts: np.ndarray,
    *,
    models: Sequence[str],
    parts: Sequence[str],
    unit: str,
    columns: int = 3,
    ax: Axes | None = None,
) -> Axes:
    """Draw what models are made of: one bar per model, one segment per part.

    Args:
        amounts: (models, parts), in `unit`; 0 where a model lacks a part.
        models: name of each bar, the first on top.
        parts: name of each segment, from the left; they are of `PART_COLOURS`, each has its colour in every lesson.
        unit: the label of the axis, such as "billion parameters".
        columns: of the legend.
    """
    ax = draw_parts(amounts, names=models, parts=parts, unit=unit, ax=ax)
    legend_above(ax, columns=min(len(parts), columns))
    return ax


@mpl.rc_context(STYLE)
def draw_parts(amounts: np.ndarray, *, names: Sequence[str], parts: Sequence[str], unit: str, ax: Axes | None) -> Axes:
    """Draw what `plot_parameters` draws, without its legend: a legend takes a tenth of a redraw."""
    amounts = as_amounts(amounts, (len(names), len(parts)))
    if unknown := [part for part in parts if part not in PART_COLOURS]:
        raise ValueError(f"no colour for {', '.join(map(repr, unknown))}: expected parts of {', '.join(PART_COLOURS)}")
    ax = axes_or_new(ax, height_in=1.4 + 0.7 * len(names))
    wide = NARROW * amounts.sum(axis=1).max()
    start = np.zeros(len(names))
    for part, amount in zip(parts, amounts.T, strict=True):
        colour = PART_COLOURS[part]
        bars = ax.barh(
            names, amount, left=start, height=0.62, color=colour, edgecolor="white", linewidth=0.5, label=part
        )
        numbers = [f"{value:.3g}" if value > wide else "" for value in amount]
        ax.bar_label(bars, numbers, label_type="center", color=readable_on(colour))
        start += amount
    ax.invert_yaxis()
    ax.set_xlim(0, 1.02 * start.max())
    ax.set_xlabel(unit)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
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
def plot_read(
    shares: np.ndarray,
    *,
    models: Sequence[str],
    parts: Sequence[str],
    skipped: int,
    guess: float | None = None,
    guess_label: str = "a guess",
    ax: Axes | None = None,
) -> Axes:
    """Draw files of weights as bars, full where a pass reads them, grey where it does not, and a guess above them.

    Args:
        shares: (models, parts) in percent of each file.
        models: name of each bar, the first on top.
        parts: name of each segment, from the left; too narrow ones are named below their bar.
        skipped: number of the part that is not read.
        guess: percent, where a flag stands on the first bar; None draws none.
        guess_label: what is written at the flag.
    """
    shares = as_amounts(shares, (len(models), len(parts)))
    ax = axes_or_new(ax, height_in=0.9 + 0.95 * len(models))
    for row, amounts in enumerate(shares):
        start, below = 0.0, []
        for number, (part, amount) in enumerate(zip(parts, amounts, strict=True)):
            face = IDLE if number == skipped else pale(WEIGHTS, max(0.2, 0.55 - 0.17 * number))
            ax.barh(row, amount, left=start, height=0.42, color=face, edgecolor="white", linewidth=0.8)
            named = f"{part} {amount:.0f} %" if amount >= 9.5 else f"{part} {amount:.2g} %"
            if amount >= 2.1 + 0.95 * len(named):
                tone = QUIET if number == skipped else readable_on(face)
                write(ax, start + amount / 2, row, named, colour=tone)
            else:
                below.append(named)
            start += amount
        write(ax, 100, row + 0.36, " · ".join(below), ha="right", colour=QUIET)
    if guess is not None:
        draw_guess(ax, guess, -0.21, label=guess_label)
    label_rows(ax, models, room=0.6)
    ax.set_ylim(len(models) - 0.4, -0.85)
    ax.set_xlim(0, 112)  # room for the label of a guess at the end
    ax.set_xticks([0, 25, 50, 75, 100])
    ax.set_xlabel("percent of the weights; the grey end is not read")
    return ax


@mpl.rc_context(STYLE)
def plot_next_tokens(
    probabilities: np.ndarray,
    *,
    tokens: Sequence[str],
    kept: np.ndarray | None = None,
    others: tuple[int, float, float] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw the probability of each candidate for the next token, and of all others together.

    Args:
        probabilities: (tokens,), the first on top.
        tokens: the text of each candidate, drawn with a sign for a space and escapes for what the font cannot draw.
        kept: (tokens,) bool, False for candidates that a filter takes out: they are drawn grey and hatched.
        others: how many tokens are not drawn by themselves, their probability together, and how much of that is kept;
            a last bar stands for them.
        title: what was done to the distribution.
    """
    probabilities = as_amounts(probabilities, (len(tokens),))
    longest = max(probabilities.max(), others[1] if others else 0)
    label = "probability" if kept is None else "probability\n(hatched: left out)"
    kept = np.ones(len(tokens), bool) if kept is None else np.asarray(kept, bool)
    if kept.shape != probabilities.shape:
        raise ValueError(f"kept has shape {kept.shape}: expected {probabilities.shape}, one for each token")
    ax = axes_or_new(ax, height_in=0.9 + 0.26 * len(tokens))
    rows = np.arange(len(tokens))
    for chosen, look in (
        (kept, {"color": QUERY}),
        (~kept, {"facecolor": FADED, "edgecolor": EDGE, "hatch": "////", "linewidth": 0}),
    ):
        if chosen.any():
            bars = ax.barh(rows[chosen], probabilities[chosen], height=0.74, **look)
            ax.bar_label(bars, [_chance(value) for value in probabilities[chosen]], padding=3, fontsize=9)
    names = [with_spaces(token) for token in tokens]
    if others:
        count, together, left = others
        names.append(f"{count:,} others")
        ax.barh(len(rows), together, height=0.74, facecolor=FADED, edgecolor=EDGE, hatch="////", linewidth=0)
        if left > 0:  # an edge alone would look like a rest
            ax.barh(len(rows), left, height=0.74, color=pale(QUERY, 0.4), edgecolor=QUERY)
        write_beside(ax, _chance(together), (together, len(rows)), shift=(3, 0), ha="left")
    label_rows(ax, names, room=0.6)
    for name in ax.get_yticklabels():
        name.set_parse_math(False)  # a token may hold dollar signs
    ax.set_xlim(0, max(ax.get_xlim()[1], 1.25 * longest))  # room for the number beside the longest bar
    ax.set_xlabel(label)
    ax.set_title(title)
    return ax


def _chance(value: float) -> str:
    """A probability in two digits; one that is small differs from one that is nought."""
    return "0" if value == 0 else "<0.01" if value < 0.005 else f"{value:.2f}"


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
    ax.barh(range(len(names)), probabilities, color=[QUERY if equal else FADED for equal in same], height=0.74)
    for row, (probability, guess) in enumerate(zip(probabilities, guesses, strict=True)):
        text = write_beside(ax, f"{drawable(guess)}  {probability:.2f}", (probability, row), shift=(5, 0), ha="left")
        text.set_parse_math(False)
    label_rows(ax, names, room=0.6)
    ax.set_xlim(0, 1.45)  # room for the text beside the longest bar
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.spines["bottom"].set_bounds(0, 1)  # a probability is never more
    ax.set_xlabel("probability of the likeliest next token (grey: not the final answer)")
    return ax
