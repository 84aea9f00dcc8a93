"""The drawn pictures of the relay and of the ring show what their arrays say."""

import numpy as np
import pytest
from figure_checks import check_refused, no_figure_left_open  # noqa: F401 - for all tests of this file
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle, Wedge

from mistral_lab import figures
from mistral_lab.figures.language import IDLE, KEY, pale

WORDS = ["Her", "name", "is", "Tara", ".", "Who"]


def stage(width=16.0, height=5.6):
    return figures.new_stage(width, height, kept=False)[1][0]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def relay(now, *, heard):
    knows = np.zeros((2, len(WORDS)), bool)
    knows[0, 3] = knows[1, 3:] = True
    knows[1, now] = heard
    knows[:, now + 1 :] = False
    path = [(now, 1), (3, 0)] if heard else []
    held = np.array([now - 1 if (now - 1) % 2 == slot else now for slot in range(2)])
    height = figures.relay_height(1)
    ax = stage(16, height)
    return figures.plot_relay(WORDS, knows, path, held, now=now, source=3, title="a title", ax=ax)


def test_the_relay_shows_what_has_arrived_and_who_has_heard():
    ax = relay(4, heard=True)
    assert set(WORDS[:5]) <= set(texts(ax))
    assert "Who" not in texts(ax)
    faces = [to_hex(face) for face in ax.collections[1].get_facecolors()]
    assert [faces[place] for place in (0, 3, 4, 5)] == [IDLE, KEY, IDLE, "#ffffff"]
    assert [faces[6 + place] for place in (2, 3, 4)] == [IDLE, pale(KEY, 0.55), KEY]


@pytest.mark.parametrize(("heard", "answer"), [(True, "Tara"), (False, "?")])
def test_the_last_token_answers_with_the_name_only_where_it_heard_of_it(heard, answer):
    shown = texts(relay(5, heard=heard))
    assert shown.count("Tara") == 1 + heard
    assert ("?" in shown) != heard
    assert answer in shown


def test_a_lost_name_is_drawn_to_scale():
    words = [str(number) for number in range(40)]
    ax = stage(16, 5)
    figures.plot_lost_name(words, source=4, size=2, window=10, answered="somebody", ax=ax)
    faces = [to_hex(face) for face in ax.collections[0].get_facecolors()]
    assert [place for place, face in enumerate(faces) if face == KEY] == [4, 5]
    assert len(faces) == 40
    assert len({*faces[30:39]}) == 1
    assert faces[29] != faces[30]
    assert {"35 tokens", "what one layer sees: 10 tokens", "somebody"} <= set(texts(ax))
    assert "The text said 4 5. The model answers" in texts(ax)


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
        (
            lambda: figures.plot_lost_name(WORDS, source=5, size=2, window=2, answered="", ax=stage()),
            "the name is at 5, of 2 tokens, in a text of 6",
        ),
        (
            lambda: figures.plot_relay(
                WORDS, np.zeros((2, 3), bool), [], np.array([0]), now=0, source=3, title="", ax=stage()
            ),
            r"shape \(2, 3\) in bool, for 6 words",
        ),
    ],
)
def test_bad_arrays_raise_one_clear_line(call, message):
    check_refused(call, message)
