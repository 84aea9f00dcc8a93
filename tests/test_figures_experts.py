"""The pictures of a mixture of experts say what the arrays say, and are readable."""

import numpy as np
import pytest
from figure_checks import (
    EveryPlot,
    check_refused,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
)
from matplotlib.colors import to_hex

from mistral_lab import figures
from mistral_lab.figures import style

LOGITS = np.array([1.0, -0.5, 2.0, 0.25])
TOKENS = [1, 2, 4]
RATES, SHUFFLED = [np.array([0.1, 0.3]), np.array([0.2])], np.array([np.nan, 0.15])
TOUCHED = np.array([[2.0, 2.5, 3.0], [2.0, 3.0, 3.8]])
LOADS = np.array([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
SMALLEST, LARGEST = np.array([[0.1, 0.2], [0.1, 0.05]]), np.array([[0.5, 0.3], [0.5, 0.6]])


def route(ax=None):
    return figures.plot_route(LOGITS, chosen=[2, 0], weights=[0.73, 0.27], title="a token", ax=ax)


def touched(ax=None):
    return figures.plot_touched(TOKENS, TOUCHED, TOUCHED[1], names=["in a row", "shuffled"], experts=4, ax=ax)


def way(ax=None):
    return figures.plot_way("' to'", chosen=[2, 0], weights=[0.75, 0.25], experts=4, ax=ax)


def loads(ax=None):
    return figures.plot_load_map(LOADS, names=["english", "python"], title="layer 0", ax=ax)


def repeats(ax=None):
    return figures.plot_repeats(RATES, SHUFFLED, names=["layer 0", "layer 1"], uniform=0.25, ax=ax)


def balance(ax=None):
    return figures.plot_balance([0, 10], SMALLEST, LARGEST, names=["with", "without"], even=0.25, ax=ax)


@pytest.mark.parametrize("plot", [route, way, touched, loads, repeats, balance])
class TestEveryPlot(EveryPlot):
    pass


def test_a_route_colours_the_chosen_and_gives_their_weights():
    ax = route()
    assert [bar.get_height() for bar in ax.patches] == LOGITS.tolist()
    colours = [to_hex(bar.get_facecolor()) for bar in ax.patches]
    assert colours == [style.COLOURS[0], style.FADED, style.COLOURS[0], style.FADED]
    assert [(text.xy[0], text.get_text()) for text in ax.texts] == [(2, "weight 0.73"), (0, "weight 0.27")]


def test_a_way_leads_through_the_chosen_as_wide_as_their_weights():
    ax = way()
    lines = {line.get_ydata()[1]: line.get_linewidth() for line in ax.lines[1:]}
    assert lines == {2: 1 + 4 * 0.75, 0: 1 + 4 * 0.25}
    texts = {text.get_text(): text for text in ax.texts}
    assert list(texts) == ["× 0.75", "× 0.25", "' to'", "router", *(f"expert {e}" for e in range(4)), "sum"]
    assert (texts["× 0.75"].xy[1], texts["× 0.25"].xy[1]) == (2, 0)
    coloured = [to_hex(texts[f"expert {e}"].get_bbox_patch().get_facecolor()) for e in range(4)]
    assert coloured == [style.MEASURED, style.FADED, style.MEASURED, style.FADED]


def test_touched_draws_the_prediction_and_each_way():
    drawn = [line.get_ydata() for line in touched().lines]
    np.testing.assert_array_equal(drawn, [TOUCHED[1], *TOUCHED])


def test_loads_are_the_cells_and_their_numbers_per_cent():
    ax = loads()
    np.testing.assert_array_equal(ax.images[0].get_array(), LOADS)
    assert [text.get_text() for text in ax.texts] == ["10", "20", "70", "30", "30", "40"]


def test_repeats_are_the_dots_of_their_row_and_both_chances_are_marked():
    ax = repeats()
    drawn = [points.get_offsets() for points in ax.collections]
    np.testing.assert_array_equal(drawn[0], [[10, 0], [30, 0]])
    np.testing.assert_array_equal(drawn[1], [[20, 1]])
    np.testing.assert_array_equal(drawn[2].filled(np.nan), [[np.nan, np.nan], [15, 1]])  # unknown in the first row
    assert list(ax.lines[0].get_xdata()) == [25, 25]


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
            lambda: figures.plot_touched(TOKENS, TOUCHED.T, TOUCHED[0], names=["a", "b"], experts=4),
            r"shape \(3, 2\): expected \(2, 3\)",
        ),
        (
            lambda: figures.plot_way("a", chosen=[4], weights=[1.0], experts=4),
            r"chosen is \[4\] with 1 weights: expected experts below 4",
        ),
        (
            lambda: figures.plot_repeats(RATES, SHUFFLED, names=["a"], uniform=0.1),
            r"2 rows of rates, shuffled of shape \(2,\): expected 1 of each",
        ),
        (lambda: figures.plot_load_map(-LOADS, names=["a", "b"], title=""), "negative"),
        (lambda: figures.plot_balance([0], SMALLEST, LARGEST, names=["a", "b"], even=0.25), r"expected \(2, 1\)"),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)
