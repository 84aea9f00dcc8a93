"""Readable numbers on any colour, and logarithmic axes with enough labels and none that touch."""

import pytest
from figure_checks import no_figure_left_open  # noqa: F401 - for all tests of this file

from mistral_lab import figures
from mistral_lab.figures import style


def test_numbers_stand_out_from_their_segment():
    assert style.readable_on("#ffa90e") == "black"
    assert style.readable_on("#bd1f01") == "white"


@pytest.mark.parametrize(
    ("axis", "ends", "labelled"),
    [
        ("x", (1, 20), [1, 2, 5, 10, 20]),
        ("x", (1, 1000), [1, 10, 100, 1000]),
        ("y", (1, 200), [1, 2, 5, 10, 20, 50, 100, 200]),
        ("y", (0.01, 1000), [0.01, 0.1, 1, 10, 100, 1000]),
        ("x", (1.5, 80), [3, 10, 30]),  # at 1 alone there would be a single label
        ("x", (1.2, 80), [3, 10, 30]),
        ("y", (0.2, 900), [1, 10, 100]),
    ],
)
def test_a_long_logarithmic_axis_has_a_label_per_decade_and_every_one_two_or_more(axis, ends, labelled):
    ax = figures.new_figure()[1][0, 0]
    style.decade_axis(getattr(ax, f"{axis}axis"))
    getattr(ax, f"set_{axis}lim")(ends)
    places = getattr(ax, f"get_{axis}ticks")()
    assert [place for place in places if ends[0] <= place <= ends[1]] == pytest.approx(labelled)
