"""What holds for every picture, whatever it shows."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Polygon
from matplotlib.text import Text

from mistral_lab import figures

POLE_POINTS = 22  # from the foot of a guess's flag to its top


@pytest.fixture(autouse=True)
def no_figure_left_open():
    """Close what a test of the importing file drew."""
    yield
    plt.close("all")


class EveryPlot:
    """Tests of each `plot(ax=None)` with which a test file parametrises its subclass."""

    def test_drawn_on_the_given_axes_and_nowhere_else(self, plot):
        check_drawn_in_place(plot)

    def test_readable_and_whole(self, plot):
        check_fits_the_page(plot())

    def test_texts_do_not_cover_each_other(self, plot):
        ax = plot()
        ax.figure.draw_without_rendering()
        legend = ax.get_legend().get_texts() if ax.get_legend() else []
        check_apart([*ax.texts, *legend, *title_of(ax), *ax.get_yticklabels()])

    def test_the_readers_own_style_is_left_alone(self, plot):
        check_style_left_alone(plot)


def check_drawn_in_place(plot) -> None:
    """`plot(ax)` draws on the Axes that it is given, and nowhere else."""
    figure, axes = figures.new_figure(1, 2)
    assert plot(axes[0, 1]) is axes[0, 1]
    assert not axes[0, 0].has_data()
    assert plt.get_fignums() == [figure.number]


def check_whole(figure) -> None:
    """No text is smaller than 9 points, and nothing that is drawn lies beyond the edge of the picture."""
    figure.draw_without_rendering()
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip()) >= 9
    drawn = figure.get_tightbbox()  # in inches, of all that is drawn
    width, height = figure.get_size_inches()
    assert min(drawn.x0, drawn.y0) >= 0
    assert drawn.x1 <= width + 1e-9  # inches: a stage as high as its figure differs in the last digit
    assert drawn.y1 <= height + 1e-9


def check_fits_the_page(ax) -> None:
    """The picture is as wide as the page and whole, and its legend does not cover the data."""
    assert ax.figure.get_figwidth() == figures.WIDTH_IN
    check_whole(ax.figure)
    if legend := ax.get_legend():
        assert legend.get_window_extent().y0 >= ax.bbox.y1 - 0.5  # half a pixel, which is no line's width


def flag_at(ax) -> np.ndarray:
    """Where the flag of the one guess is planted, in units of the data."""
    [flag] = [
        patch for patch in ax.patches if type(patch) is Polygon and to_hex(patch.get_facecolor()) == figures.GUESS
    ]
    top = flag.get_transform().transform(flag.get_xy()[0])
    return ax.transData.inverted().transform(top - [0, POLE_POINTS / 72 * ax.figure.dpi])


def signs(ax) -> list:
    """The kinds and colours of all that is drawn but texts, in its order: what two sizes of one picture share."""
    patches = [(type(p).__name__, to_hex(p.get_facecolor()), to_hex(p.get_edgecolor())) for p in ax.patches]
    groups = [
        (type(group).__name__, len(group.get_paths()), len(group.get_offsets()))
        + tuple([to_hex(colour) for colour in colours] for colours in (group.get_facecolor(), group.get_edgecolor()))
        for group in ax.collections
    ]
    return [*patches, *groups, *(to_hex(line.get_color()) for line in ax.lines)]


def segments(ax) -> np.ndarray:
    """(bars, parts): the widths of a chart of stacked bars."""
    return np.array([[bar.get_width() for bar in part] for part in ax.containers]).T


def texts_of(ax) -> list[str]:
    """All that is written on the Axes, in the order in which it was."""
    return [text.get_text() for text in ax.texts]


def names_from_top(ax) -> list[str]:
    """The names of the rows, as a reader meets them."""
    labels = [label.get_text() for label in ax.get_yticklabels()]
    return labels if ax.yaxis_inverted() else labels[::-1]


def title_of(ax) -> list[Text]:
    """The title as it is drawn, or nothing where there is none."""
    return [text for text in ax.findobj(Text) if text.get_text() and text.get_text() == ax.get_title(loc="left")]


def check_apart(texts) -> None:
    """No text covers another; the figure has been drawn."""
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def check_style_left_alone(plot) -> None:
    """Drawing changes none of the reader's own settings."""
    before = dict(plt.rcParams)
    plot()
    assert dict(plt.rcParams) == before


def check_refused(call, message: str) -> None:
    """The call raises one line with this message, and leaves no figure open."""
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
    assert plt.get_fignums() == []
