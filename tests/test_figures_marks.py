"""What several pictures are made of stands where its numbers say."""

import numpy as np
import pytest
from figure_checks import names_from_top, no_figure_left_open, texts_of  # noqa: F401 - the second for all tests here

from mistral_lab import figures
from mistral_lab.figures import marks

BOUNDS = np.array([[[1.0, 2.0], [3.0, 4.0]], [[1.5, 2.5], [3.5, 4.5]], [[1.75, 3.0], [4.0, 5.0]]])


@pytest.fixture
def ax():
    return figures.new_figure()[1][0, 0]


@pytest.mark.parametrize(("count", "shown"), [(4, 4), (16, 16), (17, 9), (32, 16), (34, 12)])
def test_a_long_axis_has_every_second_or_third_label(count, shown):
    assert len(range(count)[marks.some_labels(count)]) == shown


def test_rows_have_their_names_from_the_top(ax):
    marks.label_rows(ax, ["a", "b"], room=0.6)
    assert names_from_top(ax) == ["a", "b"]
    assert ax.get_ylim() == (1.6, -0.6)


@pytest.mark.parametrize("level", [False, True])
def test_series_of_intervals_stand_side_by_side_from_low_to_high(ax, level):
    looks = {"looks": "os", "colours": ["red", "blue"], "gap": 0.2, "level": level}
    marks.draw_interval_series(ax, [0, 1], BOUNDS, names=["a", "b"], **looks)
    for series, (drawn, shift) in enumerate(zip(ax.containers, (-0.1, 0.1), strict=True)):
        line, _, [bars] = drawn.lines
        along, across = (1, 0) if level else (0, 1)
        np.testing.assert_allclose(line.get_xydata()[:, along], [shift, 1 + shift])
        np.testing.assert_array_equal(line.get_xydata()[:, across], BOUNDS[1, series])
        spans = [segment[:, across] for segment in bars.get_segments()]
        np.testing.assert_allclose(spans, BOUNDS[[0, 2], series].T)
        assert (line.get_marker(), line.get_color()) == (("o", "red"), ("s", "blue"))[series]


def test_a_map_writes_per_cent_and_is_white_at_what_it_is_about(ax):
    marks.draw_percent_map(ax, np.array([[0.1, 0.25], [0.5, 0.25]]), about=0.25, digits=1)
    assert texts_of(ax) == ["10.0", "25.0", "50.0", "25.0"]
    colours = ax.images[0].get_array()
    np.testing.assert_allclose(colours[0, 1, :3], 1, atol=0.01)  # 256 colours, and none of them in the very middle
    assert (colours[0, 0, :3] < 0.95).all()
    assert colours[1, 0, 0] < colours[1, 0, 2]  # more than expected is teal
