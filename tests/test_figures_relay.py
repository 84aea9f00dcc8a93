"""The drawn pictures of the relay show what their arrays say."""

import numpy as np
import pytest
from figure_checks import check_refused, no_figure_left_open  # noqa: F401 - for all tests of this file
from matplotlib.colors import to_hex
from matplotlib.patches import Wedge

from mistral_lab import figures
from mistral_lab.figures.language import IDLE, IDLE_EDGE, KEY, QUERY, pale

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


def test_what_has_heard_of_the_name_is_orange_in_the_ring_and_on_the_lines_that_read_it():
    ax = relay(4, heard=True)  # the ring holds "." in slot 0, which is new, and the name in slot 1
    first, second = (patch for patch in ax.patches if isinstance(patch, Wedge))
    assert [to_hex(wedge.get_facecolor()) for wedge in (first, second)] == [IDLE, KEY]
    assert [to_hex(wedge.get_edgecolor()) for wedge in (first, second)] == [QUERY, IDLE_EDGE]
    reading = ax.collections[0]
    assert [to_hex(colour) for colour in reading.get_edgecolor()] == [pale(KEY, 0.45), IDLE_EDGE]
    name, new = (segment[1, 0] for segment in reading.get_segments())
    assert name < new == reading.get_segments()[0][0, 0]  # from the newest token to the name, and to itself


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
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
