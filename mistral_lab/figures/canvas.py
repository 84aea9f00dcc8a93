"""From a figure to a picture: as wide as the page, drawn twice as fine, encoded as PNG, shown with its caption."""

from collections.abc import Sequence
from io import BytesIO

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .style import STYLE

# An inch of a figure is 100 pixels of the page, drawn twice as fine for sharp screens.
PAGE_DPI = 100
FINENESS = 2
WIDTH_IN = 8.0
COLOURS_KEPT = 256  # in a PNG, which takes a third of the bytes: a lesson full of pictures stays below a megabyte


@mpl.rc_context(STYLE)
def new_figure(
    rows: int = 1,
    columns: int = 1,
    *,
    height_in: float = 3.0,
    heights: Sequence[float] | None = None,
    share_x: bool = False,
    share_y: bool = False,
) -> tuple[Figure, np.ndarray]:
    """Start a figure as wide as a notebook's page.

    Args:
        rows, columns: how many of Axes.
        height_in: height of the whole figure in inches; it is 8 inches wide.
        heights: of the rows in proportion; None makes them equal.
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
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )


@mpl.rc_context(STYLE)
def bare_figure(
    rows: int = 1,
    columns: int = 1,
    *,
    height_in: float = 3.0,
    widths: Sequence[float] | None = None,
    heights: Sequence[float] | None = None,
    share: bool = False,
) -> tuple[Figure, np.ndarray]:
    """Start a figure as `new_figure` does, but one that pyplot does not keep: it is freed when its owner drops it.

    Args:
        rows, columns: how many of Axes.
        height_in: height of the whole figure in inches; it is 8 inches wide.
        widths, heights: of the columns and rows in proportion; None makes them equal.
        share: whether all Axes have both scales in common.

    Returns:
        the figure, and its Axes as an array of shape (rows, columns).
    """
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = figure.subplots(
        rows, columns, sharex=share, sharey=share, width_ratios=widths, height_ratios=heights, squeeze=False
    )
    return figure, axes


def axes_or_new(ax: Axes | None, *, height_in: float) -> Axes:
    """Return the Axes that a picture is to be drawn on. If None was given, start a figure of this height for it."""
    return new_figure(height_in=height_in)[1][0, 0] if ax is None else ax


def show(figure: Figure, alt: str, caption: str) -> None:
    """Display a figure once, as PNG, and below it a caption in the font of the page.

    The alt text stands in the output's metadata under "image/png", where nbconvert and others look for "alt"; nothing
    prints it. The figure is closed, so that a notebook does not show it again.

    Args:
        figure: what both describe.
        alt: one sentence or more that say what the picture shows, for a reader who does not see it.
        caption: a sentence that says what to see in it, in Markdown, for everyone.

    Raises:
        ValueError: alt or caption is not a sentence, or the caption repeats the alt.
    """
    from IPython.display import Image, Markdown, display

    for name, text in (("alt", alt), ("caption", caption)):
        if not text.rstrip().endswith((".", "!", "?")):
            raise ValueError(f"{name} is {text!r}: expected a sentence about the picture, with its full stop")
    if alt.strip() == caption.strip():
        raise ValueError(f"alt and caption are the same, {alt!r}: alt says what the picture shows, caption what to see")
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=FINENESS * PAGE_DPI, facecolor="white")
    plt.close(figure)
    png = to_png(PIL.Image.open(drawn).convert("RGB"), small=True)
    width = round(figure.get_figwidth() * PAGE_DPI)
    display(Image(png, width=width, metadata={"alt": alt}))  # Colab's IPython 7.34 has no Image(alt=...)
    display(Markdown(caption))


def render(figure: Figure) -> PIL.Image.Image:
    """Draw the figure, twice as fine as the page."""
    figure.set_dpi(FINENESS * PAGE_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def to_png(picture: PIL.Image.Image, *, small: bool) -> bytes:
    """Encode a picture as PNG in 256 colours, either in few bytes, to be kept, or quickly, for the screen.

    An octree finds the colours in an eighth of a median cut's time, and its files are a quarter smaller. In the
    lessons' pictures it changes no channel by more than 15 of 255, and those of large areas by 1. It would mix the
    colour of the page with the palest edges, so the page is given its own again.
    """
    png = BytesIO()
    few = picture.quantize(COLOURS_KEPT, PIL.Image.Quantize.FASTOCTREE)
    corner, palette = few.getpixel((0, 0)), few.getpalette()
    palette[3 * corner : 3 * corner + 3] = picture.getpixel((0, 0))
    few.putpalette(palette)
    few.save(png, format="png", optimize=small, compress_level=1)
    return png.getvalue()
