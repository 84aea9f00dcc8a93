"""The pictures of one model on several devices say what the arrays say, and are readable."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_checks import (
    check_apart,
    check_drawn_in_place,
    check_refused,
    check_whole,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
    title_of,
)
from matplotlib.colors import to_hex

from mistral_lab import figures
from mistral_lab.figures import machines, style

ROWS = ["embedding", "attention", "expert 0", "expert 1", "output"]
PLACED = np.ma.masked_all((2, 5, 3), dtype=int)
PLACED[0, 1:4] = [[0, 0, 1]] * 3
PLACED[1, 1:4] = [[-1] * 3, [-2] * 3, [1] * 3]
RANKS = [2, 3, 4]
RECEIVED = np.array([[1000.0, np.nan, 3000.0], [500.0, 1000.0, 1500.0], [8.0, 16.0, 24.0]])


def placement(axes=None):
    return figures.plot_placement(PLACED, names=["layers", "experts"], rows=ROWS, across="layer", axes=axes)


def traffic(ax=None):
    return figures.plot_traffic(RANKS, RECEIVED, names=["tensors", "experts", "layers"], unit="KiB", ax=ax)


def received(ax=None):
    return figures.plot_received([4.0, 0.0, 1500.5], names=["layers", "b", "c"], chosen="c", unit="KiB", ax=ax)


def drawn(ax):
    """Cell (row, column) -> the colours and hatches of its rectangles, from the top."""
    cells = {}
    for patch in sorted(ax.patches, key=lambda patch: patch.get_y()):
        cell = int(patch.get_y() + patch.get_height() / 2 + 0.5), round(patch.get_x() + 0.46)
        cells.setdefault(cell, []).append((to_hex(patch.get_facecolor()), patch.get_hatch()))
    return cells


def test_every_cell_has_the_colour_of_its_device_and_no_tensor_is_blank():
    looks = (machines.FIRST, machines.SECOND, machines.BOTH)
    first, second, both = ((to_hex(look["facecolor"]), look.get("hatch")) for look in looks)
    assert len({first, second, both}) == 3
    looks = {0: [first], 1: [second], -1: [both], -2: [first, second]}
    for ax, grid, name in zip(placement(), PLACED, ["layers", "experts"], strict=True):
        expected = {cell: looks[where] for cell, where in np.ndenumerate(grid.filled(9)) if where != 9}
        assert drawn(ax) == expected
        assert ax.get_title(loc="left") == name
        assert ax.get_xlabel() == "layer"
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == [
        "device 0", "device 1", "half on each", "whole on both",
    ]  # fmt: skip


def test_placement_draws_where_it_is_told():
    figure, axes = figures.new_figure(1, 3)
    returned = placement(axes[0, 1:])
    assert list(returned) == list(axes[0, 1:])
    assert not axes[0, 0].patches
    assert plt.get_fignums() == [figure.number]


def test_traffic_is_drawn_where_it_is_known():
    ax = traffic()
    for line, row, name in zip(ax.lines, RECEIVED, ["tensors", "experts", "layers"], strict=True):
        there = ~np.isnan(row)
        np.testing.assert_array_equal(line.get_xdata(), np.array(RANKS)[there])
        np.testing.assert_array_equal(line.get_ydata(), row[there])
        [label] = [text for text in ax.texts if text.get_text() == name]
        assert label.xy == (RANKS[-1], row[-1])
        assert (line.get_color(), line.get_markerfacecolor()) == (style.PREDICTED, "white")  # nothing was measured
    assert len({line.get_marker() for line in ax.lines}) == 3
    assert ax.get_yscale() == "log"
    assert list(ax.get_xticks()) == RANKS


def test_what_is_received_has_its_number_and_the_chosen_way_its_colour():
    ax = received()
    assert [bar.get_width() for bar in ax.containers[0]] == [4.0, 0.0, 1500.5]
    assert [text.get_text() for text in ax.texts] == ["4", "0", "1,500"]  # half to even
    assert [to_hex(bar.get_edgecolor()) for bar in ax.containers[0]] == [style.FADED, style.FADED, style.PREDICTED]
    assert {to_hex(bar.get_facecolor()) for bar in ax.containers[0]} == {"#ffffff"}  # hollow: nothing was measured
    assert [label.get_fontweight() for label in ax.get_yticklabels()] == ["normal", "normal", "bold"]
    assert ax.yaxis_inverted()
    none = figures.plot_received([0.0], names=["a"], chosen="a", unit="KiB")
    assert none.get_xlim() == (0, 1)


@pytest.mark.parametrize("plot", [traffic, received])
def test_what_crosses_is_drawn_where_it_is_told(plot):
    check_drawn_in_place(plot)


def test_no_text_leaves_the_figure_or_covers_another():
    axes = placement()
    legend = axes[0].figure.legends[0].get_texts()
    check_whole(axes[0].figure)
    check_apart([*(title for ax in axes for title in title_of(ax)), *legend, *(ax.xaxis.label for ax in axes)])
    for ax in (traffic(), received()):
        check_whole(ax.figure)
        check_apart([*ax.texts, *(ax.get_legend().get_texts() if ax.get_legend() else [])])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: figures.plot_placement(PLACED[0], names=["a"], rows=ROWS, across="layer"),
            r"placed has shape \(5, 3\): expected \(1, 5\) and columns",
        ),
        (
            lambda: figures.plot_placement(PLACED + 5, names=["a", "b"], rows=ROWS, across="layer"),
            "placed holds a number other than 0, 1, -1 and -2",
        ),
        (
            lambda: figures.plot_placement(np.zeros((5, 1, 1), int), names=list("abcde"), rows=["a"], across=""),
            "5 ways: expected at most 4",
        ),
        (
            lambda: figures.plot_traffic(RANKS, RECEIVED, names=["a"], unit=""),
            r"received has shape \(3, 3\): expected \(1, 3\)",
        ),
        (lambda: figures.plot_traffic(RANKS, 0 * RECEIVED, names=list("abc"), unit=""), "received holds 0: expected"),
        (
            lambda: figures.plot_traffic(RANKS, np.nan * RECEIVED, names=list("abc"), unit=""),
            "received holds no number",
        ),
        (lambda: figures.plot_received([1.0], names=["a"], chosen="b", unit=""), "chosen is 'b': expected one of a"),
        (lambda: figures.plot_received([-1.0], names=["a"], chosen="a", unit=""), "an amount is negative"),
        (lambda: figures.plot_traffic([2], np.ones((5, 1)), names=list("abcde"), unit=""), "5 ways: expected at most"),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)
