"""The explorer of routing: it runs the model once a text, colours tokens by their expert, and takes any text."""

import warnings

import numpy as np
import pytest
import torch
from explorer_checks import drawn
from explorer_makers import STORY, loaded
from figure_checks import check_whole

from mistral_lab import explorers, moe
from mistral_lab.figures.tokens import font_letters


class Counted(torch.nn.Module):
    """A mixture that counts its runs."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.runs = model, model.config, 0

    def forward(self, *inputs):
        self.runs += 1
        return self.model(*inputs)


def test_the_model_runs_once_a_text_and_the_layer_only_indexes():
    model = Counted(loaded("tiny-mixtral").model)
    explorer = explorers.routed_text(model, loaded("tiny-mixtral").tokenizer)
    assert model.runs == 1
    for layer in range(4):
        explorer.controls["layer"].value = layer
    assert model.runs == 1
    start = explorer.controls["text"].value
    explorer.controls["text"].value = "another text"
    assert model.runs == 2
    explorer.controls["text"].value = start  # kept
    assert model.runs == 2


def test_tokens_have_the_colour_and_the_number_of_their_first_expert():
    explorer = explorers.routed_text(loaded("tiny-mixtral").model, loaded("tiny-mixtral").tokenizer)
    explorer.controls["text"].value, explorer.controls["layer"].value = STORY, 2
    numbers = loaded("tiny-mixtral").tokenizer(STORY)["input_ids"]
    indices = moe.capture_routing(loaded("tiny-mixtral").model, torch.tensor([numbers]))[2].indices
    words, loads = drawn(explorer).axes
    for text, box, number, expert in zip(words.texts, words.patches, numbers, indices[:, 0].tolist(), strict=True):
        assert text.get_text() == loaded("tiny-mixtral").tokenizer.decode([number]) + "₀₁₂₃₄₅₆₇"[expert]
        assert box.get_facecolor() == loads.patches[expert].get_facecolor()
    shares = np.bincount(indices.flatten(), minlength=8) / indices.numel()
    np.testing.assert_allclose([bar.get_width() / 100 for bar in loads.patches], shares, rtol=1e-6)  # float32


def test_the_labs_own_transformer_is_routed_alike():
    from mistral_lab.transformer import Transformer

    explorer = explorers.routed_text(loaded("tiny-mixtral").model, loaded("tiny-mixtral").tokenizer)
    own = explorers.routed_text(Transformer.from_pretrained("tiny-mixtral"), loaded("tiny-mixtral").tokenizer)
    assert own.sentence == explorer.sentence


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n\n",
        "🦙😀👩‍👩‍👧",
        "مرحبا بالعالم שלום",
        "你好 AI的未来是",
        "$x_1$ $$ \\frac{a}{b} \\n",
        "a\tb\r\nc",
        "\u202eabc\x00\ufeff",
    ],
)
def test_any_text_is_drawn_without_a_missing_glyph(text):
    explorer = explorers.routed_text(loaded("tiny-mixtral").model, loaded("tiny-mixtral").tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explorer.controls["text"].value = text
        assert explorer.sentence.startswith("Layer 0 sends")
        check_whole(drawn(explorer))
    glyphs = font_letters()
    assert all(ord(letter) in glyphs for label in drawn(explorer).axes[0].texts for letter in label.get_text())


def test_a_long_text_is_cut_and_says_so():
    explorer = explorers.routed_text(loaded("tiny-mixtral").model, loaded("tiny-mixtral").tokenizer)
    explorer.controls["text"].value = "word " * 2_000
    assert explorer.sentence.startswith("Only the first 160 of 6,002 tokens are shown. Layer 0 sends 160 tokens")
    check_whole(drawn(explorer))
    explorer.controls["text"].value = "\n" * 10_000
    assert explorer.sentence.startswith("Only the first ")
    check_whole(drawn(explorer))


def test_what_the_tokenizer_refuses_becomes_a_sentence():
    explorer = explorers.routed_text(loaded("tiny-mixtral").model, loaded("tiny-mixtral").tokenizer)
    explorer.controls["text"].value = "\ud83d alone"  # half of an emoji
    assert explorer.sentence.startswith(("This cannot be drawn: ", "Layer 0 sends"))
    explorer.controls["text"].value = "and on"
    assert explorer.sentence.startswith("Layer 0 sends")


def test_a_model_without_experts_is_refused_in_one_line():
    dense = loaded("tiny-mistral")
    with pytest.raises(ValueError, match="\\A[^\n]*has no experts[^\n]*\\Z"):
        explorers.routed_text(dense.model, dense.tokenizer)
