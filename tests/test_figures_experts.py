"""The pictures of a mixture of experts say what the arrays say, and are readable."""

import numpy as np
import pytest
from figure_checks import (
    EveryPlot,
    check_refused,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
)
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch

from mistral_lab import figures
from mistral_lab.figures import language, style

LOGITS = np.array([1.0, -0.5, 2.0, 0.25])
TOKENS = [1, 2, 4]
RATES, SHUFFLED = [np.array([0.1, 0.3]), np.array([0.2, 0.25])], [None, np.array([0.15, 0.3])]
TOUCHED, EXPECTED = np.array([2.0, 2.5, 3.0]), np.array([2.0, 3.0, 3.8])
FEWER = np.array([[[0.0, -0.2, -0.1], [0.0, 0.1, 0.2]], [[0.0, -0.1, 0.0], [0.0, 0.2, 0.3]], [[0.0, 0.0, 0.1]] * 2])
FEWER[2, 1] = [0.0, 0.3, 0.4]
LOADS = np.array([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
SMALLEST, LARGEST = np.array([[0.1, 0.2], [0.1, 0.05]]), np.array([[0.5, 0.3], [0.5, 0.6]])


def route(ax=None):
    return figures.plot_route(LOGITS, chosen=[2, 0], weights=[0.73, 0.27], title="a token", ax=ax)


def touched(ax=None):
    return figures.plot_touched(TOKENS, TOUCHED, EXPECTED, experts=4, ax=ax)


def fewer(ax=None):
    return figures.plot_fewer(TOKENS, *FEWER, names=["layer 0", "layer 3"], title="than shuffled", ax=ax)


def way(ax=None):
    return figures.plot_way("' to'", chosen=[2, 0], weights=[0.75, 0.25], experts=4, ax=ax)


def loads(ax=None):
    return figures.plot_load_map(LOADS, names=["english", "python"], title="layer 0", even=1 / 3, ax=ax)


def repeats(ax=None):
    return figures.plot_repeats(RATES, SHUFFLED, names=["layer 0", "layer 1"], uniform=0.25, ax=ax)


def balance(ax=None):
    return figures.plot_balance([0, 10], SMALLEST, LARGEST, names=["with", "without"], even=0.25, ax=ax)


@pytest.mark.parametrize("plot", [route, way, touched, fewer, loads, repeats, balance])
class TestEveryPlot(EveryPlot):
    pass


def test_a_route_colours_the_chosen_and_gives_their_weights():
    ax = route()
    assert [bar.get_height() for bar in ax.patches] == LOGITS.tolist()
    colours = [to_hex(bar.get_facecolor()) for bar in ax.patches]
    assert colours == [language.EXPERTS[0], style.FADED, language.EXPERTS[2], style.FADED]
    assert [(text.xy[0], text.get_text()) for text in ax.texts] == [(2, "weight 0.73"), (0, "weight 0.27")]


def test_a_way_leads_through_the_doors_of_the_chosen_as_wide_as_their_weights():
    ax = way()
    links = [patch for patch in ax.patches if isinstance(patch, PathPatch)]
    found = [(to_hex(link.get_edgecolor()), link.get_linewidth()) for link in links]
    wide, narrow = (language.EXPERTS[2], 1 + 7 * 0.75), (language.EXPERTS[0], 1 + 7 * 0.25)
    assert found == [wide, wide, narrow, narrow]  # to the door, and from it
    reached = [link.get_path().vertices[-1, 0] for link in links]
    assert reached == [2, 1.5, 0, 1.5]
    doors = {text.get_text(): text.get_position()[0] for text in ax.texts}
    assert [doors[str(expert)] for expert in range(4)] == [0, 1, 2, 3]
    assert (doors["× 0.75"] > 2, doors["× 0.25"] < 0) == (True, True)  # outside, where no line runs
    idle = [to_hex(patch.get_facecolor()) for patch in ax.patches if not isinstance(patch, PathPatch)][:4]
    assert idle == [language.EXPERTS[0], language.IDLE, language.EXPERTS[2], language.IDLE]


def test_touched_is_solid_where_measured_and_hollow_where_predicted():
    predicted, measured = touched().lines[1:]
    np.testing.assert_array_equal(predicted.get_ydata(), EXPECTED)
    np.testing.assert_array_equal(measured.get_ydata(), TOUCHED)
    assert (predicted.get_markerfacecolor(), predicted.get_linestyle()) == ("white", "None")


def test_fewer_draws_each_layer_with_its_interval_about_zero():
    ax = fewer()
    assert list(ax.lines[0].get_ydata()) == [0, 0]
    for layer, container in enumerate(ax.containers):
        np.testing.assert_array_equal(container.lines[0].get_ydata(), FEWER[1, layer])
        ends = [np.array(segment)[:, 1] for segment in container.lines[2][0].get_segments()]
        np.testing.assert_allclose(ends, FEWER[[0, 2], layer].T, atol=1e-12)  # a difference and a sum


def test_loads_are_the_cells_and_their_numbers_per_cent():
    ax = loads()
    white, orange = ax.images[0].get_array()[1, :, :3][[0, 2]]  # 30 % lies nearer to even than 40 %
    assert white.min() > orange.min()
    assert ax.images[0].get_array()[0, 0, 2] > ax.images[0].get_array()[0, 0, 0]  # 10 %, far below: purple
    assert [text.get_text() for text in ax.texts] == ["10", "20", "70", "30", "30", "40"]


def test_repeats_are_solid_dots_and_hollow_ones_where_shuffled():
    ax = repeats()
    assert list(ax.lines[0].get_xdata()) == [25, 25]
    paper, chance, dots = (line.get_xydata() for line in ax.lines[1:4])
    np.testing.assert_array_equal(paper, [[10, 0], [30, 0]])
    np.testing.assert_array_equal(chance[:, 0], [15, 30])
    np.testing.assert_array_equal(dots[:, 0], [20, 25])
    np.testing.assert_array_equal(chance[:, 1], dots[:, 1])  # side by side with its own chance
    assert [line.get_markerfacecolor() for line in ax.lines[2:4]] == ["white", style.MEASURED]
    segments = ax.collections[0].get_segments()
    assert [segment[:, 0].tolist() for segment in segments] == [[15, 20], [30, 25]]


def test_balance_draws_largest_and_smallest_per_cent():
    drawn = [line.get_ydata() for line in balance().lines[:4]]
    np.testing.assert_array_equal(drawn, 100 * np.array([LARGEST[0], SMALLEST[0], LARGEST[1], SMALLEST[1]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: figures.plot_route(LOGITS, chosen=[1], weights=[0.5, 0.5], title=""),
            "1 experts chosen and 2 weights",
        ),
        (
            lambda: figures.plot_touched(TOKENS, TOUCHED[:2], EXPECTED, experts=4),
            r"shape \(2,\): expected \(3,\)",
        ),
        (
            lambda: figures.plot_way("a", chosen=[4], weights=[1.0], experts=4),
            r"chosen is \[4\] with 1 weights: expected experts below 4",
        ),
        (
            lambda: figures.plot_repeats(RATES, SHUFFLED, names=["a"], uniform=0.1),
            r"2 rows of rates, 2 of shuffled: expected 1 of each",
        ),
        (lambda: figures.plot_fewer(TOKENS, *FEWER, names=["a"], title=""), r"\(2, 3\): expected \(1, 3\)"),
        (lambda: figures.plot_load_map(-LOADS, names=["a", "b"], title="", even=0.3), "negative"),
        (lambda: figures.plot_balance([0], SMALLEST, LARGEST, names=["a", "b"], even=0.25), r"expected \(2, 1\)"),
        (lambda: figures.plot_load_bars(np.array([np.nan]), ax=None), "NaN"),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)
