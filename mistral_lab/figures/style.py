"""What every picture shares: colours and style, a figure as wide as the page, and showing it with its sentence."""

from collections.abc import Sequence
from io import BytesIO

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

COLOURS = tuple(plt.style.library["petroff10"]["axes.prop_cycle"].by_key()["color"])  # Petroff, arXiv:2107.02270
INK = "#262626"
MEASURED, PREDICTED = COLOURS[0], COLOURS[1]  # the same in every lesson
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
COLOURS_KEPT = 256  # in a PNG: a third of the bytes, so that a lesson full of pictures stays below a megabyte
WIDTH_IN = 8.0


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
    drawn, png = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", dpi=FINENESS * PAGE_DPI, facecolor="white")
    plt.close(figure)
    PIL.Image.open(drawn).convert("RGB").quantize(COLOURS_KEPT).save(png, format="png", optimize=True)
    width = round(figure.get_figwidth() * PAGE_DPI)
    display(Image(png.getvalue(), width=width, metadata={"alt": alt}))  # Colab's IPython 7.34 has no Image(alt=...)
    print(alt)


def as_amounts(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The values as floats, refused where a bar could not show them."""
    values = np.asarray(values, float)
    if values.shape != shape:
        raise ValueError(f"the amounts have shape {values.shape}: expected {shape}, one for each name")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("an amount is negative, infinite or NaN: a bar can show finite amounts of 0 or more")
    return values


def readable_on(colour: str) -> str:
    """Black or white, whichever stands out more; sRGB luminance, Web Content Accessibility Guidelines 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = np.dot((0.2126, 0.7152, 0.0722), linear)
    return "black" if luminance > 0.179 else "white"


def doubling_axis(ax: Axes, places: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with a number at each of these places and nowhere else."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(list(places)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:,g}")


def decade_axis(axis: Axis) -> None:
    """Make an axis, such as `ax.yaxis`, logarithmic, with plain numbers at 1, 2 and 5 of every decade."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:,g}")


def legend_above(ax: Axes, *, columns: int) -> None:
    """Put the legend above the plot, where no data can be."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, columnspacing=1.4, handlelength=1.2)
