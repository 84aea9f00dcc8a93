"""The pictures of the sliding window say what the arrays say, and are readable."""

import numpy as np
import pytest
from figure_checks import (
    EveryPlot,
    check_apart,
    check_refused,
    flag_at,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
)

from mistral_lab import figures
from mistral_lab.figures import language, style

INFLUENCE = np.array([[1.0, 0.1, 0.0, 0.0], [1.0, 0.2, 0.003, 0.0]])
REACHES = np.array([2, 3])
SHARES = np.array([[1.0, 1.0, 0.5], [1.0, 0.25, 0.0]])
GIB = np.array([[1.0, 1.0, 1.0], [2.0, 4.0, 6.0]])
SIZES = [256, 512, 1024]
MEASURED = np.array([[1.0, 2.0, 4.0], [np.nan, np.nan, 30.0]])
PREDICTED = np.array([[0.5, 1.0, 2.0], [np.nan, np.nan, 20.0]])
MEANS = np.array([[0.9, 0.5, 0.0], [0.4, 0.2, 0.1]])
LOWS, HIGHS = MEANS - np.array([0.1, 0.1, 0.0]), MEANS + 0.05


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
    look = {"names": names, "x_label": "tokens", "unit": "milliseconds", "guess": 3.9, "guess_label": "your guess"}
    return figures.plot_growth(SIZES, MEASURED, PREDICTED, **look, ax=ax)


def floors(ax=None):
    names = ["ring", "all, joined", "all, reserved"]
    measured, least = np.array([[2.0, 2.1, 2.2], [2.1, 4.0, 8.0], [2.0, 3.9, 7.9]]), np.array([[1.0, 1.0, 1.0]] * 3)
    least[1:] = [1.0, 2.0, 4.0]
    return figures.plot_growth(SIZES, measured, least, names=names, x_label="tokens", unit="ms", floors=True, ax=ax)


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


@pytest.mark.parametrize("plot", [influence, recall, cache, growth, floors, by_range])
class TestEveryPlot(EveryPlot):
    def test_labels_along_the_axis_do_not_cover_each_other(self, plot):
        ax = plot()
        ax.figure.draw_without_rendering()
        check_apart(ax.get_xticklabels())


def test_influence_leaves_out_what_is_exactly_zero_and_marks_the_reach():
    ax = influence()
    for curve, edge, values, reach in zip(ax.lines[::2], ax.lines[1::2], INFLUENCE, REACHES, strict=True):
        np.testing.assert_array_equal(curve.get_ydata(), np.where(values > 0, values, np.nan))
        assert list(edge.get_xdata()) == [reach - 1] * 2
        assert edge.get_color() is curve.get_color() or (edge.get_color() == curve.get_color()).all()
    assert ax.get_yscale() == "log"
    assert [(text.get_text(), text.xy[0]) for text in ax.texts] == [("1 layer", 1), ("2 layers", 2)]


def test_recall_draws_every_share_the_hops_and_the_guess():
    ax = recall()
    for drawn, line in zip(ax.lines[2:4], SHARES, strict=True):
        np.testing.assert_array_equal(drawn.get_ydata(), line)
        np.testing.assert_array_equal(drawn.get_xdata(), [10, 20, 30])
    named = {text.get_text(): text.xy for text in ax.texts}
    assert 20 < named["given"][0] < 30  # beside the line where it falls
    assert 10 < named["whole"][0] < 20
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


def test_recall_shades_its_intervals_and_plants_the_guess_at_its_distance():
    ax = recall()
    for band, shares in zip(ax.collections, SHARES, strict=True):
        edge = band.get_paths()[0].vertices
        for distance, share in zip([10, 20, 30], shares, strict=True):
            heights = edge[edge[:, 0] == distance, 1]
            ends = np.clip([share - 0.1, share + 0.1], 0, 1)
            np.testing.assert_allclose([heights.min(), heights.max()], ends, rtol=0, atol=1e-12)  # one sum
    np.testing.assert_allclose(flag_at(ax), [15, 0], rtol=0, atol=1e-9)  # to pixels and back


def test_a_guess_of_growth_stands_at_the_largest_size():
    np.testing.assert_allclose(flag_at(growth()), [SIZES[-1], 3.9])


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
    assert [line.get_color() for line in ax.lines[:4:2]] == list(style.SERIES[:2])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["256", "512", "1,024"]
    named = {text.get_text() for text in ax.texts}
    assert {"SDPA, window's mask", "windowed_attention", "your guess", "solid: measured\nhollow: predicted"} <= named
    low, high = ax.get_ylim()
    assert low < 3.9 < high


def test_the_room_for_a_guess_is_made():
    for guess in (0.01, 900.0):
        look = {"names": ["a", "b"], "x_label": "", "unit": "", "guess": guess}
        low, high = figures.plot_growth(SIZES, MEASURED, PREDICTED, **look).get_ylim()
        assert low < guess < high


def test_floors_are_lines_without_marks_that_say_at_least():
    ax = floors()
    for measured, least in zip(ax.lines[::2], ax.lines[1::2], strict=True):
        assert (measured.get_ydata() >= least.get_ydata()).all()
        assert (least.get_marker(), least.get_color()) == ("None", language.FLOOR)
    named = [text.get_text() for text in ax.texts if "at least" in text.get_text()]
    assert sorted(named) == ["at least: all", "at least: ring"]  # two of the ways have one floor
    assert "solid: measured\nhollow: predicted" not in {text.get_text() for text in ax.texts}


def test_caches_are_drawn_in_the_colour_of_keys_and_series_in_neutral_ones():
    assert {line.get_color() for line in cache().lines[:2]} == {language.KEY}
    assert {line.get_color() for line in recall().lines[2:4]} == set(style.SERIES[:2])
    assert not set(style.SERIES) & {language.QUERY, language.KEY, language.VALUE}


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
    at = {text.get_text(): text for text in ax.texts}
    for sign, name, colour in (("●", "tiny-mistral", style.SERIES[0]), ("■", "tiny-mixtral", style.SERIES[1])):
        assert at[sign].xy == at[name].xy  # the sign of a line stands before its name, in the line's colour
        assert at[sign].get_color() == colour
    assert [drawn.lines[0].get_marker() for drawn in ax.containers] == ["o", "s"]
    assert 1.5 in [line.get_xdata()[0] for line in ax.lines]


@pytest.mark.parametrize(
    ("call", "message"),
    [
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
