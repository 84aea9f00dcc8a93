"""The pictures of a whole decoder say what the arrays say, and are readable."""

import numpy as np
import pytest
from figure_checks import (
    EveryPlot,
    check_refused,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
)
from matplotlib.colors import to_hex

from mistral_lab import figures
from mistral_lab.figures import layers, marks, style

SUBLAYERS = [("norm\n128", "attention\n98,304"), ("norm\n128", "feed-forward\n147,456")]
BEFORE, AFTER = ["embedding\n327,680"], ["norm\n128", "output layer\n327,680"]
LENGTHS = np.array([[0.9, 10.0, 20.0], [1.0, 17.0, 35.0], [1.1, 24.0, 60.0]])
RATIOS = np.array([[[9.0, 0.2], [0.5, 0.3]], [[17.0, 0.4], [1.5, 0.8]], [[25.0, 0.9], [4.0, 4.0]]])
PLACES, PREDICTED = ["embedding", "attention 0", "feed-forward 0"], np.array([1.0, 16.0, 31.0])
PARTS, READ_S = ["norms", "a part with a long name", "the rest"], np.array([0.0, 0.003, 0.0])
SECONDS = np.array([[0.1e-5, 0.003, 0.0005], [0.2e-5, 0.004, 0.0006], [0.3e-5, 0.006, 0.0007]])
CONTEXTS, TOKEN_S = (128, 512, 4096), np.array([[0.2, 0.22, 0.3], [0.4, np.nan, 0.5]])
FLOOR_S = np.array([[0.1, 0.11, 0.14], [0.2, np.nan, 0.26]])


def block(ax=None):
    return figures.plot_block(SUBLAYERS, before=BEFORE, after=AFTER, repeated="one layer; there are 4", ax=ax)


def stream(ax=None):
    return figures.plot_stream(*LENGTHS, PREDICTED, places=PLACES, unit="length", ax=ax)


def added(ax=None):
    return figures.plot_added(*RATIOS, names=["attention", "feed-forward"], unit="ratio", ax=ax)


def part_times(ax=None):
    return figures.plot_part_times(*SECONDS, READ_S, parts=PARTS, title="a model", ax=ax)


def beside(ax=None):
    labels = {"x_label": "tokens of context", "unit": "seconds per token"}
    return figures.plot_beside(
        CONTEXTS, TOKEN_S, FLOOR_S, names=["7B", "8x7B"], floor=True, doubling=True, ax=ax, **labels
    )


def beside_long(ax=None):
    memory = np.linspace([1, 2], [4, 24], 34).T
    labels = {"x_label": "layers passed", "unit": "GiB"}
    return figures.plot_beside(range(34), memory, memory + 0.5, names=["7B", "8x7B"], floor=False, ax=ax, **labels)


@pytest.mark.parametrize("plot", [block, stream, added, part_times, beside, beside_long])
class TestEveryPlot(EveryPlot):
    pass


def bounds(ax):
    """Each drawn spread, as (places, 2): low and high."""
    return [
        [np.array(segment)[:, 1] for segment in container.lines[2][0].get_segments()] for container in ax.containers
    ]


def test_a_block_has_every_box_on_the_stream_or_on_the_branch_that_it_belongs_to():
    ax = block()
    height = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert [height[text] for text in BEFORE + AFTER[1:]] == [0, 0]
    assert height["attention\n98,304"] == height["feed-forward\n147,456"] < -1
    boxes = [to_hex(patch.get_facecolor()) for patch in ax.patches]
    assert boxes[:3] == [layers.OTHER_WEIGHTS, style.FADED, layers.OTHER_WEIGHTS]  # a norm is grey, the last one too
    assert boxes[3:7] == [style.FADED, layers.SUBLAYER_COLOURS[0], style.FADED, layers.SUBLAYER_COLOURS[1]]


def test_a_block_adds_once_for_each_sublayer_behind_where_it_reads():
    ax = block()
    sums = [float(points.get_offsets()[0, 0]) for points in ax.collections]
    reads = [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "v"]
    assert len(sums) == len(SUBLAYERS)
    assert reads[0] < sums[0] < reads[1] < sums[1]


def test_the_stream_is_drawn_with_its_spread_beside_the_prediction():
    ax = stream()
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), PREDICTED)
    assert (ax.lines[0].get_markerfacecolor(), ax.lines[0].get_linestyle()) == ("white", "None")
    np.testing.assert_array_equal(ax.containers[0].lines[0].get_ydata(), LENGTHS[1])
    np.testing.assert_allclose(bounds(ax)[0], LENGTHS[[0, 2]].T)
    assert [label.get_text() for label in ax.get_xticklabels()] == PLACES


def test_a_stream_with_many_places_names_some_of_them():
    many = np.ones(65)
    places = [f"feed-forward {place}" for place in range(65)]
    ax = figures.plot_stream(many, many, many, many, places=places, unit="length")
    named = [label.get_text() for label in ax.get_xticklabels()]
    assert named == places[::4]
    assert len(named) <= marks.MOST_LABELS


def test_what_is_added_is_drawn_for_each_sublayer_in_its_colour():
    ax = added()
    for number, container in enumerate(ax.containers):
        np.testing.assert_array_equal(container.lines[0].get_ydata(), RATIOS[1, number])
        assert to_hex(container.lines[0].get_color()) == layers.SUBLAYER_COLOURS[number]
        np.testing.assert_allclose(bounds(ax)[number], RATIOS[[0, 2], number].T)


def test_part_times_are_bars_in_milliseconds_with_shares_and_the_prediction():
    ax = part_times()
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], 1e3 * SECONDS[1])
    np.testing.assert_allclose(ax.collections[-1].get_offsets()[:, 0], 1e3 * READ_S)
    assert [text.get_text() for text in ax.texts] == ["<1%", "87%", "13%"]
    assert [label.get_text() for label in ax.get_yticklabels()] == PARTS


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: figures.plot_block([("norm",)], before=BEFORE, after=AFTER, repeated=""),
            r"\[1\] texts: expected \(norm, network\)",
        ),
        (
            lambda: figures.plot_block(3 * SUBLAYERS[:1], before=BEFORE, after=AFTER, repeated=""),
            "once or twice",
        ),
        (
            lambda: figures.plot_stream(*LENGTHS[::-1], PREDICTED, places=PLACES, unit=""),
            "median lies outside its interval",
        ),
        (
            lambda: figures.plot_stream(*LENGTHS, PREDICTED[:2], places=PLACES, unit=""),
            r"predicted has shape \(2,\): expected \(3,\)",
        ),
        (
            lambda: figures.plot_added(*RATIOS * [0, 1], names=["a", "b"], unit=""),
            "lows holds 0: expected finite numbers above 0, because",
        ),
        (
            lambda: figures.plot_part_times(*SECONDS, READ_S[:2], parts=PARTS, title=""),
            r"shape \(2,\): expected \(3,\)",
        ),
        (
            lambda: figures.plot_part_times(*SECONDS[::-1], READ_S, parts=PARTS, title=""),
            "median lies outside its interval",
        ),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)


def test_what_was_measured_is_solid_and_a_floor_a_dashed_line_called_at_least():
    ax = beside()
    measured, floors = ax.lines[:4:2], ax.lines[1:4:2]
    for number, (line, least) in enumerate(zip(measured, floors, strict=True)):
        np.testing.assert_array_equal(line.get_ydata(), TOKEN_S[number])
        np.testing.assert_array_equal(least.get_ydata(), FLOOR_S[number])
        assert line.get_color() == least.get_color()
        assert (line.get_linestyle(), least.get_linestyle(), least.get_marker()) == ("-", "--", "None")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["7B", "8x7B", "at least"]
    assert ax.get_ylim()[0] == 0


def test_a_prediction_is_hollow_and_some_of_many_places_have_a_mark():
    ax = beside_long()
    line, hollow = ax.lines[:2]
    assert (line.get_marker(), hollow.get_markerfacecolor(), hollow.get_linestyle()) == ("", "white", "None")
    assert 5 < len(hollow.get_ydata()) <= layers.MOST_MARKS
    assert ax.get_legend().get_texts()[-1].get_text() == "predicted (hollow)"


def test_a_bar_reaches_from_the_fastest_run_to_the_slowest():
    labels = {"x_label": "tokens", "unit": "seconds", "names": ["7B", "8x7B"], "floor": True}
    token_s = np.nan_to_num(TOKEN_S, nan=0.45)
    runs = [[[took, 2 * took, took / 2] for took in way] for way in token_s]
    ax = figures.plot_beside(CONTEXTS, token_s, FLOOR_S, runs=runs, **labels)
    for way, bars in zip(token_s, ax.collections, strict=True):
        found = [segment[:, 1] for segment in bars.get_segments()]
        np.testing.assert_allclose(found, np.stack([way / 2, 2 * way], axis=1))
    assert ax.get_ylim()[1] > 2 * token_s.max()


@pytest.mark.parametrize(("runs", "found"), [([[[0.1]] * 3], r"\[3\]"), ([[[0.1]] * 2] * 2, r"\[2, 2\]")])
def test_runs_of_other_ways_or_places_are_refused(runs, found):
    labels = {"x_label": "tokens", "unit": "seconds", "names": ["7B", "8x7B"], "floor": True}
    check_refused(
        lambda: figures.plot_beside(CONTEXTS, TOKEN_S, FLOOR_S, runs=runs, **labels),
        rf"runs are of {found} places: expected \[3, 3\]",
    )


@pytest.mark.parametrize("wrong", [TOKEN_S[:, :2], -TOKEN_S, TOKEN_S + np.inf])
def test_amounts_that_cannot_lie_beside_each_other_are_refused(wrong):
    labels = {"x_label": "x", "unit": "s"}
    check_refused(
        lambda: figures.plot_beside(CONTEXTS, wrong, FLOOR_S, names=["7B", "8x7B"], floor=True, **labels),
        "measured has shape",
    )
