"""The drawn pictures of the ring show what their arrays say."""

import numpy as np
import pytest
from figure_checks import check_refused, no_figure_left_open  # noqa: F401 - for all tests of this file
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle, Wedge

from mistral_lab import figures
from mistral_lab.figures.language import KEY, pale

WORDS = ["Her", "name", "is", "Tara", ".", "Who"]


def stage(width=16.0, height=5.6):
    return figures.new_stage(width, height, kept=False)[1][0]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_a_ring_names_what_its_slots_hold_and_frames_the_newest():
    ax = stage(8, 8)
    figures.plot_ring(WORDS, np.array([4, 5, 3, -1]), now=5, ax=ax)
    assert {".\n4", "Who\n5", "Tara\n3", "slot 3", "5 mod 4\n= 1"} <= set(texts(ax))
    wedges = [patch for patch in ax.patches if isinstance(patch, Wedge)]
    assert [to_hex(wedge.get_facecolor()) for wedge in wedges] == [pale(KEY), KEY, pale(KEY), "#ffffff"]


def test_what_the_ring_has_lost_is_struck_out():
    ax = stage(8, 8)
    figures.plot_ring_text(WORDS, now=4, window=2, ax=ax)
    assert len(ax.lines) == 3
    assert "Who" not in texts(ax)


def test_the_double_write_frames_the_last_tokens_in_order():
    held = np.array([4, 5, 2, 3, 4, 5, 2, 3])
    ax = stage(16, 2.25)
    figures.plot_double_write([(5, held)], window=4, ax=ax)
    boxes = [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_fill()]
    full = [slot for slot, box in enumerate(boxes) if to_hex(box.get_facecolor()) == pale(KEY, 0.45)]
    assert held[full].tolist() == [2, 3, 4, 5]


def test_a_mask_by_position_over_keys_by_slot_marks_what_goes_wrong():
    held = np.array([8, 9, 6, 7])
    ax = stage()
    figures.plot_padded_ring(held, padding=8, ax=ax)
    assert [texts(ax).count(word) for word in ("hide", "show", "hidden", "shown")] == [2, 2, 2, 2]
    ax = stage()
    figures.plot_padded_ring(np.array([4, 5, 6, 7]), padding=6, ax=ax)  # nothing has been overwritten yet
    assert [texts(ax).count(word) for word in ("hidden", "shown")] == [0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.plot_ring(WORDS, np.zeros((2, 2), int), now=0, ax=stage()), "held is"),
        (lambda: figures.plot_ring(WORDS, np.array([0, 1]), now=2, ax=stage()), "and now 2"),
        (lambda: figures.plot_double_write([(0, np.zeros(3))], window=2, ax=stage()), r"\(3,\): expected \(4,\)"),
    ],
)
def test_bad_arrays_raise_one_clear_line(call, message):
    check_refused(call, message)
