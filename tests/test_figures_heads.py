"""Drawn pictures of attention heads: what is drawn is what the arrays say, and it can be read."""

import numpy as np
import pytest
from figure_checks import (
    EveryPlot,
    check_apart,
    check_refused,
    check_whole,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
    texts_of,
)
from matplotlib.colors import to_rgba
from matplotlib.patches import Circle, PathPatch, Rectangle

from mistral_lab import figures
from mistral_lab.figures import heads
from mistral_lab.figures.language import KEY, QUERY, VALUE, WEIGHTS, pale

SHARED = np.array([0, 0, 0, 1, 1, 1])


def head_groups(ax=None):
    return figures.plot_head_groups(SHARED, title="grouped-query", ax=ax)


@pytest.mark.parametrize("plot", [head_groups])
class TestEveryPlot(EveryPlot):
    """Holds for each picture on Axes."""


def kept(places=(0.5, 0.5, 2.5, 2.5), kept_bytes=3072, layout=heads.PAGE):
    figure, [ax] = figures.new_stage(layout.width, layout.height)
    figures.draw_kept(
        ax,
        ["My", "favourite", "condiment"],
        np.array(places),
        layout=layout,
        title="3 tokens, K = 2",
        kept_bytes=kept_bytes,
        unshared_bytes=6144,
        most_bytes=14_336,
        least_s=1.02e-7,
        bytes_per_s=30e9,
    )
    return figure


def wall():
    return figures.draw_wall(sizes_bytes=[13.5 * 2**30, 16 * 2**30], text="32,768 tokens")


def clocks():
    angles = np.array([[0, 1, 2.0], [0, 0.1, 0.2]])
    return figures.draw_clocks(angles, tokens=["My", "favourite", "condiment"], pairs=[0, 8], steps=["57°", "6°"])


@pytest.mark.parametrize("draw", [kept, wall, figures.draw_rows, clocks])
def test_drawn_pictures_are_whole_and_their_texts_apart(draw):
    figure = draw()
    check_whole(figure)
    for ax in figure.axes:
        check_apart(ax.texts)


def squares(figure, colour):
    return [patch for patch in figure.axes[0].patches if patch.get_facecolor() == to_rgba(colour)]


def test_a_column_has_a_key_and_a_value_for_each_token_and_the_newest_is_full():
    figure = kept()
    for colour in (KEY, VALUE):
        assert len([patch for patch in squares(figure, colour) if patch.get_height() > 0.3]) == 2  # the bar is lower
        assert len(squares(figure, pale(colour))) == 2 * 2
    assert sum(isinstance(patch, Circle) for patch in figure.axes[0].patches) == 4
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {"3 KiB kept", "at least 0.10 µs at 30 GB/s", "mark: unshared"} <= set(texts)


@pytest.mark.parametrize("layout", [heads.STRIP, heads.PAGE])
def test_all_tokens_stand_in_a_row_and_the_floor_is_a_line_at_the_bytes(layout):
    figure = kept(layout=layout)
    boxed = [text for text in figure.axes[0].texts if text.get_ha() == "center"]
    row = [text.get_text() for text in boxed if not text.get_text().startswith("q")]
    assert row == ["My", "favourite", "condiment"]
    floor = figure.axes[0].lines[-1].get_xdata()[0]
    bar = next(patch for patch in squares(figure, KEY) if patch.get_height() == 0.25)  # the first of two tracks
    assert floor == pytest.approx(bar.get_x() + bar.get_width())


@pytest.mark.parametrize("layout", [heads.STRIP, heads.PAGE])
def test_each_query_is_linked_to_the_column_that_it_shares(layout):
    places = (0.5, 0.5, 2.5, 2.5)
    [ax] = kept(layout=layout).axes
    links = [patch for patch in ax.patches if isinstance(patch, PathPatch)]
    ends = [link.get_path().vertices[-1] for link in links if link.get_edgecolor() == to_rgba(KEY)]
    circles = [patch.center[0] for patch in ax.patches if isinstance(patch, Circle)]
    np.testing.assert_allclose(np.interp([x for x, _ in ends], circles, range(4)), places)
    keys = {patch.get_x() + patch.get_width() for patch in squares(ax.figure, pale(KEY))}  # their inner edges
    np.testing.assert_allclose(sorted(keys), sorted({x for x, _ in ends}))


@pytest.mark.parametrize("layout", [heads.STRIP, heads.PAGE])
def test_the_bar_is_what_is_kept_on_a_track_with_a_mark_at_what_would_be(layout):
    figure = kept(layout=layout)
    bars = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and patch.get_height() == 0.25]
    track, bar = bars[0], next(bar for bar in bars if bar.get_facecolor() == to_rgba(KEY))
    assert track.get_width() == pytest.approx(layout.bar_width)
    assert bar.get_width() == pytest.approx(layout.bar_width * 3072 / 14_336)
    mark, floor = (line.get_xdata()[0] - track.get_x() for line in figure.axes[0].lines)
    assert mark == pytest.approx(layout.bar_width * 6144 / 14_336)
    assert floor == pytest.approx(bar.get_width())


def test_bars_of_bytes_shrink_with_the_columns_and_the_mark_stays():
    widths, marks = [], []
    for kept_bytes, places in ((6144, (0, 1, 2, 3)), (3072, (0.5, 0.5, 2.5, 2.5))):
        figure = kept(places=places, kept_bytes=kept_bytes)
        widths.append(max(patch.get_width() for patch in squares(figure, KEY) if isinstance(patch, Rectangle)))
        marks.append(figure.axes[0].lines[0].get_xdata()[0])
    assert widths[0] == pytest.approx(2 * widths[1])
    assert marks[0] == marks[1]


def test_a_wall_has_a_square_of_each_kind_for_every_head_and_token():
    figure = wall()
    assert len(squares(figure, pale(VALUE))) == 32 * 4
    assert len(squares(figure, VALUE)) == 32
    written = texts_of(figure.axes[0])
    assert "its weights: 13.5 GiB" in written
    assert "keys and values of 32,768 tokens, if every head remembers for itself: 16.0 GiB" in written


def test_a_bar_of_weights_stands_above_one_of_keys_and_values_in_one_scale():
    upper, lower = (
        patch for patch in wall().axes[0].patches if isinstance(patch, Rectangle) and patch.get_height() == 0.25
    )
    assert upper.get_y() > lower.get_y()
    assert [bar.get_facecolor() for bar in (upper, lower)] == [to_rgba(WEIGHTS), to_rgba(KEY)]
    assert upper.get_width() / lower.get_width() == pytest.approx(13.5 / 16)


def test_one_by_one_each_query_has_all_keys_and_as_rows_they_share_them():
    figure = figures.draw_rows(group_size=3, keys=5)
    keys, scores = ([sum(p.get_facecolor() == to_rgba(colour) for p in ax.patches) for ax in figure.axes]
                    for colour in (KEY, pale(QUERY, 0.8)))  # fmt: skip
    assert keys == [3 * 5, 5]
    assert scores == [0, 3 * 5]
    left, right = (texts_of(ax) for ax in figure.axes)
    assert left[0] == "one by one: the keys are read 3 times"
    assert right[0] == "as rows of one block: they are read once"
    assert "the same keys,\nagain and again" in left
    assert "the shared keys" in right


def test_hands_of_clocks_point_where_the_angles_say():
    hands = [line for line in clocks().axes[0].lines if line.get_linewidth() > 2]
    turned = [np.arctan2(*np.diff(line.get_xydata(), axis=0)[0][::-1]) for line in hands]
    np.testing.assert_allclose(turned, [0, 0, 1, 0.1, 2, 0.2], atol=1e-12)  # one token after the other; rounding alone


def test_each_query_head_is_joined_to_the_head_it_reads():
    [lines] = [collection for collection in head_groups().collections if hasattr(collection, "get_segments")]
    ends = [segment.tolist() for segment in lines.get_segments()]
    assert ends == [[[head, 1], [1 if head < 3 else 4, 0]] for head in range(6)]  # a group's head stands in its middle


def test_numbers_of_heads_may_be_floats():
    ax = figures.plot_head_groups([float(head) for head in SHARED])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["6 query heads", "2 KV heads"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.plot_head_groups([0, 2]), r"shared is \[0, 2\]: expected"),
        (lambda: figures.plot_head_groups([0, 0.5, 1]), r"shared is \[0.0, 0.5, 1.0\]: expected"),
        (lambda: figures.plot_head_groups([]), r"shared is \[\]: expected"),
        (lambda: figures.draw_clocks(np.zeros((1, 2)), tokens=["a"], pairs=[0], steps=["x"]), r"\(1, 2\): expected"),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)
