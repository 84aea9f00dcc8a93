"""The lessons' pictures: NumPy arrays become matplotlib Axes. Nothing is computed, shown or saved but by `show`."""

from collections.abc import Sequence
from io import BytesIO

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

COLOURS = tuple(plt.style.library["petroff10"]["axes.prop_cycle"].by_key()["color"])  # Petroff, arXiv:2107.02270
INK = "#262626"
FADED = "#d4d4d4"  # what is left out: removed tokens, masked cells

STYLE = {
    "figure.facecolor": "white",  # a white page of its own: readable where the page around it is dark
    "axes.facecolor": "white",
    "axes.edgecolor": "#8c8c8c",
    "axes.labelcolor": INK,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "font.family": "DejaVu Sans",  # it comes with matplotlib, so every machine draws the same
    "font.size": 10,
    "grid.color": "#e3e3e3",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 10,
}

# An inch of a figure is 100 pixels of the page, drawn twice as fine for sharp screens.
PAGE_DPI = 100
FINENESS = 2
WIDTH_IN = 8.0
NARROW = 0.06  # of the axis: a narrower segment has no room for its number


@mpl.rc_context(STYLE)
def new_figure(
    rows: int = 1, columns: int = 1, *, height_in: float = 3.0, share_x: bool = False, share_y: bool = False
) -> tuple[Figure, np.ndarray]:
    """Start a figure as wide as a notebook's page.

    Args:
        rows, columns: of Axes.
        height_in: height of the whole figure in inches; it is 8 inches wide.
        share_x, share_y: whether all Axes have one scale.

    Returns:
        the figure, and its Axes as an array of shape (rows, columns).
    """
    return plt.subplots(
        rows,
        columns,
        figsize=(WIDTH_IN, height_in),
        sharex=share_x,
        sharey=share_y,
        squeeze=False,
        layout="constrained",
    )


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
    amounts = _amounts(amounts, (len(models), len(parts)))
    ax = new_figure(height_in=1.4 + 0.7 * len(models))[1][0, 0] if ax is None else ax
    wide = NARROW * amounts.sum(axis=1).max()
    start = np.zeros(len(models))
    for part, amount, colour in zip(parts, amounts.T, COLOURS[: len(parts)], strict=True):
        bars = ax.barh(
            models, amount, left=start, height=0.62, color=colour, edgecolor="white", linewidth=0.5, label=part
        )
        numbers = [f"{value:.3g}" if value > wide else "" for value in amount]
        ax.bar_label(bars, numbers, label_type="center", color=_readable_on(colour))
        start += amount
    ax.invert_yaxis()
    ax.set_xlim(0, 1.02 * start.max())
    ax.set_xlabel(unit)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    _legend_above(ax, columns=min(len(parts), 3))
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
    probabilities = _amounts(probabilities, (len(tokens),))
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
    ax.set_yticks(rows, [_quoted(token) for token in tokens])
    ax.set_ylim(len(tokens) - 0.4, -0.6)
    ax.set_xlim(0, max(ax.get_xlim()[1], 1.25 * probabilities.max()))  # room for the number beside the longest bar
    ax.set_xlabel(label)
    ax.set_title(title)
    ax.tick_params(axis="y", length=0)
    return ax


@mpl.rc_context(STYLE)
def plot_times(
    measured_s: np.ndarray, predicted_s: np.ndarray, *, tasks: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Draw measured times beside predicted ones, on a logarithmic axis.

    Args:
        measured_s: (tasks,) seconds; NaN where nothing was measured, which leaves the prediction alone.
        predicted_s: (tasks,) seconds.
        tasks: what took that long, the first on top.
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
        (predicted_s, COLOURS[1], "D", "predicted", -1),
        (measured_s, COLOURS[0], "o", "measured", 1),
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
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.margins(x=0.12)
    ax.set_yticks(rows, tasks)
    ax.set_ylim(len(tasks) - 0.4, -0.6)
    ax.set_xlabel("milliseconds (logarithmic axis)")
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    _legend_above(ax, columns=2)
    return ax


def show(figure: Figure, alt: str) -> None:
    """Display a figure once, as PNG, with a sentence that says what it shows: as alt text, and in print.

    The sentence stands in the output's metadata under "image/png", where nbconvert and others look for "alt". The
    figure is closed, so that a notebook does not show it again.

    Args:
        figure: what the sentence describes.
        alt: one sentence or more, for a reader who does not see the picture.

    Raises:
        ValueError: no sentence.
    """
    from IPython.display import Image, display

    if not alt.rstrip().endswith((".", "!", "?")):
        raise ValueError(f"alt is {alt!r}: expected a sentence that says what the picture shows, with its full stop")
    png = BytesIO()
    figure.savefig(png, format="png", dpi=FINENESS * PAGE_DPI, facecolor="white")
    plt.close(figure)
    display(Image(png.getvalue(), width=round(figure.get_figwidth() * PAGE_DPI), alt=alt))
    print(alt)


def _amounts(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(values, float)
    if values.shape != shape:
        raise ValueError(f"the amounts have shape {values.shape}: expected {shape}, one for each name")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("an amount is negative, infinite or NaN: a bar can show finite amounts of 0 or more")
    return values


def _quoted(text: str) -> str:
    glyphs = get_font(findfont(STYLE["font.family"])).get_charmap()
    letters = (letter if ord(letter) in glyphs else letter.encode("unicode_escape").decode() for letter in repr(text))
    return "".join(letters)


def _readable_on(colour: str) -> str:
    """Black or white, whichever stands out more; sRGB luminance, Web Content Accessibility Guidelines 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = np.dot((0.2126, 0.7152, 0.0722), linear)
    return "black" if luminance > 0.179 else "white"


def _milliseconds(seconds: float) -> str:
    milliseconds = seconds * 1e3
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.2g} ms"


def _legend_above(ax: Axes, *, columns: int) -> None:
    """Put the legend above the plot, where no data can be."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, columnspacing=1.4, handlelength=1.2)
