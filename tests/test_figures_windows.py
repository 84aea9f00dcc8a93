"""The pictures of the sliding window say what the arrays say, and are readable."""

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
from mistral_lab.figures import style, windows

MASK = np.array([[True, False, False], [True, True, False], [False, True, True]])
INFLUENCE = np.array([[1.0, 0.1, 0.0, 0.0], [1.0, 0.2, 0.003, 0.0]])
REACHES = np.array([2, 3])
SHARES = np.array([[1.0, 1.0, 0.5], [1.0, 0.25, 0.0]])
GIB = np.array([[1.0, 1.0, 1.0], [2.0, 4.0, 6.0]])
SIZES = [256, 512, 1024]
MEASURED = np.array([[1.0, 2.0, 4.0], [np.nan, np.nan, 30.0]])
PREDICTED = np.array([[0.5, 1.0, 2.0], [np.nan, np.nan, 20.0]])
MEANS = np.array([[0.9, 0.5, 0.0], [0.4, 0.2, 0.1]])
LOWS, HIGHS = MEANS - np.array([0.1, 0.1, 0.0]), MEANS + 0.05


def mask(ax=None):
    return figures.plot_mask(MASK, row=2, title="window of 2", ax=ax)


def influence(ax=None):
    return figures.plot_influence(INFLUENCE, reaches=REACHES, names=["1 layer", "2 layers"], unit="gradient", ax=ax)


def recall(ax=None):
    bounds = np.stack([np.clip(SHARES - 0.1, 0, 1), np.clip(SHARES + 0.1, 0, 1)])
    return figures.plot_recall(
        [10, 20, 30],
        SHARES,
        names=["given", "whole"],
        hop=12,
        hops=2,
        bounds=bounds,
        guess=15,
        guess_label="your guess",
        ax=ax,
    )


def cache(ax=None):
    return figures.plot_cache_bytes([1, 2, 3], GIB, names=["window", "none"], free=[("4 GiB", 4.0)], ax=ax)


def growth(ax=None):
    names = ["SDPA, window's mask", "windowed_attention"]
    return figures.plot_growth(SIZES, MEASURED, PREDICTED, names=names, x_label="tokens", unit="milliseconds", ax=ax)


def by_range(ax=None):
    return figures.plot_by_range(
        MEANS,
        LOWS,
        HIGHS,
        names=["tiny-mistral", "tiny-mixtral"],
        ranges=["0–63", "64–127", "128–191"],
        x_label="positions",
        unit="nats a token",
        divider=(1.5, "trained length"),
        ax=ax,
    )


@pytest.mark.parametrize("plot", [mask, influence, recall, cache, growth, by_range])
class TestEveryPlot(EveryPlot):
    def test_labels_along_the_axis_do_not_cover_each_other(self, plot):
        ax = plot()
        ax.figure.draw_without_rendering()
        check_apart(ax.get_xticklabels())


def test_a_mask_colours_what_may_be_seen_and_frames_the_row():
    ax = mask()
    cells = ax.collections[0].get_array()
    for query, key in np.ndindex(3, 3):
        expected = windows.VISIBLE if MASK[query, key] else style.FADED
        assert to_hex(cells[query, key]) == expected
    [frame] = ax.patches
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (-0.5, 1.5, 3, 1)
    assert ax.yaxis_inverted()
    assert ax.get_title(loc="left") == "window of 2"


def test_influence_leaves_out_what_is_exactly_zero_and_marks_the_reach():
    ax = influence()
    for curve, edge, values, reach in zip(ax.lines[::2], ax.lines[1::2], INFLUENCE, REACHES, strict=True):
        np.testing.assert_array_equal(curve.get_ydata(), np.where(values > 0, values, np.nan))
        assert list(edge.get_xdata()) == [reach - 1] * 2
        assert edge.get_color() is curve.get_color() or (edge.get_color() == curve.get_color()).all()
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["1 layer", "2 layers"]


def test_recall_draws_every_share_the_hops_and_the_guess():
    ax = recall()
    drawn = {line.get_label(): line for line in ax.lines}
    for name, line in zip(("given", "whole"), SHARES, strict=True):
        np.testing.assert_array_equal(drawn[name].get_ydata(), line)
        np.testing.assert_array_equal(drawn[name].get_xdata(), [10, 20, 30])
    upright = [line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1]
    assert upright == [12, 24]
    texts = [text.get_text() for text in ax.texts]
    assert {"1 hop", "at most\n24 tokens", "your guess"} <= set(texts)


def test_caches_end_at_their_names_and_limits_are_drawn():
    ax = cache()
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines[:2]], GIB)
    assert {"window", "none", "4 GiB"} == {text.get_text() for text in ax.texts}
    assert ax.lines[2].get_ydata()[0] == 4
    assert ax.get_ylim()[0] == 0


def test_growth_draws_measured_solid_and_predicted_dashed_with_one_marker_a_way():
    ax = growth()
    for way, (measured, predicted) in enumerate(zip(ax.lines[:4:2], ax.lines[1:4:2], strict=True)):
        np.testing.assert_array_equal(measured.get_ydata(), MEASURED[way])
        np.testing.assert_array_equal(predicted.get_ydata(), PREDICTED[way])
        np.testing.assert_array_equal(measured.get_xdata(), SIZES)
        assert (measured.get_linestyle(), predicted.get_linestyle()) == ("-", "--")
        assert measured.get_marker() == predicted.get_marker()
        assert predicted.get_color() == measured.get_color()
        assert predicted.get_markerfacecolor() == "white"
    assert ax.lines[0].get_color() == style.MEASURED
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["256", "512", "1,024"]
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named == ["SDPA, window's mask", "windowed_attention", "predicted (hollow)"]


def test_ranges_hold_means_and_intervals_in_their_places():
    ax = by_range()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0–63", "64–127", "128–191"]
    for series, drawn in enumerate(ax.containers):
        line, _, (bars,) = drawn.lines
        np.testing.assert_array_equal(line.get_ydata(), MEANS[series])
        assert np.abs(line.get_xdata() - np.arange(3)).max() < 0.5  # nearer to its own place than to the next
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends, np.column_stack([LOWS[series], HIGHS[series]]), rtol=0, atol=1e-12)  # one sum
    low, high = ax.get_ylim()
    assert low <= 0 < HIGHS.max() < high
    assert "trained length" in [text.get_text() for text in ax.texts]
    assert 1.5 in [line.get_xdata()[0] for line in ax.lines]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.plot_mask(MASK.astype(int), row=0, title=""), r"\(3, 3\) in int64: expected bool"),
        (lambda: figures.plot_mask(MASK, row=3, title=""), "row is 3: expected a query from 0 to 2"),
        (
            lambda: figures.plot_influence(INFLUENCE, reaches=REACHES[:1], names=["a", "b"], unit=""),
            r"\(2, 4\), with 1 reaches and 2 names",
        ),
        (
            lambda: figures.plot_influence(-INFLUENCE, reaches=REACHES, names=["a", "b"], unit=""),
            "an amount is negative, infinite or NaN: expected finite amounts of 0 or more",
        ),
        (
            lambda: figures.plot_recall([1, 2], SHARES, names=["a", "b"], hop=1, hops=1),
            r"shares has shape \(2, 3\): expected \(2, 2\)",
        ),
        (
            lambda: figures.plot_recall([1, 2, 3], 2 * SHARES, names=["a", "b"], hop=1, hops=1),
            "shares go from 0.0 to 2.0: expected 0 to 1",
        ),
        (
            lambda: figures.plot_growth(SIZES, MEASURED.T, PREDICTED, names=["a", "b"], x_label="", unit=""),
            r"measured has shape \(3, 2\): expected \(2, 3\)",
        ),
        (
            lambda: figures.plot_growth(SIZES, MEASURED, 0 * PREDICTED, names=["a", "b"], x_label="", unit=""),
            "predicted holds 0: expected finite numbers above 0, or NaN",
        ),
        (
            lambda: figures.plot_by_range(MEANS, LOWS, HIGHS, names=["a"], ranges=["b", "c", "d"], x_label="", unit=""),
            r"shape \(2, 3\): expected \(1, 3\)",
        ),
        (
            lambda: figures.plot_by_range(
                MEANS, HIGHS, LOWS, names=["a", "b"], ranges=["c", "d", "e"], x_label="", unit=""
            ),
            "a mean lies outside its interval",
        ),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)
