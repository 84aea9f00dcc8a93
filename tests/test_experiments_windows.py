"""What lesson 3 measures of a window: on small models, in texts whose answers can be counted by hand."""

from dataclasses import replace

import pytest
import torch
from small_windowed import windowed

import mistral_lab
from mistral_lab import experiments, masks
from mistral_lab.experiments import windows
from mistral_lab.training import evaluation


@pytest.fixture(scope="module")
def tiny():
    return mistral_lab.load("tiny-mistral", device="cpu")


@pytest.fixture(scope="module")
def small(tiny):
    return windowed(tiny.tokenizer)


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


def test_a_reaction_leaves_the_readers_generator_alone(small):
    before = torch.get_rng_state()
    assert experiments.reaction(small, 0, back=1, tokens=4) == experiments.reaction(small, 0, back=1, tokens=4)
    assert torch.equal(torch.get_rng_state(), before)
