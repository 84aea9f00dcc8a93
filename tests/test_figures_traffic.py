"""The picture of experts that are fetched says what the arrays say, and is readable."""

import numpy as np
import pytest
from figure_checks import (
    check_apart,
    check_refused,
    check_style_left_alone,
    check_whole,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
)
from matplotlib.colors import to_hex

from mistral_lab import figures
from mistral_lab.figures import language

# Three tokens, two layers, two experts each; 0 in a slot, 1 guessed, 2 fetched.
NEEDED = np.array([[[0, 3], [1, 2]], [[0, 1], [3, 2]], [[2, 0], [2, 1]]])
ORIGIN = np.array([[[2, 2], [1, 2]], [[0, 2], [2, 0]], [[1, 0], [0, 1]]])
MOVED, WORDS = np.array([4.0, 2.0, 2.5]), (" the", "\n", "$x")


def traffic(needed=NEEDED, origin=ORIGIN, moved=MOVED, *, tokens=WORDS, layers=("layer 0", "layer 7"), axes=None):
    return figures.plot_expert_traffic(
        needed, origin, moved, tokens=tokens, layers=layers, unit="moved, KiB", axes=axes
    )


def many_tokens():
    rng = np.random.default_rng(0)
    needed = np.array([[rng.choice(8, 2, replace=False) for _ in range(4)] for _ in range(32)])
    words = [f" word{number}" for number in range(31)] + [" a_token_that_is_far_too_long_for_a_picture"]
    layers = [f"layer {layer}" for layer in range(4)]
    return traffic(needed, rng.integers(0, 3, needed.shape), rng.uniform(0, 1500, 32), tokens=words, layers=layers)


@pytest.mark.parametrize("draw", [traffic, many_tokens])
def test_traffic_is_whole_and_readable(draw):
    above, below = draw()
    assert above.figure.get_figwidth() == figures.WIDTH_IN
    check_whole(above.figure)
    check_apart([*above.texts, *above.get_yticklabels(), *above.get_legend().get_texts()])
    check_apart([*below.get_xticklabels(), *below.get_yticklabels()])
    assert above.get_legend().get_window_extent().y0 >= above.bbox.y1 - 0.5  # half a pixel, which is no line's width


def test_traffic_leaves_the_readers_style_and_other_axes_alone():
    check_style_left_alone(traffic)
    figure, axes = figures.new_figure(2, 2)
    assert traffic(axes=axes[:, 1])[0] is axes[0, 1]
    assert not any(ax.has_data() for ax in axes[:, 0])


def test_traffic_shows_each_expert_in_its_colour_and_where_it_was_found():
    above, below = traffic()
    hits, numbers = above.texts[-2:], above.texts[:-2]
    boxes = iter(above.patches)
    for (token, layer, place), text in zip(np.ndindex(NEEDED.shape), numbers, strict=True):
        expert, found = NEEDED[token, layer, place], ORIGIN[token, layer, place]
        assert text.get_text() == str(expert)
        assert text.get_position()[1] == pytest.approx(layer * 2.4 + place)  # sums of floats
        box = next(boxes)
        inside = "#ffffff" if found == 2 else language.EXPERTS[expert]
        assert (to_hex(box.get_facecolor()), to_hex(box.get_edgecolor())) == (inside, language.EXPERTS[expert])
        assert box.get_x() < token < box.get_x() + box.get_width()
        if found == 1:  # in part
            part = next(boxes)
            assert to_hex(part.get_facecolor()) == "#ffffff"
            assert box.get_x() < part.get_x() < token < part.get_x() + part.get_width()
    assert next(boxes, None) is None
    assert [text.get_text() for text in hits] == ["2 of 6", "2 of 6"]
    assert [label.get_text() for label in above.get_yticklabels()] == ["layer 0", "layer 7"]
    assert [bar.get_height() for bar in below.patches] == MOVED.tolist()
    assert [label.get_text() for label in below.get_xticklabels()] == [" the", "\\n", "$x"]


def test_traffic_of_a_single_token_that_moved_nothing():
    above, below = traffic(NEEDED[:1, :1, :1], np.zeros((1, 1, 1), int), np.zeros(1), tokens=["a"], layers=["layer 0"])
    check_whole(above.figure)
    assert below.get_ylim() == (0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: traffic(needed=NEEDED[0]), r"needed has shape \(2, 2\) and origin \(3, 2, 2\): expected the same"),
        (lambda: traffic(layers=["a"]), "for 3 tokens and 1 layers"),
        (lambda: traffic(origin=ORIGIN + 1), "origin holds a number other than 0, 1 and 2"),
        (lambda: traffic(moved=-MOVED), "negative"),
        (
            lambda: traffic(np.zeros((33, 1, 1), int), np.zeros((33, 1, 1), int), tokens=["a"] * 33, layers=["a"]),
            "33 tokens: expected at most 32",
        ),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)
