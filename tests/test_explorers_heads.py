"""The explorer of shared heads: columns merge by halves, and what it says is what the squares take."""

import numpy as np
import pytest
from explorer_checks import drawn, moved, still_beside_live
from figure_checks import check_whole, signs, texts_of

from mistral_lab import explorers
from mistral_lab.config import ModelConfig
from mistral_lab.explorers import heads
from mistral_lab.memory import kv_cache_bytes


@pytest.mark.parametrize(
    ("merged", "places", "columns"),
    [
        (0, [0, 1, 2, 3], 4),
        (2, [0.25, 0.75, 2.25, 2.75], 3),
        (4, [0.5, 0.5, 2.5, 2.5], 2),
        (6, [1, 1, 2, 2], 1.5),
        (8, [1.5, 1.5, 1.5, 1.5], 1),
    ],
)
def test_columns_move_to_the_middle_of_their_group(merged, places, columns):
    found = heads.columns_at(merged)
    np.testing.assert_array_equal(found[0], places)
    assert found[1] == columns


def test_the_sentence_says_what_the_bundled_model_keeps():
    explorer = explorers.kept_squares()
    explorer.controls["tokens"].value = 6
    explorer.controls["merged"].value = 4
    model = ModelConfig.from_pretrained("tiny-mistral")
    assert model.n_heads == heads.HEADS
    assert model.n_kv_heads == 2
    kept = kv_cache_bytes(model, 6, bytes_per_value=4) // model.n_layers
    assert f"K = 2 KV heads keep {kept / 2**10:g} KiB for 6 tokens in one layer" in explorer.sentence
    explorer.controls["merged"].value = 5
    assert "on their way" in explorer.sentence


def test_the_title_counts_the_tokens_and_the_columns():
    explorer = explorers.kept_squares()
    for tokens, merged, title in (
        (1, 0, "1 token, K = 4"),
        (3, 0, "3 tokens, K = 4"),
        (3, 3, "3 tokens, columns merge"),
        (3, 4, "3 tokens, K = 2"),
        (3, 8, "3 tokens, K = 1"),
    ):
        assert texts_of(drawn(moved(explorer, tokens=tokens, merged=merged)).axes[0])[0] == title


def test_the_still_draws_what_the_live_view_draws_and_ends_with_one_column():
    data, _ = explorers.kept_squares()._repr_mimebundle_()
    assert data["text/plain"].startswith("Four moments: ")
    assert "K = 1 KV head keep 2 KiB for 4 tokens" in data["text/plain"]
    moments = [{"tokens": 2, "merged": 0}, *({"tokens": 4, "merged": merged} for merged in (0, 4, 8))]
    pairs = still_beside_live(explorers.kept_squares, moments)
    for panel, live in pairs:
        assert signs(panel) == signs(live)
        assert texts_of(panel) == texts_of(live)
    check_whole(pairs[0][0].figure)


def test_the_tokens_are_those_of_the_bundled_tokenizer(tokenizer):
    cut = [
        tokenizer.decode([token]).strip() for token in tokenizer(" ".join(heads.TOKENS[:4]) + " mustard")["input_ids"]
    ]
    assert cut[1:] == list(heads.TOKENS)  # the first begins the text


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    from mistral_lab.checkpoints import BUNDLED

    return AutoTokenizer.from_pretrained(BUNDLED["tiny-mistral"])
