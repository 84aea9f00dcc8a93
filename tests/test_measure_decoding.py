"""A cache filled with random numbers costs a step what a cache filled by reading costs."""

import pytest
import torch
from transformers import DynamicCache

from mistral_lab import load
from mistral_lab.measure import filled, random_tokens, timed_steps


@pytest.fixture(scope="module", params=["tiny-mistral", "tiny-mixtral"])
def model(request):
    return load(request.param).model


def cache_after_reading(model, tokens):
    with torch.no_grad():
        return model(tokens, use_cache=True).past_key_values


@pytest.mark.parametrize("context", [1, 40, 63, 64, 150])  # tiny-mistral has a window of 64
def test_a_filled_cache_is_one_that_was_read_but_for_its_numbers(model, context):
    tokens = random_tokens(model, context)
    read, made = cache_after_reading(model, tokens), filled(DynamicCache(config=model.config), model, context)
    assert type(made) is type(read)
    assert made.get_seq_length() == read.get_seq_length() == context
    for mine, other in zip(made.layers, read.layers, strict=True):
        assert type(mine) is type(other)
        for name in ("keys", "values"):
            one, two = getattr(mine, name), getattr(other, name)
            assert (one.shape, one.dtype, one.device, one.stride()) == (two.shape, two.dtype, two.device, two.stride())
            assert one.std() > 0.5
        assert mine.get_seq_length() == other.get_seq_length()


@pytest.mark.parametrize("context", [40, 150])
def test_with_the_numbers_of_the_read_one_it_gives_its_answer(model, context):
    tokens = random_tokens(model, context + 1)
    read, made = cache_after_reading(model, tokens[:, :-1]), filled(DynamicCache(config=model.config), model, context)
    for mine, other in zip(made.layers, read.layers, strict=True):
        mine.keys.copy_(other.keys)
        mine.values.copy_(other.values)
    with torch.no_grad():
        answers = [model(tokens[:, -1:], past_key_values=cache).logits for cache in (read, made)]
    assert torch.equal(*answers)


def test_steps_read_one_token_each_and_go_on_from_the_filled_cache(model):
    shapes, cache = [], filled(DynamicCache(config=model.config), model, 100)
    hook = model.model.layers[0].register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape[1]))
    try:
        steps = timed_steps(model, random_tokens(model, 101), [5, 6, 7, 8], cache=cache)
    finally:
        hook.remove()
    assert shapes == [1, 1, 1, 1]
    assert len(steps) == 4
    assert min(step.seconds for step in steps) > 0
    assert cache.get_seq_length() == 104


def test_the_given_tokens_are_those_that_the_model_reads(model):
    end = model.generation_config.eos_token_id
    given, read = [9, end, end, 11], []
    hook = model.model.embed_tokens.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].tolist()))
    seen = []
    try:
        timed_steps(model, random_tokens(model, 3), given, after=lambda number, step: seen.append(number))
    finally:
        hook.remove()
    assert read == [random_tokens(model, 3).tolist(), [[9]], [[end]], [[end]]]  # the last one is not read
    assert seen == [0, 1, 2, 3]


def test_a_cache_has_at_least_one_token(model):
    with pytest.raises(ValueError, match="tokens is 0: expected"):
        filled(DynamicCache(config=model.config), model, 0)
