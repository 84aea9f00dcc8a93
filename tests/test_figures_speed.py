"""Pictures of times: a token beside its floor, passes with more tokens, models with fewer layers."""

import numpy as np
import pytest
from figure_checks import (
    EveryPlot,
    check_apart,
    check_refused,
    flag_at,
    names_from_top,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
)

from mistral_lab import figures

TASKS = ["a prompt token", "a new token", "a larger model"]
MEASURED_S = np.array([0.0004, 0.012, np.nan])
PREDICTED_S = np.array([0.00001, 0.0005, 0.3])


def times(ax=None):
    return figures.plot_times(MEASURED_S, PREDICTED_S, tasks=TASKS, ax=ax)


def guessed(ax=None):
    return figures.plot_times(
        [0.004, 0.0001], [0.0002, 0.00001], tasks=["new", "old"], expected="at least", guess_s=0.5, ax=ax
    )


def passes(ax=None):
    measured = np.array([[3.0, 4.0, 9.0], [3.5, 4.5, 8.0]]) / 1e3
    return figures.plot_passes((1, 8, 64), measured, read_s=0.0002, compute_s=np.array([0.03, 0.24, 1.9]) / 1e3, ax=ax)


def layers(ax=None):
    seconds, lines = np.array([[5.0, 7.0], [1.0, 2.0]]) / 1e3, [(0.003, 0.002), (0.0001, 0.0009)]
    return figures.plot_layer_times((1, 2), seconds, names=["a token", "a pass"], lines=lines, ax=ax)


@pytest.mark.parametrize("plot", [times, guessed, passes, layers])
class TestEveryPlot(EveryPlot):
    """Holds for each picture on Axes."""


def test_times_stand_in_milliseconds_and_the_unmeasured_is_left_blank():
    ax = times()
    predicted, measured = (np.ma.filled(points.get_offsets(), np.nan) for points in ax.collections[1:])
    np.testing.assert_allclose(predicted, np.column_stack([PREDICTED_S * 1e3, range(3)]), rtol=1e-12)  # one product
    np.testing.assert_allclose(measured[:, 0], MEASURED_S * 1e3, rtol=1e-12)  # one product
    assert [text.get_text() for text in ax.texts] == ["0.01 ms", "0.5 ms", "300 ms", "0.4 ms", "12 ms"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["predicted", "measured"]
    floor = figures.plot_times(MEASURED_S, PREDICTED_S, tasks=TASKS, expected="at least")
    assert [text.get_text() for text in floor.get_legend().get_texts()] == ["at least", "measured"]
    assert names_from_top(ax) == TASKS
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "milliseconds (logarithmic axis)"


def test_a_guess_stands_at_its_time_above_the_first_row():
    milliseconds, row = flag_at(guessed())
    assert milliseconds == pytest.approx(500)
    assert -1 < row < 0


def test_a_guess_far_away_stays_in_the_picture():
    low, high = guessed().get_xlim()
    assert low < 500 < high
    near = figures.plot_times([0.2, 0.25], [0.15, 0.16], tasks=["a", "b"], expected="at least", guess_s=0.4)
    assert near.get_xlim()[0] == 0  # within a decade the axis is plain
    assert near.get_xlim()[1] > 400


def test_the_spread_of_the_runs_stays_in_the_picture_and_no_line_strikes_a_number_through():
    ax = figures.plot_times(
        [0.2, 0.25], [0.1, 0.12], tasks=["a", "b"], expected="at least", runs_s=[[0.2, 0.5], [0.25]]
    )
    assert ax.get_xlim()[1] > 500
    ends = [line.get_xdata().tolist() for line in ax.lines]
    assert [200, 500] in ends
    assert {text.get_ha() for text in ax.texts if text.get_text() in ("100 ms", "120 ms")} == {"right"}
    check_apart(ax.texts)


def test_passes_stand_above_a_floor_that_is_level_and_one_that_rises():
    ax = passes()
    [(line, _, [bars])] = [container.lines for container in ax.containers]
    np.testing.assert_allclose(line.get_ydata(), [3.25, 4.25, 8.5])  # the medians of two rounds
    spans = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(spans, [[3, 3.5], [4, 4.5], [8, 9]])
    level, rising = (other for other in ax.lines if other.get_marker() == "None" and len(other.get_xdata()) == 3)
    np.testing.assert_allclose(level.get_ydata(), 3 * [0.2])
    np.testing.assert_allclose(rising.get_ydata(), [0.03, 0.24, 1.9])
    heights = {text.get_text(): text.xy[1] for text in ax.texts}
    assert heights == pytest.approx({"measured": 8.5, "at least,\nto read": 0.2, "at least,\nto compute": 1.9})


def test_each_series_has_its_line_from_no_layer_to_the_most():
    ax = layers()
    dashed = [line.get_xydata() for line in ax.lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose(dashed, [[[0, 3], [2, 7]], [[0, 0.1], [2, 1.9]]])  # fixed, and twice the rest on top
    dots = [line.get_xydata() for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots, [[[1, 5], [2, 7]], [[1, 1], [2, 2]]])
    assert "3 ms" in {text.get_text() for text in ax.texts}  # without a layer


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.plot_times(MEASURED_S[:2], PREDICTED_S, tasks=TASKS), r"measured_s has shape \(2,\)"),
        (
            lambda: figures.plot_times(MEASURED_S, 0 * PREDICTED_S, tasks=TASKS),
            "predicted_s holds 0: expected",
        ),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)
