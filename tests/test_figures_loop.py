"""The pictures of lesson 1: the loop and its moments, the file that is read, times above floors, bytes of tokens."""

from dataclasses import replace

import numpy as np
import pytest
from figure_checks import (
    EveryPlot,
    check_apart,
    check_refused,
    check_whole,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
)
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba

from mistral_lab import explorers, figures
from mistral_lab.experiments.loop import Trip
from mistral_lab.explorers.loop import Moment, moments
from mistral_lab.figures import language

TEXTS = ("<s>", "My", " favourite", " condiment", " is", " vinegar", ",")
TRIP = Trip(
    texts=TEXTS,
    ids=(1, 1955, 546, 1569, 319, 2544, 14),
    prompt_tokens=5,
    rows=np.random.default_rng(0).normal(size=(7, 6)),
    layers=4,
    vocab_size=2560,
    candidates=((" soy", " hot", " chutney", " ketchup", " vinegar"), (",", ".", " and", " the", " of")),
    probabilities=np.array([[0.2, 0.2, 0.2, 0.1, 0.1], [0.99, 0.004, 0.002, 0.001, 0.001]]),
    kept=np.array([[True] * 5, [True] + [False] * 4]),
    drawn=(4, 0),
)


def read(ax=None):
    shares = [[19, 78, 0.004, 1.5, 1.5], [24, 36, 0.1, 20, 19.9]]
    parts = ["attention", "feed-forward", "norms", "output layer", "embedding"]
    return figures.plot_read(shares, models=["one", "two"], parts=parts, skipped=4, guess=10.0, ax=ax)


def guessed(ax=None):
    return figures.plot_times(
        [0.004, 0.0001], [0.0002, 0.00001], tasks=["new", "old"], expected="at least", guess_s=0.5, ax=ax
    )


def passes(ax=None):
    measured = np.array([[3.0, 4.0, 9.0], [3.5, 4.5, 8.0]]) / 1e3
    return figures.plot_passes((1, 8, 64), measured, read_s=0.0002, compute_s=np.array([0.03, 0.24, 1.9]) / 1e3, ax=ax)


def layers(ax=None):
    seconds, lines = np.array([[5.0, 7.0], [1.0, 2.0]]) / 1e3, [(0.003, 0.002), (0.0001, 0.0009)]
    return figures.plot_layer_times((1, 2), seconds, names=["a token", "a pass"], lines=lines, ax=ax)


@pytest.mark.parametrize("plot", [read, guessed, passes, layers])
class TestEveryPlot(EveryPlot):
    pass


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


def test_the_drawn_token_is_appended_and_marked_once():
    _, before = drawn(Moment(5, 0, 5, drawn=False))
    _, after = drawn(Moment(5, 0, 5, drawn=True))
    written = [[text.get_text() for text in ax.texts] for ax in (before, after)]
    assert [texts.count("vinegar") for texts in written] == [1, 2]
    assert "0.10" in written[0]


def test_chances_that_would_be_written_as_nought_are_left_out():
    _, ax = drawn(Moment(6, 5, 5, drawn=True))
    assert [text.get_text() for text in ax.texts if text.get_text().startswith(("0.", "1."))] == ["0.99"]


def test_a_tall_tower_is_climbed_in_few_stops():
    floors = [moment.floor for moment in moments(3, 2, layers=32)]
    assert floors == [-1, 0, 8, 16, 24, 32, 33, 33] * 2
    assert [moment.first for moment in moments(3, 2, layers=1)] == [0] * 5 + [3] * 5


def test_the_explorer_says_what_it_draws_and_stands_still_as_four_moments():
    explorer = explorers.token_loop(TRIP)
    assert explorer.sentence == "Prefill: the 5 tokens of the prompt go up at once."
    steps = explorer.controls["moment"]
    steps.value = 3
    assert explorer.sentence == "Floor 2 of 4 is read, and keeps the keys and values of 5 tokens."
    steps.value = steps.max
    assert explorer.sentence == "“,” is drawn and appended. Every floor has now been read 2 times."
    data, _ = explorer._repr_mimebundle_()
    assert data["text/plain"].startswith("Four moments: the 5 tokens of the prompt go up through 4 floors at once;")


def test_long_tokens_and_many_share_the_room():
    many = replace(TRIP, texts=tuple(f" word{n}" * 3 for n in range(7)))
    figure, (ax,) = language.new_stage(4.0, 3.2, kept=False)
    explorers.loop._draw_moment(ax, many, Moment(6, 5, 2, drawn=False))
    figure.draw_without_rendering()
    assert max(patch.get_window_extent().x1 for patch in ax.patches) <= figure.bbox.x1
    check_apart([text for text in ax.texts if "…" in text.get_text()])
    assert sum("…" in text.get_text() for text in ax.texts) == 6


def test_the_part_that_is_not_read_is_grey_and_thin_parts_are_named_below():
    ax = read()
    grey = [bar for bar in ax.patches if bar.get_facecolor() == to_rgba(language.IDLE)]
    assert [bar.get_width() for bar in grey] == pytest.approx([1.5, 19.9], rel=1e-9)  # differences of sums
    below = [text.get_text() for text in ax.texts if "·" in text.get_text()]
    assert below == ["norms 0.004 % · output layer 1.5 % · embedding 1.5 %"]


def test_a_guess_far_away_stays_in_the_picture():
    low, high = guessed().get_xlim()
    assert low < 500 < high
    near = figures.plot_times([0.2, 0.25], [0.15, 0.16], tasks=["a", "b"], expected="at least", guess_s=0.4)
    assert near.get_xlim()[0] == 0  # within a decade the axis is plain
    assert near.get_xlim()[1] > 400


def test_the_spread_of_the_runs_stays_in_the_picture_and_no_line_strikes_a_number_through():
    ax = figures.plot_times(
        [0.2, 0.25], [0.1, 0.12], tasks=["a", "b"], expected="at least", runs_s=[[0.2, 0.5], [0.25]]
    )
    assert ax.get_xlim()[1] > 500
    ends = [line.get_xdata().tolist() for line in ax.lines]
    assert [200, 500] in ends
    assert {text.get_ha() for text in ax.texts if text.get_text() in ("100 ms", "120 ms")} == {"right"}
    check_apart(ax.texts)


def test_the_hook_comes_with_its_words():
    figure, alt, caption = explorers.loop_picture(TRIP)
    assert "“vinegar” is drawn" in alt
    assert "chances" in caption
    check_whole(figure)


def test_a_patient_printer_is_drawn_below_the_pieces():
    snow = "☃".encode()
    ax = figures.plot_pieces([b"a", b" ", *(bytes([byte]) for byte in snow)], printed=["a", " ", "", "", "☃"])
    texts = [text.get_text() for text in ax.texts]
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.plot_pieces([b"a"], printed=[]), "1 pieces, 0 texts"),
        (lambda: read_with_negative(), "negative"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    check_refused(call, message)


def read_with_negative():
    return figures.plot_read([[-1.0, 2.0]], models=["one"], parts=["a", "b"], skipped=1)


def test_a_moment_outside_of_the_tower_is_refused():
    _, (ax,) = language.new_stage(4, 3, kept=False)
    with pytest.raises(ValueError, match="a floor from -1 to 3"):
        figures.plot_loop(["a"], ids=[1], rows=np.ones((1, 2)), first=0, floor=9, layers=2, ax=ax)
