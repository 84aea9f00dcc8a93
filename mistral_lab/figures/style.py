"""What every picture looks like: colours, fonts, readable text, logarithmic axes, the place of the legend."""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

COLOURS = tuple(plt.style.library["petroff10"]["axes.prop_cycle"].by_key()["color"])  # Petroff, arXiv:2107.02270
INK = "#262626"
MEASURED = PREDICTED = "#0f6b80"  # the same in every lesson: what is measured is solid, what is predicted is hollow
# Of several lines of one kind, which have no colour of their own in the visual language; each has its own marker too.
SERIES = (MEASURED, INK, "#7f8796", "#5797a6")
EDGE = "#8c8c8c"  # of axes and frames, and hatching
FADED = "#d4d4d4"  # what is left out: removed tokens, masked cells

STYLE = {
    "figure.facecolor": "white",  # a white page of its own: readable where the page around it is dark
    "axes.facecolor": "white",
    "axes.edgecolor": EDGE,
    "axes.labelcolor": INK,
    "axes.prop_cycle": mpl.cycler(color=SERIES),
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
    """Make an axis, such as `ax.yaxis`, logarithmic, with plain numbers: at 1, 2 and 5 of every decade, or at 1 alone.

    A label per decade is enough where the axis spans many: 1, 2 and 5 would touch, below a plot sooner than beside it.
    Where fewer than two of them lie between the ends, 1 and 3 are labelled, and if need be 1, 2 and 5 after all: a
    single number on a logarithmic axis says nothing of its scale.
    """
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(_DecadeLocator(most_decades=1.5 if axis.axis_name == "x" else 3))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:,g}")


class _DecadeLocator(LogLocator):
    """Places at 1, 2 and 5 of every decade on an axis of at most so many decades; on a longer one fewer, but two."""

    def __init__(self, *, most_decades: float) -> None:
        super().__init__(subs=(1, 2, 5))
        self.most_decades = most_decades

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        """Choose the places by how many decades lie between the ends of the axis."""
        low, high = sorted((vmin, vmax))
        long = low > 0 and np.log10(high / low) > self.most_decades
        for subs in ((1,), (1, 3), (1, 2, 5)) if long else ((1, 2, 5),):
            self.set_params(subs=subs)
            places = super().tick_values(vmin, vmax)
            if ((low <= places) & (places <= high)).sum() > 1:
                break
        return places


def legend_above(ax: Axes, *, columns: int) -> None:
    """Put the legend above the plot, where no data can be."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, columnspacing=1.4, handlelength=1.2)


def hide_frame(ax: Axes) -> None:
    """Leave out the frame and the marks at the numbers, where cells or boxes fill the plot."""
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
