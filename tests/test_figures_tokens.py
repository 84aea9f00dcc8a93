"""Tokens in pictures: what can be drawn of them, where they stand in lines, the colours of their experts."""

import numpy as np
from figure_checks import check_refused, no_figure_left_open  # noqa: F401 - for all tests of this file
from matplotlib.colors import to_hex

from mistral_lab import figures
from mistral_lab.figures import language


def test_a_long_token_is_cut_and_strange_letters_are_escaped():
    assert figures.drawable("x" * 99) == "x" * 23 + "…"
    assert figures.drawable("a\tb 你") == "a\\tb \\u4f60"
    assert len(figures.drawable("你" * 99)) == 24


def test_tokens_are_laid_out_in_lines_that_hold_them():
    tokens = ["one", " two", "\n", "three", " four"] * 9
    places = figures.token_places(tokens, experts=8, width_in=2.0)
    lefts, widths, lines = places.T
    assert (lefts + widths <= 2.0 * 72).all()
    assert lefts[0] == lines[0] == 0
    for before, token, after in zip(places[:-1], tokens, places[1:], strict=False):
        if "\n" in token or after[2] > before[2]:
            assert (after[0], after[2]) == (0, before[2] + 1)
        else:
            assert after[0] >= before[0] + before[1]


def test_a_token_in_the_hue_of_its_expert_is_seen_even_where_it_is_a_space():
    tokens, experts = [" the", " "], [6, 2]
    places = figures.token_places(tokens, experts=8, width_in=4)
    ax = figures.plot_coloured_tokens(
        tokens, experts=experts, places=places, title="x", ax=figures.new_figure()[1][0, 0]
    )
    assert [text.get_text() for text in ax.texts] == [" the₆", "␣₂"]
    assert [to_hex(box.get_facecolor()) for box in ax.patches] == [language.EXPERTS[6], language.EXPERTS[2]]


def test_a_token_without_a_place_is_refused():
    ax = figures.bare_figure()[1][0, 0]
    check_refused(
        lambda: figures.plot_coloured_tokens(["a"], experts=[0, 1], places=np.zeros((1, 3)), title="x", ax=ax),
        r"shape \(1, 3\), for 1 tokens and 2 experts",
    )
