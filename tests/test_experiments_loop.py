"""What lesson 1 follows round the loop: the tokens, their chances before top-p, and what is drawn."""

import numpy as np
import pytest
import torch

from mistral_lab import experiments, load


@pytest.fixture(scope="module")
def tiny():
    return load("tiny-mistral")


def test_a_trip_ends_where_generate_does(tiny):
    """Greedy, so that nothing is drawn: prefill, the cache and one token at a time give what `generate` gives."""
    trip = experiments.follow_tokens(tiny, "My name is", new_tokens=4, temperature=0)
    tokens = tiny.tokenizer("My name is", return_tensors="pt")["input_ids"]
    expected = tiny.model.generate(tokens, do_sample=False, max_new_tokens=4, pad_token_id=2)[0].tolist()
    assert list(trip.ids) == expected
    assert trip.prompt_tokens == tokens.shape[1]
    table = tiny.model.get_input_embeddings().weight[list(trip.ids)].detach()
    np.testing.assert_array_equal(trip.rows, table[:, : trip.rows.shape[1]].float().numpy())
    assert [trip.candidates[n][place] for n, place in enumerate(trip.drawn)] == list(trip.texts[-4:])


def test_the_next_logits_are_those_of_the_last_token(tiny):
    logits = experiments.next_logits(tiny, "My favourite condiment is")
    assert (logits.shape, logits.dtype) == ((tiny.config.vocab_size,), torch.float64)
    assert tiny.tokenizer.decode([int(logits.argmax())]) == " soy"
    assert not logits.requires_grad


def test_a_trip_is_the_same_for_the_same_seed_and_shows_what_top_p_cuts(tiny):
    one, same, other = (experiments.follow_tokens(tiny, "My favourite condiment is", seed=seed) for seed in (0, 0, 5))
    assert one.ids == same.ids != other.ids
    assert all(kept[place] for kept, place in zip(one.kept, one.drawn, strict=True))
    assert not one.kept.all()
    assert (one.probabilities.sum(axis=1) <= 1 + 1e-6).all()  # float32 sums
    with pytest.raises(ValueError, match="top_p is 2"):
        experiments.follow_tokens(tiny, "a", top_p=2)


def test_the_first_draw_is_by_hand_what_it_is_said_to_be(tiny):
    """Chances at the temperature, of all tokens, and beside them which of these top-p left."""
    trip = experiments.follow_tokens(tiny, "My favourite condiment is", new_tokens=1, temperature=1.5, top_p=0.6)
    chances = (experiments.next_logits(tiny, "My favourite condiment is") / 1.5).softmax(0)
    shown = chances.topk(5).indices.tolist()
    if trip.ids[-1] not in shown:
        shown[-1] = trip.ids[-1]
    assert trip.candidates[0] == tuple(tiny.tokenizer.decode([token]) for token in shown)
    np.testing.assert_allclose(trip.probabilities[0], chances[shown], rtol=1e-4)  # float32 beside float64
    before = [float(chances[chances > chances[token]].sum()) for token in shown]
    assert trip.kept[0].tolist() == [mass < 0.6 for mass in before]


def test_a_draw_follows_the_temperature(tiny):
    def written(temperature):
        many = (experiments.follow_tokens(tiny, "My", temperature=temperature, top_p=1, seed=seed) for seed in range(3))
        return {trip.ids for trip in many}

    greedy = experiments.follow_tokens(tiny, "My", temperature=0).ids
    assert written(1e-3) == {greedy}  # a hundredth in a logit is then e^10 in a chance
    assert len(written(100.0)) == 3  # almost any of 2,560 tokens, four times
