"""The pictures of a mixture of experts say what the arrays say, and are readable."""

import numpy as np
import pytest
from figure_checks import (
    EveryPlot,
    check_apart,
    check_refused,
    check_style_left_alone,
    check_whole,
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
# Three tokens, two layers, two experts each; 0 in a slot, 1 guessed, 2 fetched.
NEEDED = np.array([[[0, 3], [1, 2]], [[0, 1], [3, 2]], [[2, 0], [2, 1]]])
ORIGIN = np.array([[[2, 2], [1, 2]], [[0, 2], [2, 0]], [[1, 0], [0, 1]]])
MOVED, WORDS = np.array([4.0, 2.0, 2.5]), (" the", "\n", "$x")
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


def traffic(needed=NEEDED, origin=ORIGIN, moved=MOVED, *, tokens=WORDS, layers=("layer 0", "layer 7"), axes=None):
    return figures.plot_expert_traffic(
        needed, origin, moved, tokens=tokens, layers=layers, unit="moved, KiB", axes=axes
    )


def many_tokens():
    rng = np.random.default_rng(0)
    needed = np.array([[rng.choice(8, 2, replace=False) for _ in range(4)] for _ in range(32)])
    words = [f" word{number}" for number in range(31)] + [" a_token_that_is_far_too_long_for_a_picture"]
    layers = [f"layer {layer}" for layer in range(4)]
    return traffic(needed, rng.integers(0, 3, needed.shape), rng.uniform(0, 1500, 32), tokens=words, layers=layers)


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


@pytest.mark.parametrize("draw", [traffic, many_tokens])
def test_traffic_is_whole_and_readable(draw):
    above, below = draw()
    assert above.figure.get_figwidth() == figures.WIDTH_IN
    check_whole(above.figure)
    check_apart([*above.texts, *above.get_yticklabels(), *above.get_legend().get_texts()])
    check_apart([*below.get_xticklabels(), *below.get_yticklabels()])
    assert above.get_legend().get_window_extent().y0 >= above.bbox.y1 - 0.5  # half a pixel, which is no line's width


def test_traffic_leaves_the_readers_style_and_other_axes_alone():
    check_style_left_alone(traffic)
    figure, axes = figures.new_figure(2, 2)
    assert traffic(axes=axes[:, 1])[0] is axes[0, 1]
    assert not any(ax.has_data() for ax in axes[:, 0])


def test_traffic_shows_each_expert_in_its_colour_and_where_it_was_found():
    above, below = traffic()
    hits, numbers = above.texts[-2:], above.texts[:-2]
    boxes = iter(above.patches)
    for (token, layer, place), text in zip(np.ndindex(NEEDED.shape), numbers, strict=True):
        expert, found = NEEDED[token, layer, place], ORIGIN[token, layer, place]
        assert text.get_text() == str(expert)
        assert text.get_position()[1] == pytest.approx(layer * 2.4 + place)  # sums of floats
        box = next(boxes)
        inside = "#ffffff" if found == 2 else style.COLOURS[expert]
        assert (to_hex(box.get_facecolor()), to_hex(box.get_edgecolor())) == (inside, style.COLOURS[expert])
        assert box.get_x() < token < box.get_x() + box.get_width()
        if found == 1:  # in part
            part = next(boxes)
            assert to_hex(part.get_facecolor()) == "#ffffff"
            assert box.get_x() < part.get_x() < token < part.get_x() + part.get_width()
    assert next(boxes, None) is None
    assert [text.get_text() for text in hits] == ["2 of 6", "2 of 6"]
    assert [label.get_text() for label in above.get_yticklabels()] == ["layer 0", "layer 7"]
    assert [bar.get_height() for bar in below.patches] == MOVED.tolist()
    assert [label.get_text() for label in below.get_xticklabels()] == [" the", "\\n", "$x"]


def test_traffic_of_a_single_token_that_moved_nothing():
    above, below = traffic(NEEDED[:1, :1, :1], np.zeros((1, 1, 1), int), np.zeros(1), tokens=["a"], layers=["layer 0"])
    check_whole(above.figure)
    assert below.get_ylim() == (0, 1)


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
        (lambda: traffic(needed=NEEDED[0]), r"needed has shape \(2, 2\) and origin \(3, 2, 2\): expected the same"),
        (lambda: traffic(layers=["a"]), "for 3 tokens and 1 layers"),
        (lambda: traffic(origin=ORIGIN + 1), "origin holds a number other than 0, 1 and 2"),
        (lambda: traffic(moved=-MOVED), "negative"),
        (
            lambda: traffic(np.zeros((33, 1, 1), int), np.zeros((33, 1, 1), int), tokens=["a"] * 33, layers=["a"]),
            "33 tokens: expected at most 32",
        ),
        (lambda: figures.plot_balance([0], SMALLEST, LARGEST, names=["a", "b"], even=0.25), r"expected \(2, 1\)"),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)
