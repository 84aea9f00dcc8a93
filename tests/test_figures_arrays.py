"""Arrays that cannot be drawn are refused in one line, and the others come back as floats."""

import numpy as np
import pytest
from figure_checks import check_refused

from mistral_lab.figures import arrays

GAP = [1, np.nan]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: arrays.as_amounts([0, 2], (2,)), [0.0, 2.0]),
        (lambda: arrays.as_finite([-1, 2], (2,)), [-1.0, 2.0]),
        (lambda: arrays.as_positive("times", GAP, (2,), gaps=True), GAP),
        (lambda: arrays.as_amount_intervals([0, 1], [1, 1], [2, 3], (2,)), [[0, 1], [1, 1], [2, 3]]),
    ],
)
def test_what_can_be_drawn_comes_back_as_floats(call, expected):
    found = call()
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == float


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arrays.as_amounts([1], (2,)), r"shape \(1,\): expected \(2,\), one for each name"),
        (lambda: arrays.as_amounts([-1], (1,)), "expected finite amounts of 0 or more"),
        (lambda: arrays.as_finite([np.inf], (1,)), "all of them finite numbers"),
        (lambda: arrays.as_positive("times", GAP, (2,)), "times holds nan: expected finite numbers above 0, because"),
        (
            lambda: arrays.as_positive("times", [0], (1,), gaps=True),
            "times holds 0: expected finite numbers above 0, or",
        ),
        (lambda: arrays.as_intervals([2], [1], [3], of="median"), "a median lies outside its interval"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(call, message):
    check_refused(call, message)
