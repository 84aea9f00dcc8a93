"""Charts of what heads cost say what the arrays say, and are readable."""

import numpy as np
import pytest
from figure_checks import (
    EveryPlot,
    check_apart,
    check_refused,
    check_whole,
    flag_at,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
)
from matplotlib.colors import to_rgba

from mistral_lab import figures
from mistral_lab.figures.language import KEY, VALUE

KEPT = np.array([800.0, 320.0, 128.0]) * 2**10
MULTI_HEAD = np.array([800.0, 2560.0, 512.0]) * 2**10
MODELS = ["Llama 2 13B", "Llama 2 70B", "Mistral 7B"]
FITS = np.array([[7_699, 33_966, 279_131], [24_083, 99_502, 803_419]])
COUNTS = [32, 4, 1]
RUNS_S = np.array([[0.008, 0.009, 0.011], [0.002, 0.003, 0.01], [0.001, 0.001, 0.002]])
BY_HEAD_S = {"bfloat16": 2 * RUNS_S[0], "float32": 2.5 * RUNS_S[0]}
FLOOR_S = np.array([0.002, 0.0003, 0.0001])
WAYS = {"copies": np.array([0.06, 0.05, 0.09]), "rows": np.array([0.004, 0.003, 0.005]), "yours": np.array([0.004] * 3)}
NAMES = ["as built", "averaged"]
MEANS, LOWS, HIGHS = np.array([0.62, 2.05]), np.array([0.57, 1.92]), np.array([0.66, 2.19])


def kept_bytes(ax=None):
    return figures.plot_kept_bytes(KEPT, MULTI_HEAD, names=MODELS, unit="KiB", unit_bytes=2**10, of="per token", ax=ax)


def longest(ax=None):
    return figures.plot_longest(FITS, cards=["8 GiB", "16 GiB"], heads=[32, 8, 1], declared=32_768, ax=ax)


def head_times(ax=None):
    return figures.plot_head_times(COUNTS, RUNS_S, FLOOR_S, ax=ax)


def row_times():
    predicted_s = {"bfloat16": 0.036, "float32": 0.054}
    return figures.plot_row_times([1, 2, 4], {"bfloat16": RUNS_S, "float32": 1.5 * RUNS_S}, BY_HEAD_S, predicted_s)


def intervals(ax=None):
    return figures.plot_intervals(MEANS, LOWS, HIGHS, names=NAMES, unit="loss, nats per token", ax=ax)


def ways(**options):
    runs_s = {"bfloat16": WAYS, "float32": {way: 2 * runs for way, runs in WAYS.items()}}
    return figures.plot_ways(runs_s, {"bfloat16": 0.001, "float32": 0.002}, **({"shown": list(WAYS)} | options))


def partly():
    return ways(shown=["copies", "yours"], guess_s=0.02)


@pytest.mark.parametrize("plot", [kept_bytes, longest, head_times, intervals])
class TestEveryPlot(EveryPlot):
    """Holds for each picture on Axes."""


@pytest.mark.parametrize("draw", [ways, partly, row_times])
def test_several_panels_are_whole_and_their_texts_apart(draw):
    figure = draw()
    check_whole(figure)
    for ax in figure.axes:
        check_apart(ax.texts)


def test_kept_bytes_are_half_keys_and_half_values_in_the_outline_of_a_head_each():
    outline, keys, values = kept_bytes().containers
    np.testing.assert_array_equal([bar.get_width() for bar in outline], MULTI_HEAD / 2**10)
    for bars, colour, left in ((keys, KEY, 0 * KEPT), (values, VALUE, KEPT / 2**11)):
        np.testing.assert_array_equal([bar.get_width() for bar in bars], KEPT / 2**11)
        np.testing.assert_array_equal([bar.get_x() for bar in bars], left)
        assert {bar.get_facecolor() for bar in bars} == {to_rgba(colour)}
    assert [text.get_text() for text in kept_bytes().texts][:2] == ["800 KiB", "320 KiB, unshared 2,560"]


def test_a_guess_of_bytes_is_a_flag_above_the_first_row():
    options = {"names": MODELS, "unit": "KiB", "unit_bytes": 2**10, "of": "per token"}
    ax = figures.plot_kept_bytes(KEPT, MULTI_HEAD, **options, guess=100 * 2**10, guess_label="your guess: 4 heads")
    [flag] = [text for text in ax.texts if text.get_text() == "your guess: 4 heads"]
    assert flag.xy == (100, -0.28)
    check_whole(ax.figure)
    check_apart([text for text in ax.texts if text.get_text()])


def test_the_longest_texts_stand_in_thousands_each_with_its_number():
    ax = longest()
    places = np.array([line.get_xdata() for line in ax.lines[1:]])
    np.testing.assert_allclose(places.T, FITS / 1e3)
    assert {"32 KV heads: 7,699 tokens", "1 KV head: 803,419 tokens", "made for 32,768 tokens"} <= {
        text.get_text() for text in ax.texts
    }


def test_times_of_heads_stand_in_milliseconds_above_their_floor():
    ax = head_times()
    [container] = ax.containers
    line, _, [bars] = container.lines
    np.testing.assert_allclose(line.get_xydata(), np.column_stack([COUNTS, 1e3 * np.median(RUNS_S, axis=1)]))
    spans = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(spans, 1e3 * np.column_stack([RUNS_S.min(axis=1), RUNS_S.max(axis=1)]))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 1e3 * FLOOR_S)
    assert ax.lines[0].get_marker() == "None"  # a floor is a line, as everywhere
    assert "at least,\nto read them" in {text.get_text() for text in ax.texts}


def test_only_the_ways_that_are_shown_have_a_name_and_a_bar():
    first, second = ways(shown=["copies", "yours"], guess_s=0.02, guess_label="your guess").axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["copies", "?", "yours"]
    np.testing.assert_allclose([bars[0].get_width() for bars in first.containers], [60, 4])
    np.testing.assert_allclose([bars[0].get_width() for bars in second.containers], [120, 8])
    texts = [[text.get_text() for text in ax.texts] for ax in (first, second)]
    assert "your guess" in texts[0]
    assert "your guess" not in texts[1]
    assert "at least 1.0 ms" in texts[0]


def test_a_guess_and_the_floors_stand_at_their_times():
    figure = partly()
    milliseconds, row = flag_at(figure.axes[0])
    assert milliseconds == pytest.approx(20)
    assert -0.5 < row < 0  # over the first way, which is shown
    for drawn in (figure, ways()):
        floors = [ax.lines[-1].get_xdata() for ax in drawn.axes]
        np.testing.assert_allclose(floors, [[1, 1], [2, 2]])


def test_all_ways_stand_as_dots_on_a_logarithmic_axis():
    first, _ = ways().axes
    assert first.get_xscale() == "log"
    assert [line.get_xdata()[0] for line in first.lines if line.get_marker() == "o"] == [60, 4, 4]


def test_one_by_one_stands_beside_what_four_single_rows_predict():
    first, second = row_times().axes
    for ax, predicted, apart in ((first, 36, 18), (second, 54, 22.5)):
        hollow = [line.get_ydata() for line in ax.lines if line.get_markerfacecolor() == "white"]
        assert hollow == [pytest.approx(predicted)]
        solid = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "s"]
        assert solid == [pytest.approx(apart)]


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
        (
            lambda: figures.plot_kept_bytes(
                KEPT[:2], MULTI_HEAD, names=MODELS, unit="KiB", unit_bytes=1, of="per token"
            ),
            r"\(2,\): expected \(3,\)",
        ),
        (lambda: figures.plot_longest(FITS, cards=["8 GiB"], heads=[32, 8, 1], declared=1), r"\(2, 3\): expected"),
        (lambda: figures.plot_longest(0 * FITS, cards=["a", "b"], heads=[32, 8, 1], declared=1), "tokens holds 0"),
        (lambda: figures.plot_head_times(COUNTS, RUNS_S, 0 * FLOOR_S), "floor_s holds 0: expected"),
        (lambda: figures.plot_head_times(COUNTS[:2], RUNS_S, FLOOR_S), r"\(3, 3\): expected \(2, 3\)"),
        (
            lambda: figures.plot_row_times([1, 2], {"float32": RUNS_S}, BY_HEAD_S, {"float32": 0.036}),
            r"\(3, 3\): expected \(2, 3\)",
        ),
        (lambda: figures.plot_intervals(MEANS, HIGHS, LOWS, names=NAMES, unit=""), "outside its interval"),
        (lambda: figures.plot_intervals(MEANS, LOWS, HIGHS, names=NAMES[:1], unit=""), r"\(2,\): expected \(1,\)"),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)
