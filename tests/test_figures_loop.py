"""The pictures of lesson 1: the loop and its moments, and the bytes of tokens."""

from dataclasses import replace

import numpy as np
import pytest
from explorer_checks import TRIP
from figure_checks import (
    check_apart,
    check_refused,
    check_whole,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
    texts_of,
)
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from mistral_lab import explorers, figures
from mistral_lab.explorers.loop import Moment, moments
from mistral_lab.figures import language, style


def squares(ax, colour) -> int:
    """How many squares of a colour, full and pale, stand on the floors."""
    wanted = [to_rgba(colour), to_rgba(language.pale(colour, 0.45))]
    return sum(
        len(group.get_paths())
        for group in ax.collections
        if isinstance(group, PatchCollection)
        and len(group.get_facecolor())
        and tuple(group.get_facecolor()[0]) in wanted
    )


def drawn(moment, size=(8.0, 4.6), **options):
    figure, (ax,) = language.new_stage(*size, kept=False)
    explorers.loop._draw_moment(ax, TRIP, moment, **options)
    return figure, ax


def test_every_moment_is_whole_and_its_texts_stand_apart():
    for moment in moments(TRIP.prompt_tokens, len(TRIP.drawn), TRIP.layers):
        figure, ax = drawn(moment, labelled=True)
        check_whole(figure)
        check_apart(ax.texts)


def test_each_floor_keeps_a_key_and_a_value_of_every_token_that_has_passed():
    for moment, kept in (
        (Moment(5, 0, -1, drawn=False), 0),  # the prompt waits
        (Moment(5, 0, 2, drawn=False), 5 * 2),  # on the second floor
        (Moment(6, 5, 0, drawn=False), 5 * 4),  # the new token picks its row
        (Moment(6, 5, 3, drawn=False), 5 * 4 + 3),
        (Moment(6, 5, 5, drawn=True), 6 * 4),
    ):
        _, ax = drawn(moment)
        assert squares(ax, language.KEY) == squares(ax, language.VALUE) == kept, moment


def test_the_floors_that_this_pass_has_read_are_full():
    for floor in range(6):
        _, ax = drawn(Moment(6, 5, floor, drawn=False))
        slabs = [patch for patch in ax.patches if isinstance(patch, FancyBboxPatch) and patch.get_width() > 1]
        slabs.sort(key=lambda slab: slab.get_y())
        full, faint = (to_hex(language.pale(language.WEIGHTS, share)) for share in (0.35, 0.8))
        read = min(floor, 4)
        assert [to_hex(slab.get_facecolor()) for slab in slabs] == [full] * read + [faint] * (4 - read)


def rows_shown(ax, numbers: int):
    """(tokens, numbers) colours of the cells of the table, from below, and how many rows are framed."""
    cells, frames = (next(g for g in ax.collections if g.get_linewidth()[0] == wide) for wide in (0.4, 0.8))
    return np.reshape([to_hex(colour) for colour in cells.get_facecolor()], (-1, numbers)), len(frames.get_paths())


@pytest.mark.parametrize(("first", "floor", "shown"), [(0, -1, 0), (0, 0, 3), (2, -1, 2), (2, 0, 3), (2, 1, 3)])
def test_each_token_has_its_own_row_of_the_table_once_it_was_looked_up(first, floor, shown):
    table = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -0.5]])
    _, (ax,) = language.new_stage(4, 3, kept=False)
    figures.plot_loop(["a", "b", "c"], ids=[7, 8, 9], rows=table, first=first, floor=floor, layers=2, ax=ax)
    cells, frames = rows_shown(ax, 2)
    assert len(cells) == frames == shown
    for token, row in enumerate(cells):
        shades = [language.pale(style.INK, 0.55 - 0.4 * value) for value in table[token]]
        assert row.tolist() == [shade if token >= first else language.pale(shade, 0.6) for shade in shades]


def test_each_box_stands_above_its_id():
    _, ax = drawn(Moment(6, 5, 2, drawn=False))
    ids = [text for text in ax.texts if text.get_text().isdigit()]
    ids.sort(key=lambda text: text.get_position()[0])
    assert [int(text.get_text()) for text in ids] == [1, 1955, 546, 1569, 319, 2544]


def test_what_top_p_cuts_is_grey_the_rest_pale_blue_and_the_drawn_one_full():
    trip = replace(TRIP, kept=np.array([[True, True, False, False, True], [True] * 5]))
    _, (ax,) = language.new_stage(8.0, 4.6, kept=False)
    explorers.loop._draw_moment(ax, trip, Moment(5, 0, 5, drawn=True))
    bars = [patch for patch in ax.patches if type(patch) is Rectangle]
    stays = language.pale(language.QUERY, 0.55)
    expected = [stays, stays, language.IDLE, language.IDLE, language.QUERY]
    assert [to_hex(bar.get_facecolor()) for bar in bars] == expected
    widths = np.array([bar.get_width() for bar in bars])
    np.testing.assert_allclose(widths / widths[0], TRIP.probabilities[0] / 0.2)


@pytest.mark.parametrize("labelled", [False, True])
def test_a_way_leads_from_the_drawn_bar_back_to_the_new_box(labelled):
    _, ax = drawn(Moment(5, 0, 5, drawn=True), labelled=labelled)
    bar = [patch for patch in ax.patches if type(patch) is Rectangle][4]
    box = [patch for patch in ax.patches if isinstance(patch, FancyBboxPatch) and patch.get_height() == 0.27][5]
    [line], [arrow] = ax.lines, [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]
    (start, high), (edge, same), (_, low) = line.get_xydata()
    assert start > bar.get_x() + bar.get_width()
    assert high == same == pytest.approx(bar.get_y() + bar.get_height() / 2)
    assert low == pytest.approx(box.get_y() + box.get_height() / 2)
    tail, tip = arrow._posA_posB
    assert tail == (edge, low)
    assert tip == pytest.approx((box.get_x() + box.get_width(), low))
    assert not drawn(Moment(5, 0, 5, drawn=False), labelled=labelled)[1].lines


def test_the_drawn_token_is_appended_and_marked_once():
    _, before = drawn(Moment(5, 0, 5, drawn=False))
    _, after = drawn(Moment(5, 0, 5, drawn=True))
    written = [texts_of(ax) for ax in (before, after)]
    assert [texts.count("vinegar") for texts in written] == [1, 2]
    assert "0.10" in written[0]


def test_chances_that_would_be_written_as_nought_are_left_out():
    _, ax = drawn(Moment(6, 5, 5, drawn=True))
    assert [text.get_text() for text in ax.texts if text.get_text().startswith(("0.", "1."))] == ["0.99"]


def test_long_tokens_and_many_share_the_room():
    many = replace(TRIP, texts=tuple(f" word{n}" * 3 for n in range(7)))
    figure, (ax,) = language.new_stage(4.0, 3.2, kept=False)
    explorers.loop._draw_moment(ax, many, Moment(6, 5, 2, drawn=False))
    figure.draw_without_rendering()
    assert max(patch.get_window_extent().x1 for patch in ax.patches) <= figure.bbox.x1
    check_apart([text for text in ax.texts if "…" in text.get_text()])
    assert sum("…" in text.get_text() for text in ax.texts) == 6


def test_a_patient_printer_is_drawn_below_the_pieces():
    snow = "☃".encode()
    ax = figures.plot_pieces([b"a", b" ", *(bytes([byte]) for byte in snow)], printed=["a", " ", "", "", "☃"])
    texts = texts_of(ax)
    assert texts.count("\ufffd") == 3
    assert texts.count("·") == 2
    assert "☃" in texts
    ax.figure.draw_without_rendering()
    check_apart(ax.texts)
    spaced = [text.get_text() for text in figures.plot_pieces([b" s", b"now"], printed=[" s", "now"]).texts]
    assert spaced.count("␣s") == 2


def test_rows_of_the_table_are_framed_so_that_a_white_number_is_no_gap():
    _, ax = drawn(Moment(6, 5, 0, drawn=False))
    frames = [group for group in ax.collections if len(group.get_facecolor()) == 0]
    assert [len(group.get_paths()) for group in frames] == [6]


def test_each_piece_needs_its_text():
    check_refused(lambda: figures.plot_pieces([b"a"], printed=[]), "1 pieces, 0 texts")


def test_a_moment_outside_of_the_tower_is_refused():
    _, (ax,) = language.new_stage(4, 3, kept=False)
    with pytest.raises(ValueError, match="a floor from -1 to 3"):
        figures.plot_loop(["a"], ids=[1], rows=np.ones((1, 2)), first=0, floor=9, layers=2, ax=ax)
