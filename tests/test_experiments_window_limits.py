"""Where a window ends: other windows after the prompt, names when cut, tokens kept in sight."""

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

import mistral_lab
from mistral_lab import experiments, masks
from mistral_lab.loading.loaded import Loaded
from mistral_lab.training import evaluation


@pytest.fixture(scope="module")
def tiny():
    return mistral_lab.load("tiny-mistral", device="cpu")


@pytest.fixture(scope="module")
def small(tiny):
    """Random weights, two layers and a window of 4, with the bundled tokenizer."""
    torch.manual_seed(0)
    shape = {"vocab_size": 2560, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    config = MistralConfig(**shape, num_attention_heads=4, num_key_value_heads=2, sliding_window=4, pad_token_id=2)
    model = MistralForCausalLM(config).eval()
    return Loaded(model, tiny.tokenizer, "small", mistral_lab.ModelConfig.from_transformers(config))


def test_the_own_window_changes_nothing_and_another_does(small):
    texts = torch.randint(3, 2560, (2, 12), generator=torch.Generator().manual_seed(0)).tolist()
    same = experiments.compare_windows(small.model, texts, prefill=4, decode=4, prompt=8)
    assert (same.places, same.moved, same.most, same.choices) == (8, 0, 0, 0)
    assert experiments.compare_windows(small.model, texts, prefill=5, decode=4, prompt=8).most > 0


def test_losses_are_those_of_the_model(tiny):
    short = torch.tensor([evaluation.held_out(tiny.tokenizer, 1)[0].tokens[:90]])
    plain = experiments.token_losses(tiny.model, short)
    assert plain.shape == (1, 89)
    masked = experiments.token_losses(tiny.model, short, masks.sliding_window_mask(90, 64))
    np.testing.assert_allclose(masked, plain, rtol=0, atol=1e-4)  # another kernel, in float32
    assert [interval.mean for interval in experiments.by_position(plain)] == pytest.approx(
        [plain[:, :64].mean(), plain[:, 64:].mean()]
    )


def test_the_first_token_gets_shares_and_the_attention_is_put_back(tiny):
    used = tiny.model.config._attn_implementation
    blocks = torch.tensor([evaluation.held_out(tiny.tokenizer, 1)[0].tokens[:32]])
    share = experiments.first_token_share(tiny.model, blocks, tokens=32)
    assert share.shape == (4, 4)
    assert float(share.min()) > 0
    assert float(share.max()) < 1
    assert tiny.model.config._attn_implementation == used


def test_cuts_are_measured_apart_and_leave_the_model_as_it_was(tiny):
    texts = evaluation.held_out(tiny.tokenizer, 3)
    found = experiments.recall_when_cut(tiny.model, tiny.tokenizer, texts, windows=(16,), depths=(4,))
    assert list(found.shares) == ["W = 16", "4 layers"]
    assert found.shares["4 layers"]["1 to 63"].mean == 1
    assert found.shares["4 layers"]["1 to 63"].low < 1  # Wilson's interval of all right
    alone = evaluation.recall(tiny.model, tiny.tokenizer, texts)
    assert found.asked == {distance: row.asked for distance, row in alone.items()}
    mean, low, high = experiments.interval_bounds(cut.values() for cut in found.shares.values())
    assert mean.shape == (2, len(found.asked))
    assert (mean[1, 0], high[1, 0]) == (1, found.shares["4 layers"]["1 to 63"].high)
    assert (low <= mean).all()
    assert (tiny.model.config.sliding_window, len(tiny.model.model.layers)) == (64, 4)


def test_keeping_a_name_in_sight_wins_back_what_a_window_takes():
    mixture = mistral_lab.load("tiny-mixtral", device="cpu")
    texts = [text for text in evaluation.held_out(mixture.tokenizer, 8) if len(text.tokens) >= 200][:4]
    found = experiments.evict_first_tokens(mixture.model, mixture.tokenizer, texts, tokens=200)
    assert found.cost.mean > 0
    assert found.cost.mean >= found.name.mean > found.first_token.mean


def test_no_cut_at_all_is_refused():
    with pytest.raises(ValueError, match="neither a window nor a depth"):
        experiments.recall_when_cut(None, None, [])
