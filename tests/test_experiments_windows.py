"""What lesson 3 measures: on small models, in texts whose answers can be counted by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

import mistral_lab
from mistral_lab import PRESETS, experiments, masks
from mistral_lab.experiments import window_costs, windows
from mistral_lab.loading.loaded import Loaded
from mistral_lab.memory import kv_cache_bytes
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


def test_the_story_of_the_lesson_is_answered_with_another_name(tiny):
    story = experiments.read_story(tiny.tokenizer)
    first, last = story.words[story.source : story.source + 2]
    assert (f"{first} {last}", story.size) == (story.name, 2)
    assert story.distance == len(story.tokens) - 1 - story.source
    assert 189 < story.distance < masks.receptive_field(64, 4)  # within the reach of four layers, beyond that of three
    said = experiments.answer_story(tiny, story.tokens, size=2)
    assert len(said.split()) == 2
    assert said != story.name
    near = story.tokens[: story.ends[0] + 1] + story.tokens[story.ends[-1] + 1 :]
    assert experiments.answer_story(tiny, near, size=2) == story.name


def test_recall_counts_words_at_every_distance(tiny):
    story = experiments.read_story(tiny.tokenizer)
    kept = replace(story, ends=[story.ends[0], story.ends[1], story.ends[-1]])  # three distances are enough
    found = experiments.recall_by_distance(tiny.model, tiny.tokenizer, kept, names=2)
    assert found.asked == 2
    assert len(found.distances) == 3
    assert found.distances[-1] == story.distance
    assert found.distances == sorted(found.distances)
    assert (found.given[0], found.whole[0]) == (2, 2)
    assert found.whole[-1] == 0
    assert all(whole <= given <= 2 for whole, given in zip(found.whole, found.given, strict=True))


def test_a_doubled_story_tells_its_middle_twice(tiny):
    story = experiments.read_story(tiny.tokenizer)
    longer = story.doubled()
    begin, end = story.ends[0] + 1, story.ends[-1] + 1
    assert longer.words == [*story.words[:end], *story.words[begin:end], *story.words[end:]]
    assert len(longer.tokens) == len(longer.words)
    assert longer.distance - story.distance == end - begin
    assert [longer.words[at] for at in longer.ends] == [story.words[at] for at in [*story.ends, *story.ends[1:]]]


def test_a_story_needs_a_name_that_comes_back(tiny):
    story = experiments.read_story(tiny.tokenizer)
    with pytest.raises(ValueError, match="3 tokens and names is 2: expected 2"):
        experiments.recall_by_distance(tiny.model, tiny.tokenizer, replace(story, size=3), names=2)


def test_a_layer_reacts_to_its_window_and_to_nothing_before_it(small):
    assert experiments.reaction(small, 1, back=3, tokens=8) > 0
    assert experiments.reaction(small, 1, back=4, tokens=8) == 0
    with experiments.with_window(small.model, None):
        assert experiments.reaction(small, 1, back=4, tokens=8) > 0
    assert small.model.config.sliding_window == 4
    assert len(small.model.model.layers) == 2


def test_influence_ends_at_the_receptive_field(small):
    found = experiments.measure_influence(small, "one two three four five six seven", window=3, beyond=2)
    assert found.depths == [1, 2]
    assert found.fields == found.reached == [3, 5]
    assert found.by_distance.shape == (2, 7)
    with pytest.raises(ValueError, match="expected at least 45"):
        experiments.measure_influence(small, "one two", window=3)


def test_the_own_window_changes_nothing_and_another_does(small):
    texts = torch.randint(3, 2560, (2, 12), generator=torch.Generator().manual_seed(0)).tolist()
    same = experiments.compare_windows(small.model, texts, prefill=4, decode=4, prompt=8)
    assert (same.places, same.moved, same.most, same.choices) == (8, 0, 0, 0)
    assert experiments.compare_windows(small.model, texts, prefill=5, decode=4, prompt=8).most > 0


def test_slot_order_is_right_without_padding_and_wrong_with_it(tiny):
    texts = [text.document.text for text in evaluation.held_out(tiny.tokenizer, 2)]
    found = experiments.generate_padded(tiny, texts, window=16)
    assert torch.equal(found["position order"], found["no cache"])
    assert torch.equal(found["slot order"][0], found["no cache"][0])
    assert not torch.equal(found["slot order"][1], found["no cache"][1])


def test_a_slot_order_cache_hands_out_each_key_in_its_slot(small):
    cache = windows.SlotOrderCache(small.model.config)
    keys = torch.arange(7.0).reshape(1, 1, 7, 1).expand(1, 2, 7, 8).contiguous()
    cache.update(keys[:, :, :5], keys[:, :, :5], 0)
    for position in (5, 6):
        found, _ = cache.update(keys[:, :, position : position + 1], keys[:, :, position : position + 1], 0)
    assert found[0, 0, :, 0].tolist() == [4, 5, 6, 3]


def test_interleaved_bytes_are_those_of_its_layers():
    config = mistral_lab.PRESETS["mistral-7b-v0.1"]
    for tokens in (100, 4096, 50_000):
        assert experiments.interleaved_cache_bytes(config, tokens, full_layers=0) == kv_cache_bytes(config, tokens)
        whole = kv_cache_bytes(replace(config, sliding_window=None), tokens)
        assert experiments.interleaved_cache_bytes(config, tokens, full_layers=32) == whole
    with pytest.raises(ValueError, match="full_layers is 33: expected 0 to 32"):
        experiments.interleaved_cache_bytes(config, 8, full_layers=33)


def test_prompts_are_timed_in_turns_and_predicted_by_pairs():
    costs = experiments.time_prompts((512,), window=128, rounds=2)
    assert [len(timing.runs_s) for row in costs.timings.values() for timing in row] == [2, 2, 2]
    pairs = {way: float(seconds[0]) for way, seconds in costs.predicted_s.items()}
    assert pairs["no window"] == pytest.approx(pairs["window as a mask"], rel=1e-12)  # 512 tokens are one block of keys
    assert pairs["window in chunks"] < pairs["window as a mask"]
    assert costs.medians_s()["no window"].shape == (1,)
    assert costs.bounds_s()["no window"].shape == (2, 1)
    ratio, least, most = experiments.times_as_long(costs, "no window", "window in chunks")
    assert least <= ratio <= most
    assert experiments.times_as_long(costs, "no window", "window in chunks", at=0) == (ratio, least, most)
    measured, predicted = costs.in_ms()
    np.testing.assert_allclose(measured[:, 0], [1e3 * row[0].median_s for row in costs.timings.values()], rtol=1e-12)
    np.testing.assert_allclose(predicted[:, 0], [1e3 * pairs[way] for way in costs.timings], rtol=1e-12)
    with pytest.raises(ValueError, match="expected one of no window, window as a mask"):
        experiments.times_as_long(costs, "ring", "no window")
    with pytest.raises(ValueError, match=r"lengths are \[500\]: expected multiples of 512"):
        experiments.time_prompts((500,))


def test_the_next_token_is_predicted_by_the_keys_that_are_read(monkeypatch):
    monkeypatch.setattr(window_costs, "measure_bandwidth", lambda repeats: 1e9)
    config = replace(mistral_lab.PRESETS["mistral-7b-v0.1"], n_heads=2, n_kv_heads=1, head_dim=4)
    costs = experiments.time_next_token([16, 64], config=config, window=32, rounds=2)
    token_s = 2 * 1 * 4 * 4 / 1e9
    np.testing.assert_allclose(costs.predicted_s["ring"], [16 * token_s, 32 * token_s], rtol=1e-12)
    for way in ("no window, joined", "no window, reserved"):
        np.testing.assert_allclose(costs.predicted_s[way], [16 * token_s, 64 * token_s], rtol=1e-12)


def test_reserved_room_hands_out_what_the_growing_cache_does():
    config = replace(mistral_lab.PRESETS["mistral-7b-v0.1"], n_kv_heads=2, head_dim=4)
    reserved, growing = window_costs.ReservedCache(6, config), DynamicCache()
    for tokens in (4, 1, 1):
        keys, values = torch.randn(2, 1, 2, tokens, 4)
        for found, expected in zip(reserved.update(keys, values, 0), growing.update(keys, values, 0), strict=True):
            assert torch.equal(found, expected)


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: experiments.recall_when_cut(None, None, []), "neither a window nor a depth"),
        (lambda: experiments.time_prompts(()), r"lengths are \[\]: expected multiples of 512"),
        (lambda: experiments.time_prompts((500,)), r"lengths are \[500\]: expected multiples of 512"),
        (lambda: experiments.time_next_token((), config=PRESETS["mistral-7b-v0.1"], window=8), "expected 7 or more"),
        (lambda: experiments.time_next_token((6,), config=PRESETS["mistral-7b-v0.1"], window=8), r"contexts are \[6\]"),
    ],
)
def test_sizes_that_cannot_be_timed_are_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
