"""The pictures of four-bit numbers say what the arrays say, and are readable."""

import numpy as np
import pytest
from figure_checks import (
    EveryPlot,
    check_apart,
    check_refused,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
)
from matplotlib.colors import to_hex

from mistral_lab import figures
from mistral_lab.figures import style

X, DENSITY = np.array([-2.0, 0.0, 2.0]), np.array([0.1, 0.4, 0.1])
VALUES, HEIGHTS = np.array([-1.0, 0.5]), np.array([0.2, 0.3])
EDGES, SHARES = np.array([-1.0, 0.0, 1.0]), np.array([0.4, 0.6])
WEIGHTS, ROUNDED, LEVELS = np.array([0.1, -0.2, 0.15]), np.array([0.0, -0.2, 0.2]), np.array([-0.2, 0.0, 0.2, 5.0])
SIZES, BY_BLOCK = [32, 64, 128], np.array([[0.08, 0.09, 0.1], [0.08, 0.1, 0.12]])
BY_FORMAT = np.array([[0.09, 0.1, 0.11], [0.12, 0.13, 0.15]])
BY_LAYER = np.array([[0.09, 0.1], [0.12, 0.08]])
CHANGES = np.array([[0.0, 0.001], [0.0, 0.002]])
LOWS, HIGHS = CHANGES - 0.001, CHANGES + 0.002


def quantiles(ax=None):
    return figures.plot_quantiles(X, DENSITY, values=VALUES, heights=HEIGHTS, ax=ax)


def codebooks(ax=None):
    books = [np.array([-1, 0, 1]), np.array([-0.5, 0.5])]
    return figures.plot_codebooks(EDGES, SHARES, codebooks=books, names=["NF4", "FP4"], title="a model", ax=ax)


def rounded_block(ax=None):
    return figures.plot_rounded_block(WEIGHTS, ROUNDED, levels=LEVELS, title="a block", ax=ax)


def by_block(ax=None):
    return figures.plot_errors_by_block(
        SIZES, BY_BLOCK, BY_BLOCK[0], bits=[5, 4.5, 4.25], names=["normal", "trained"], ax=ax
    )


def by_format(ax=None):
    return figures.plot_format_errors(BY_FORMAT, BY_FORMAT[:, 0], names=["NF4", "FP4"], what="a matrix", ax=ax)


def by_layer(ax=None):
    return figures.plot_error_map(
        BY_LAYER, kinds=["q_proj", "k_proj"], layers=[0, 4], predicted=0.1, title="NF4", ax=ax
    )


def loss_changes(ax=None):
    return figures.plot_loss_changes(CHANGES, LOWS, HIGHS, formats=["int8", "NF4"], models=["one", "two"], ax=ax)


@pytest.mark.parametrize("plot", [quantiles, codebooks, rounded_block, by_block, by_format, by_layer, loss_changes])
class TestEveryPlot(EveryPlot):
    pass


def points(line):
    return np.column_stack(line.get_data())


def test_each_quantile_is_a_line_up_to_the_curve_with_its_number():
    ax = quantiles()
    np.testing.assert_array_equal(points(ax.lines[0]), np.column_stack([X, DENSITY]))
    expected = [[[value, 0], [value, height]] for value, height in zip(VALUES, HEIGHTS, strict=True)]
    area, lines = ax.collections
    np.testing.assert_array_equal(lines.get_segments(), expected)
    outline = area.get_paths()[0].vertices
    assert (outline[:, 0].min(), outline[:, 0].max()) == tuple(VALUES)
    assert [(text.get_text(), text.xy) for text in ax.texts] == [("0", (-1.0, 0.2)), ("1", (0.5, 0.3))]


def test_codebooks_stand_in_rows_under_the_weights():
    ax = codebooks()
    np.testing.assert_array_equal(ax.patches[0].get_data().values, SHARES)
    np.testing.assert_array_equal(ax.patches[0].get_data().edges, EDGES)
    first, second = (points(line) for line in ax.lines[1:])
    assert (first[:, 0].tolist(), second[:, 0].tolist()) == ([-1, 0, 1], [-0.5, 0.5])
    ticks = dict(zip((text.get_text() for text in ax.get_yticklabels()), ax.get_yticks(), strict=True))
    assert (set(first[:, 1]), set(second[:, 1])) == ({ticks["NF4"]}, {ticks["FP4"]})
    assert 0 > ticks["NF4"] > ticks["FP4"]


def test_a_block_joins_each_weight_to_what_it_is_rounded_to():
    ax = rounded_block()
    levels, moves = ax.collections
    assert [segment[0][1] for segment in levels.get_segments()] == [-0.2, 0.0, 0.2]  # 5 lies outside
    drawn = [[end[1] for end in segment] for segment in moves.get_segments()]
    assert drawn == np.column_stack([WEIGHTS, ROUNDED]).tolist()
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines], [WEIGHTS, ROUNDED])


def test_a_limit_leaves_the_outlier_out_of_the_picture():
    ax = figures.plot_rounded_block(WEIGHTS, ROUNDED, levels=LEVELS, title="a block", limit=0.17)
    assert ax.get_ylim() == (-0.17, 0.17)
    assert len(ax.collections[0].get_segments()) == 1
    arrow, label = ax.texts
    assert arrow.xy == (1, -0.17)  # where it leaves the picture
    assert label.get_text() == "-0.2"


def test_errors_by_block_are_per_cent_and_hollow_where_predicted():
    ax = by_block()
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines], [100 * BY_BLOCK[0], *(100 * BY_BLOCK)])
    assert [line.get_linestyle() for line in ax.lines] == ["None", "-", "-"]
    assert ax.lines[0].get_markerfacecolor() == "white"
    assert to_hex(ax.lines[1].get_color()) == style.MEASURED
    assert [label.get_text() for label in ax.get_xticklabels()] == ["32\n5.000", "64\n4.500", "128\n4.250"]


def test_every_matrix_has_its_mark_in_the_row_of_its_format():
    ax = by_format()
    predicted, marks = (points(line) for line in ax.lines)
    np.testing.assert_array_equal(predicted, np.column_stack([100 * BY_FORMAT[:, 0], [0, 1]]))
    np.testing.assert_array_equal(marks[:, 0], 100 * BY_FORMAT.ravel())
    assert marks[:, 1].round().tolist() == [0, 0, 0, 1, 1, 1]
    assert ax.yaxis_inverted()


def test_the_map_has_a_cell_and_a_number_for_each_matrix():
    ax = by_layer()
    colours = ax.images[0].get_array()[..., :3]
    np.testing.assert_allclose(colours[0, 1], colours[0, 1].max(), atol=0.02)  # as predicted: white, or nearly
    assert colours[1, 0, 2] > colours[1, 0, 0] + 0.1  # a larger error: teal
    np.testing.assert_allclose(colours[1, 1], colours[1, 1].mean(), atol=0.1)  # a smaller one: grey
    assert [text.get_text() for text in ax.texts] == ["9.0", "10.0", "12.0", "8.0"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "4"]


def test_loss_changes_are_thousandths_with_their_intervals():
    ax = loss_changes()
    for container, means, lows, highs in zip(ax.containers, CHANGES, LOWS, HIGHS, strict=True):
        line, _, (bars,) = container
        np.testing.assert_array_equal(line.get_xdata(), 1000 * means)
        ends = np.array(bars.get_segments())[:, :, 0]
        np.testing.assert_allclose(ends, 1000 * np.column_stack([lows, highs]), atol=1e-12)  # a difference and a sum
    assert [label.get_text() for label in ax.get_yticklabels()] == ["int8", "NF4"]


def test_the_numbers_of_all_sixteen_values_of_nf4_are_apart():
    places = np.array(
        [-1.85, -1.29, -0.97, -0.73, -0.53, -0.34, -0.17, 0, 0.15, 0.3, 0.45, 0.62, 0.81, 1.04, 1.34, 1.85]
    )
    x = np.linspace(-2.6, 2.6, 50)
    ax = figures.plot_quantiles(x, np.exp(-x * x / 2), values=places, heights=np.exp(-places * places / 2))
    ax.figure.canvas.draw()
    check_apart(ax.texts)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.plot_quantiles(X, -DENSITY, values=VALUES, heights=HEIGHTS), "0 or more"),
        (lambda: figures.plot_code_shares(-np.ones(16), title="", ax=None), "0 or more"),
        (lambda: figures.plot_quantiles(X, DENSITY, values=VALUES, heights=HEIGHTS[:1]), r"\(2,\): expected \(1,\)"),
        (
            lambda: figures.plot_codebooks(EDGES[1:], SHARES, codebooks=[VALUES], names=["a"], title=""),
            r"\(2,\): expected \(1,\)",
        ),
        (
            lambda: figures.plot_rounded_block(WEIGHTS * np.nan, ROUNDED, levels=LEVELS, title=""),
            r"\(3,\), all of them finite",
        ),
        (
            lambda: figures.plot_errors_by_block(SIZES, BY_BLOCK[0], BY_BLOCK[0], bits=SIZES, names=["a"]),
            r"expected \(1, 3\)",
        ),
        (lambda: figures.plot_format_errors(BY_FORMAT, BY_FORMAT[0], names=["a", "b"], what=""), r"expected \(2,\)"),
        (
            lambda: figures.plot_error_map(BY_LAYER, kinds=["a"], layers=[0, 1], predicted=0.1, title=""),
            r"\(2, 2\): expected \(1, 2\)",
        ),
        (
            lambda: figures.plot_loss_changes(CHANGES, HIGHS, LOWS, formats=["a", "b"], models=["c", "d"]),
            "outside its interval",
        ),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)
