"""The explorer of the loop: its moments, what it says of them, and the picture that stands for it."""

from dataclasses import replace

import numpy as np
from explorer_checks import TRIP, drawn, moved, still_beside_live
from figure_checks import check_whole, signs
from matplotlib.colors import to_hex

from mistral_lab import explorers
from mistral_lab.explorers.loop import moments
from mistral_lab.figures.language import IDLE


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


def test_the_still_draws_what_the_live_view_draws_at_each_moment():
    # On the second floor, drawn; the new token on the second floor, and the next one drawn.
    for panel, live in still_beside_live(lambda: explorers.token_loop(TRIP), [{"moment": at} for at in (3, 7, 11, 15)]):
        assert signs(panel) == signs(live)


def test_what_top_p_cuts_is_grey_among_the_chances():
    trip = replace(TRIP, kept=np.array([[True, True, False, False, True], [True] * 5]))
    explorer = explorers.token_loop(trip)
    for moment, cut in ((5, 0), (6, 2), (7, 2), (14, 0)):
        [ax] = drawn(moved(explorer, moment=moment)).axes
        bars = [patch for patch in ax.patches if type(patch).__name__ == "Rectangle"]
        assert sum(to_hex(bar.get_facecolor()) == IDLE for bar in bars) == cut


def test_the_hook_comes_with_its_words():
    figure, alt, caption = explorers.loop_picture(TRIP)
    assert "“vinegar” is drawn" in alt
    assert "chances" in caption
    check_whole(figure)
