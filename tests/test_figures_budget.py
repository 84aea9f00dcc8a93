"""The pictures of a memory budget, and of choices changed, say what the arrays say, and are readable."""

import numpy as np
import pytest
from figure_checks import (
    EveryPlot,
    check_refused,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
)
from matplotlib.colors import to_hex

from mistral_lab import figures
from mistral_lab.figures import style

TAKEN = np.array([[0.5, 0.17, 0.06], [0.5, 0.17, 0.5], [0.5, 0.17, 2.0]])
NAMES, PARTS = ["512 tokens", "4,096 tokens", "16,384 tokens"], ["runtime", "workspace", "cache"]
LIMITS = {"left on the card": 1.19, "left as PyTorch sees it": 0.84}
SHARES = np.array([[[0.006, 0.004], [0.08, 0.05]], [[0.008, 0.007], [0.1, 0.09]], [[0.01, 0.009], [0.12, 0.1]]])


def budget(ax=None):
    return figures.plot_budget(TAKEN, names=NAMES, parts=PARTS, limits=LIMITS, unit="GiB", ax=ax)


def changed(ax=None):
    return figures.plot_changed(*SHARES, names=["16 bits", "4 bits"], unit="changed, %", ax=ax)


@pytest.mark.parametrize("plot", [budget, changed])
class TestEveryPlot(EveryPlot):
    pass


def test_a_budget_stacks_its_parts_and_has_a_line_at_each_limit():
    ax = budget()
    ends = np.array([[bar.get_x(), bar.get_width()] for bar in ax.patches]).reshape(3, 3, 2)  # parts, ways
    np.testing.assert_allclose(ends[..., 1], TAKEN.T)
    np.testing.assert_allclose(ends[1:, :, 0], TAKEN.T.cumsum(axis=0)[:-1])
    assert [list(line.get_xdata()) for line in ax.lines] == [[bound] * 2 for bound in LIMITS.values()]
    assert len({line.get_linestyle() for line in ax.lines}) == 2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [*LIMITS, *PARTS]


def test_a_limit_beyond_every_bar_is_still_inside():
    ax = figures.plot_budget(TAKEN, names=NAMES, parts=PARTS, limits={"card": 24.0}, unit="GiB")
    assert ax.get_xlim()[1] > 24


def test_changed_choices_are_drawn_per_cent_with_their_intervals():
    ax = changed()
    for number, container in enumerate(ax.containers):
        np.testing.assert_allclose(container.lines[0].get_ydata(), 100 * SHARES[1, number])
        drawn = [np.array(bar)[:, 1] for bar in container.lines[2][0].get_segments()]
        np.testing.assert_allclose(drawn, 100 * SHARES[[0, 2], number].T)
    colours = {to_hex(container.lines[0].get_color()) for container in ax.containers}
    assert colours == set(style.SERIES[:2])
    assert ax.get_yscale() == "log"


def test_many_layers_have_some_of_their_numbers_on_the_axis():
    ax = figures.plot_changed(*np.full((3, 1, 32), 0.1), names=["4 bits"], unit="%")
    assert [text.get_text() for text in ax.get_xticklabels()] == [str(layer) for layer in range(0, 32, 2)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: figures.plot_budget(TAKEN.T[:2], names=NAMES, parts=PARTS, limits={}, unit=""),
            r"shape \(2, 3\): expected \(3, 3\)",
        ),
        (
            lambda: figures.plot_budget(TAKEN, names=NAMES, parts=PARTS, limits={"a": np.nan}, unit=""),
            "negative, infinite or NaN",
        ),
        (
            lambda: figures.plot_budget(TAKEN, names=NAMES, parts=PARTS, limits=dict.fromkeys("abcd", 1), unit=""),
            "4 limits: expected at most 3",
        ),
        (
            lambda: figures.plot_changed(*SHARES[::-1], names=["a", "b"], unit=""),
            "a share lies outside its interval",
        ),
        (
            lambda: figures.plot_changed(*100 * SHARES, names=["a", "b"], unit=""),
            r"shares run from 0\.4 to 12\.0: expected above 0",
        ),
        (
            lambda: figures.plot_changed(*0 * SHARES, names=["a", "b"], unit=""),
            r"shares run from 0\.0 to 0\.0: expected above 0",
        ),
        (
            lambda: figures.plot_changed(*SHARES, names=["a"], unit=""),
            r"shape \(2, 2\): expected \(1, 2\)",
        ),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)
