"""Where a window ends: other windows after the prompt, names when cut, tokens kept in sight."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_windowed import windowed

import mistral_lab
from mistral_lab import experiments, masks
from mistral_lab.training import evaluation


@pytest.fixture(scope="module")
def tiny():
    return mistral_lab.load("tiny-mistral", device="cpu")


@pytest.fixture(scope="module")
def small(tiny):
    return windowed(tiny.tokenizer)


def test_the_own_window_changes_nothing_and_another_does(small):
    texts = torch.randint(3, 2560, (2, 12), generator=torch.Generator().manual_seed(0)).tolist()
    same = experiments.compare_windows(small.model, texts, prefill=4, decode=4, prompt=8)
    assert (same.places, same.moved, same.most, same.choices) == (8, 0, 0, 0)
    assert experiments.compare_windows(small.model, texts, prefill=5, decode=4, prompt=8).most > 0


def test_losses_are_those_of_the_model(tiny):
    [text] = evaluation.held_out(tiny.tokenizer, 1)
    short = [replace(text, tokens=text.tokens[:90])]
    [plain] = evaluation.losses(tiny.model, short)
    assert plain.shape == (89,)
    [masked] = evaluation.losses(tiny.model, short, [masks.sliding_window_mask(90, 64)])
    np.testing.assert_allclose(masked, plain, rtol=0, atol=1e-4)  # another kernel, in float32
    assert [interval.mean for interval in experiments.by_position([plain])] == pytest.approx(
        [plain[:64].mean(), plain[64:].mean()]
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


@pytest.mark.parametrize(("prefill", "decode"), [(5, 4), (4, 3), (2, 6)])
def test_the_prompt_has_one_window_and_what_follows_another(small, prefill, decode):
    """By hand: in one pass whose mask gives the first eight queries one window and the others another."""
    texts = torch.randint(3, 2560, (3, 12), generator=torch.Generator().manual_seed(0))

    def logits(first, then):
        mask = torch.cat([masks.sliding_window_mask(12, first)[:8], masks.sliding_window_mask(12, then)[8:]])
        with torch.inference_mode():
            return small.model(texts, attention_mask=mask[None, None], use_cache=False).logits[:, 8:]

    own, other = logits(4, 4), logits(prefill, decode)
    found = experiments.compare_windows(small.model, texts.tolist(), prefill=prefill, decode=decode, prompt=8)
    assert found.places == 12
    assert found.choices == int((own.argmax(-1) != other.argmax(-1)).sum())
    assert found.most == pytest.approx(float((own - other).abs().max()), rel=1e-3)  # another kernel, in float32


def test_the_share_of_the_first_token_is_that_of_position_0():
    """Every later query gives position 0 a half in one head and a quarter in the other, and position 1 the rest."""
    weights = torch.zeros(2, 2, 8, 8)  # (B, H, T, S)
    weights[:, 0, 2:, 0], weights[:, 0, 2:, 1] = 0.5, 0.5
    weights[:, 1, 2:, 0], weights[:, 1, 2:, 1] = 0.25, 0.75
    weights[:, :, :2, 0] = 1  # the first quarter of the queries does not count
    used = []

    class Model:
        config = SimpleNamespace(_attn_implementation="sdpa")
        device = "cpu"

        def set_attn_implementation(self, name):
            used.append(name)

        def __call__(self, blocks, **how):
            assert (tuple(blocks.shape), how["output_attentions"]) == ((2, 8), True)
            return SimpleNamespace(attentions=(weights, weights.flip(1)))

    share = experiments.first_token_share(Model(), torch.zeros(2, 9, dtype=torch.long), tokens=8)
    assert share.tolist() == [[0.5, 0.25], [0.25, 0.5]]
    assert used == ["eager", "sdpa"]


def test_each_kept_token_is_in_the_sight_of_every_query(tiny, monkeypatch):
    """By rule, a query loses a nat for each earlier token that it does not see: the tokens kept are won back."""
    texts = [text for text in evaluation.held_out(tiny.tokenizer, 6) if len(text.tokens) >= 100][:2]

    def losses(model, encoded, each=None):
        seen = masks.causal_mask(100).expand(2, -1, -1) if each is None else each
        unseen = torch.arange(1, 101) - seen.sum(-1)
        return list(unseen[:, :-1].double().numpy())

    monkeypatch.setattr(evaluation, "losses", losses)
    found = experiments.evict_first_tokens(None, tiny.tokenizer, texts, window=16, tokens=100)

    def won(kept):  # positions that left the window of queries 16 to 98
        return np.mean([sum(position <= query - 16 for position in kept) for query in range(16, 99)])

    assert found.cost.mean == pytest.approx(won(range(100)), rel=1e-12)
    assert found.first_token.mean == pytest.approx(won([0]), rel=1e-12)
    assert found.first_four.mean == pytest.approx(won(range(4)), rel=1e-12)
    names = [evaluation.mentions(tiny.tokenizer, text)[0] for text in texts]
    assert found.name.mean == pytest.approx(np.mean([won(range(at, at + size)) for at, size in names]), rel=1e-12)
