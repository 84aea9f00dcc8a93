"""The explorers of predictions say what a slow count says, and draw any token."""

import numpy as np
import pytest
import torch
from explorer_checks import drawn
from explorer_makers import by_depth, loaded
from figure_checks import check_whole

from mistral_lab import explorers, figures
from mistral_lab.explorers.prediction import SHOWN


def test_sampling_says_what_a_slow_count_says():
    scores = np.array([2.0, 1.0, 0.5, -1.0, -3.0])

    class Letters:
        def decode(self, numbers):
            return "abcde"[numbers[0]]

    explorer = explorers.next_token(torch.tensor(scores), Letters())
    for temperature, top_p in ((0.7, 0.9), (2.0, 0.5), (0.1, 1.0), (1.0, 1.0)):
        explorer.controls["temperature"].value, explorer.controls["top_p"].value = temperature, top_p
        weights = np.exp(scores / temperature)
        probabilities = weights / weights.sum()
        kept, together = [], 0.0
        for probability in probabilities:  # they fall
            if together < top_p or top_p == 1:
                kept.append(probability)
            together += probability
        assert (
            f"{len(kept)} of 5 tokens can be drawn, “a” with probability {kept[0] / sum(kept):.2f}" in explorer.sentence
        )
        entropy = -(probabilities * np.log2(probabilities)).sum()
        assert f"{entropy:.2f} after the temperature" in explorer.sentence
    explorer.controls["temperature"].value = 0.0
    assert "1 of 5 tokens can be drawn, “a” with probability 1.00" in explorer.sentence


@pytest.mark.parametrize("token", ["$x^$", "$$", "\\", "'\"", "未来" * 9])
def test_no_token_is_read_as_a_formula_or_too_long(token):
    class Same:
        def decode(self, numbers):
            return token

    check_whole(drawn(explorers.next_token(torch.tensor([2.0, 1.0]), Same())))
    check_whole(drawn(explorers.guesses_by_layer([99 * torch.eye(2)] * 3, [0, 1], Same())))
    figure, axes = figures.bare_figure()
    places = figures.token_places([token], experts=1, width_in=5.0)
    figures.plot_coloured_tokens([token], experts=[0], places=places, title="x", ax=axes[0, 0])
    figure.draw_without_rendering()  # a formula that is none would raise


def test_left_out_tokens_are_marked_and_get_no_probability():
    explorer = explorers.next_token(by_depth()[0][-1][-1], loaded("tiny-mistral").tokenizer)
    explorer.controls["top_p"].value = 0.5
    before, after = drawn(explorer).axes
    before, after = (sorted(ax.patches, key=lambda bar: bar.get_y())[:SHOWN] for ax in (before, after))
    hatched = [bool(bar.get_hatch()) for bar in before]  # below them is a bar for all other tokens
    widths = [bar.get_width() for bar in after]
    assert hatched == [width == 0 for width in widths]
    assert 0 < sum(hatched) < len(hatched)


def test_the_lens_names_the_guess_of_every_depth():
    (logits, tokens), tokenizer = by_depth(), loaded("tiny-mistral").tokenizer
    explorer = explorers.guesses_by_layer(logits, tokens, tokenizer)
    explorer.controls["position"].value = 4
    for text, depth in zip(drawn(explorer).axes[0].texts, logits, strict=True):
        probability, guess = depth[4].double().softmax(dim=-1).max(dim=-1)
        assert text.get_text() == f"{figures.drawable(repr(tokenizer.decode([int(guess)])))}  {probability:.2f}"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: explorers.next_token(torch.zeros(2, 3), loaded("tiny-mistral").tokenizer), r"\(2, 3\)"),
        (lambda: explorers.next_token(torch.tensor([0.0, np.nan]), loaded("tiny-mistral").tokenizer), "finite"),
        (lambda: explorers.guesses_by_layer([torch.zeros(2, 9)], [1], loaded("tiny-mistral").tokenizer), "1 tokens"),
        (lambda: explorers.guesses_by_layer([], [], loaded("tiny-mistral").tokenizer), "expected"),
    ],
)
def test_bad_arguments_are_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
