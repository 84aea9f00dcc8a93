"""Pictures of attention heads: what is drawn is what the arrays say, and it can be read."""

import numpy as np
import pytest
from figure_checks import (
    EveryPlot,
    check_refused,
    check_whole,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
)
from matplotlib.colors import to_rgba

from mistral_lab import figures
from mistral_lab.figures import heads

SHARED = np.array([0, 0, 0, 1, 1, 1])
WEIGHTS = np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.25, 0.25, 0.5]])
TOKENS = ["Nora", "lived", "."]
AS_BUILT = np.array([800.0, 320.0, 128.0]) * 2**10
MULTI_HEAD = np.array([800.0, 2560.0, 512.0]) * 2**10
MODELS = ["Llama 2 13B", "Llama 2 70B", "Mistral 7B"]
BUILT = ["multi-head", "grouped-query", "grouped-query"]
LENGTHS = np.array([0, 100_000])
MEMORY = np.array([[8.0, 58.0], [7.0, 20.0]]) * 2**30
LONGEST = np.array([16_000, 69_000])
COUNTS = [1, 4, 32]
MEDIAN_S = np.array([[0.001, 0.002, 0.009], [0.002, 0.05, 0.01]])
PREDICTED_S = np.array([0.0002, 0.0008, 0.006])
NAMES = ["as built", "averaged"]
MEANS, LOWS, HIGHS = np.array([0.62, 2.05]), np.array([0.57, 1.92]), np.array([0.66, 2.19])


def head_groups(ax=None):
    return figures.plot_head_groups(SHARED, scheme="grouped-query", ax=ax)


def head_weights(ax=None):
    return figures.plot_head_weights(WEIGHTS, shared=SHARED, tokens=TOKENS, title="layer 0", ax=ax)


def token_bytes(ax=None):
    return figures.plot_token_bytes(AS_BUILT, MULTI_HEAD, models=MODELS, schemes=BUILT, ax=ax)


def context(ax=None):
    return figures.plot_context(
        LENGTHS,
        MEMORY,
        schemes=["multi-head", "grouped-query"],
        longest=LONGEST,
        limit_bytes=16 * 2**30,
        title="weights in 4 bits",
        ax=ax,
    )


def decode(ax=None):
    return figures.plot_decode(
        COUNTS, MEDIAN_S / 2, MEDIAN_S, MEDIAN_S * 3, ways=["grouped", "copies"], predicted_s=PREDICTED_S, ax=ax
    )


def intervals(ax=None):
    return figures.plot_intervals(MEANS, LOWS, HIGHS, names=NAMES, unit="nats a token", ax=ax)


@pytest.mark.parametrize("plot", [head_groups, head_weights, token_bytes, context, decode, intervals])
class TestEveryPlot(EveryPlot):
    def test_readable_and_whole(self, plot):
        check_whole(plot().figure)  # the legend of `plot_context` stands inside, below its lines


def test_each_query_head_is_joined_to_the_head_it_reads():
    ax = head_groups()
    ends = [line.get_xydata().tolist() for line in ax.lines]
    assert ends == [[[head, 1], [1 if head < 3 else 4, 0]] for head in range(6)]  # a group's head stands in its middle
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2", "3", "4", "5", "0", "1"]
    assert {line.get_color() for line in ax.lines} == {heads.SCHEME_COLOURS["grouped-query"]}
    assert ax.get_title(loc="left") == "grouped-query"


def test_heads_that_are_no_neighbours_may_share():
    ends = [line.get_xydata()[1].tolist() for line in figures.plot_head_groups([0, 1, 0], scheme="grouped-query").lines]
    assert ends == [[1, 0], [1, 0], [1, 0]]


def test_weights_are_drawn_as_they_are_with_a_line_between_groups():
    ax = head_weights()
    np.testing.assert_array_equal(ax.images[0].get_array(), WEIGHTS)
    assert ax.images[0].get_clim() == (0, 1)
    assert [line.get_ydata()[0] for line in ax.lines] == [2.5]
    assert [label.get_text() for label in ax.get_xticklabels()] == TOKENS
    assert ax.get_yticklabels()[3].get_text() == "query head 3 (KV head 1)"


def test_token_bytes_stand_in_kib_with_each_way_of_building_named_once():
    ax = token_bytes()
    for bars, amounts, above in zip(ax.containers, (AS_BUILT, MULTI_HEAD), (-1, 1), strict=True):
        np.testing.assert_array_equal([bar.get_width() for bar in bars], amounts / 2**10)
        middles = [bar.get_y() + bar.get_height() / 2 for bar in bars]
        np.testing.assert_allclose(middles, np.arange(3) + 0.2 * above, rtol=1e-12)  # one sum
    assert [bar.get_facecolor() for bar in ax.containers[0]] == [to_rgba(heads.SCHEME_COLOURS[way]) for way in BUILT]
    assert [text.get_text() for text in ax.texts] == ["800", "320", "128", "800", "2,560", "512"]
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(named) == ["as built: grouped-query", "as built: multi-head", "if multi-head"]
    assert ax.yaxis_inverted()


def test_context_is_drawn_in_gib_and_marked_where_it_ends():
    ax = context()
    limit, *lines = ax.lines
    assert list(limit.get_ydata()) == [16, 16]
    for line, amounts in zip(lines, MEMORY, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.column_stack([LENGTHS / 1e3, amounts / 2**30]))
    assert [points.get_offsets().tolist() for points in ax.collections] == [[[16, 16]], [[69, 16]]]
    assert [text.get_text() for text in ax.texts] == ["16", "69"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["16 GiB", "multi-head", "grouped-query"]
    assert [line.get_color() for line in lines] == [
        heads.SCHEME_COLOURS["multi-head"],
        heads.SCHEME_COLOURS["grouped-query"],
    ]


def test_decode_times_stand_in_milliseconds_with_bars_from_fastest_to_slowest():
    ax = decode()
    predicted = ax.lines[0]
    np.testing.assert_allclose(predicted.get_xydata(), np.column_stack([COUNTS, PREDICTED_S * 1e3]), rtol=1e-12)
    assert predicted.get_linestyle() == "--"
    for container, row in zip(ax.containers, MEDIAN_S, strict=True):
        line, _, [bars] = container.lines
        np.testing.assert_allclose(line.get_xydata(), np.column_stack([COUNTS, row * 1e3]), rtol=1e-12)
        spans = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(spans, np.column_stack([row / 2, row * 3]) * 1e3, rtol=1e-9)  # sums of products
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {
        "predicted: the least",
        "measured: grouped",
        "measured: copies",
    }


def test_intervals_span_low_to_high_from_the_top():
    ax = intervals()
    line, _, [bars] = ax.containers[0].lines
    np.testing.assert_array_equal(line.get_xydata(), np.column_stack([MEANS, range(2)]))
    spans = np.array([segment[:, 0] for segment in bars.get_segments()])
    np.testing.assert_allclose(spans, np.column_stack([LOWS, HIGHS]), rtol=1e-12)  # one sum
    assert [text.get_text() for text in ax.texts] == ["0.62", "2.05"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_xlim()[0] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.plot_head_groups([0, 2], scheme="multi-head"), r"shared is \[0, 2\]: expected"),
        (lambda: figures.plot_head_groups([], scheme="multi-head"), r"shared is \[\]: expected"),
        (lambda: figures.plot_head_groups([0, 0], scheme="half"), "scheme is 'half': expected one of multi-head"),
        (lambda: figures.plot_head_weights(WEIGHTS.T, shared=SHARED, tokens=TOKENS), r"\(3, 6\): expected \(6, 3\)"),
        (lambda: figures.plot_head_weights(2 * WEIGHTS, shared=SHARED, tokens=TOKENS), "outside 0 to 1"),
        (lambda: figures.plot_head_weights(WEIGHTS * np.nan, shared=SHARED, tokens=TOKENS), "NaN"),
        (
            lambda: figures.plot_token_bytes(AS_BUILT[:2], MULTI_HEAD, models=MODELS, schemes=BUILT),
            r"\(2,\): expected \(3,\)",
        ),
        (lambda: figures.plot_token_bytes(AS_BUILT, MULTI_HEAD, models=MODELS, schemes=BUILT[:2]), "2 schemes for 3"),
        (
            lambda: figures.plot_context(
                LENGTHS, MEMORY, schemes=["multi-head"], longest=LONGEST, limit_bytes=1, title=""
            ),
            r"memory_bytes has shape \(2, 2\)",
        ),
        (
            lambda: figures.plot_decode(
                COUNTS, MEDIAN_S, MEDIAN_S[:1], MEDIAN_S, ways=["a", "b"], predicted_s=PREDICTED_S
            ),
            r"median_s has shape \(1, 3\): expected \(2, 3\)",
        ),
        (
            lambda: figures.plot_decode(
                COUNTS, MEDIAN_S, MEDIAN_S, MEDIAN_S, ways=["a", "b"], predicted_s=0 * PREDICTED_S
            ),
            "predicted_s holds 0: expected",
        ),
        (
            lambda: figures.plot_decode(
                COUNTS, 2 * MEDIAN_S, MEDIAN_S, MEDIAN_S, ways=["a", "b"], predicted_s=PREDICTED_S
            ),
            "a median lies outside its interval",
        ),
        (lambda: figures.plot_intervals(MEANS, HIGHS, LOWS, names=NAMES, unit=""), "outside its interval"),
        (lambda: figures.plot_intervals(MEANS, LOWS, HIGHS, names=NAMES[:1], unit=""), r"\(2,\): expected \(1,\)"),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)
