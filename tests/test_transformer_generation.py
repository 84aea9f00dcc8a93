"""Generation gives the tokens of transformers, whatever the batch, the padding, the chunks and the seed."""

import pytest
import torch
from small_decoders import (
    CLOSE,
    dense_decoder,  # noqa: F401 - the fixture `dense`
    every_bundled_model,  # noqa: F401 - the fixture `bundled`
    every_kind,  # noqa: F401 - the fixture `models`
    generate,
    one_line,
    one_thread,  # noqa: F401 - for all tests of this file
    prompt,
)

from mistral_lab.sampling import choose_token
from mistral_lab.transformer import Transformer, decoder, generation


def test_greedy_generation_is_that_of_transformers_token_for_token(models):
    ours, theirs = models
    for T, new in ((1, 30), (9, 24)):
        out = ours.generate(prompt(T, batch=3), max_new_tokens=new)
        assert out.dtype == torch.int64
        assert torch.equal(out, generate(theirs, prompt(T, batch=3), new))
    assert len(out.unique()) > 6  # no model that says one thing whatever it sees


def test_the_bundled_models_generate_as_in_transformers(bundled):
    ours, theirs, tokenizer = bundled
    for text in ("My favourite condiment is", "AI的未来是", "12 + 30 ="):
        tokens = tokenizer(text, return_tensors="pt")["input_ids"]
        new = 90  # beyond tiny-mistral's window of 64
        expected = theirs.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=new, pad_token_id=2
        )
        assert torch.equal(ours.generate(tokens, max_new_tokens=new), expected)


@pytest.mark.parametrize("chunk", [1, 3, 7, 16, 40, 41])
def test_the_size_of_the_prompts_chunks_changes_no_token(models, chunk, monkeypatch):
    ours, _ = models
    expected = ours.generate(prompt(40), max_new_tokens=12)
    monkeypatch.setattr(generation, "PREFILL_CHUNK", chunk)
    assert torch.equal(ours.generate(prompt(40), max_new_tokens=12), expected)


def test_a_long_prompt_goes_through_in_chunks(dense, monkeypatch):
    seen, hidden = [], Transformer.hidden_states
    monkeypatch.setattr(generation, "PREFILL_CHUNK", 50)
    monkeypatch.setattr(
        Transformer, "hidden_states", lambda self, *args: seen.append(args[0].shape) or hidden(self, *args)
    )
    dense.generate(prompt(120), max_new_tokens=3)
    assert seen == [(2, 50), (2, 50), (2, 20), (2, 1), (2, 1)]


def left_padded(T, lengths):
    mask = torch.arange(T) >= T - torch.tensor(lengths)[:, None]
    return prompt(T, batch=len(lengths)).masked_fill(~mask, 0), mask


@pytest.mark.parametrize("chunk", [4, 512])
def test_a_padded_batch_generates_what_each_row_alone_and_transformers_generate(models, chunk, monkeypatch):
    ours, theirs = models
    monkeypatch.setattr(generation, "PREFILL_CHUNK", chunk)
    lengths = [12, 1, 7, 3]
    tokens, mask = left_padded(12, lengths)
    out = ours.generate(tokens, max_new_tokens=20, pad_mask=mask)
    assert torch.equal(out[:, :12], tokens)
    assert torch.equal(out, generate(theirs, tokens, 20, mask=mask))
    for row, length in enumerate(lengths):
        alone = ours.generate(tokens[row : row + 1, 12 - length :], max_new_tokens=20)
        assert torch.equal(out[row, 12 - length :], alone[0])
    other = tokens.masked_fill(~mask, 17)
    assert torch.equal(ours.generate(other, max_new_tokens=20, pad_mask=mask)[:, 12:], out[:, 12:])


def test_logits_of_a_padded_row_are_those_of_the_row_alone(dense, monkeypatch):
    """Tokens may agree by luck; these are the numbers behind them."""
    lengths, seen = [12, 1, 7, 3], []
    tokens, mask = left_padded(12, lengths)
    monkeypatch.setattr(
        decoder, "choose_token", lambda logits, **how: seen.append(logits) or choose_token(logits, **how)
    )
    out = dense.generate(tokens, max_new_tokens=15, pad_mask=mask)
    for row, length in enumerate(lengths):
        expected = dense(out[row : row + 1, 12 - length : -1])[0, length - 1 :]
        torch.testing.assert_close(torch.stack([logits[row] for logits in seen]), expected, **CLOSE)


def test_positions_of_a_padded_row_count_from_its_first_token_as_in_transformers(dense, monkeypatch):
    """Attention sees distances alone, so only rounding tells: what is compared is what is rotated by."""
    seen, original = [], Transformer.cos_and_sin
    tokens, mask = left_padded(6, [6, 2])
    monkeypatch.setattr(
        Transformer, "cos_and_sin", lambda self, positions: seen.append(positions) or original(self, positions)
    )
    dense.generate(tokens, max_new_tokens=2, pad_mask=mask)
    assert seen[0].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 0, 1, 2, 3]]


def test_no_query_of_a_padded_batch_sees_nothing(dense, monkeypatch):
    """Where PyTorch answers such a row with NaN, it spreads: 0 times NaN is NaN in the rows that hide it."""
    tokens, mask = left_padded(12, [12, 1])
    monkeypatch.setattr(generation, "PREFILL_CHUNK", 5)  # the second row's first two chunks are padding alone
    masks, sees = [], Transformer.attention_mask
    monkeypatch.setattr(Transformer, "attention_mask", lambda *args: masks.append(sees(*args)) or masks[-1])
    dense.generate(tokens, max_new_tokens=3, pad_mask=mask)
    assert len(masks) == 5
    assert all(each.any(dim=-1).all() for each in masks)


def test_padding_that_is_attended_to_is_seen(dense, monkeypatch):
    tokens, mask = left_padded(12, [12, 5])
    right, sees = dense.generate(tokens, max_new_tokens=20, pad_mask=mask), Transformer.attention_mask
    monkeypatch.setattr(Transformer, "attention_mask", lambda self, T, cache, pads: sees(self, T, cache, None))
    assert not torch.equal(dense.generate(tokens, max_new_tokens=20, pad_mask=mask), right)


def test_a_sequence_that_has_ended_repeats_its_end_until_the_last_has(models):
    ours, theirs = models
    tokens = prompt(9, batch=3)
    end = int(ours.generate(tokens, max_new_tokens=12)[1, 11])  # the second one's third token
    stopped = ours.generate(tokens, max_new_tokens=12, eos_token_id=end)
    assert torch.equal(stopped, generate(theirs, tokens, 12, eos_token_id=end, pad_token_id=end))
    assert (stopped[1, 11:] == end).all()
    alone = ours.generate(tokens[1:2], max_new_tokens=12, eos_token_id=end)
    assert alone.shape[1] <= 12
    assert alone[0, -1] == end


def test_without_an_end_token_nothing_stops(bundled):
    ours, _, tokenizer = bundled
    tokens = torch.tensor([[1, tokenizer.eos_token_id]])
    assert ours.generate(tokens, max_new_tokens=25).shape == (1, 27)


def test_every_step_is_called_with_its_tokens(dense):
    steps = []
    out = dense.generate(prompt(5), max_new_tokens=8, on_token=lambda tokens: steps.append(tokens.clone()))
    assert torch.equal(torch.stack(steps, dim=1), out[:, 5:])


def test_what_is_generated_serves_in_training_and_no_weight_does_unasked(dense):
    out = dense.generate(prompt(5), max_new_tokens=3)
    out[0, 0] = 2
    torch.nn.functional.embedding(out, torch.ones(61, 2, requires_grad=True)).sum().backward()
    assert not any(weight.requires_grad for weight in dense.parameters())
    assert not dense.training


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.5), (1.6, 0.9), (0.3, 1e-9)])
def test_a_seed_draws_what_transformers_draws_with_it(models, temperature, top_p):
    ours, theirs = models
    for seed in (0, 7):
        torch.manual_seed(seed)
        how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        expected = generate(theirs, prompt(6), 20, **how)
        before = torch.random.get_rng_state()
        out = ours.generate(prompt(6), max_new_tokens=20, temperature=temperature, top_p=top_p, seed=seed)
        assert torch.equal(out, expected)
        assert torch.equal(torch.random.get_rng_state(), before)


def test_without_a_seed_pytorchs_random_state_is_drawn_from(dense):
    outs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outs.append(dense.generate(prompt(6), max_new_tokens=20, temperature=1.0))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


# Bad input: one line, expected and actual.


REQUESTS = {
    "no new tokens": ({"max_new_tokens": 0}, ValueError, "max_new_tokens is 0: expected at least 1"),
    "half a token": ({"max_new_tokens": 1.5}, TypeError, "max_new_tokens is 1.5: expected a whole number"),
    "cold": ({"temperature": -1.0}, ValueError, r"temperature is -1.0: expected 0 \(greedy\)"),
    "hot": ({"temperature": float("inf")}, ValueError, "temperature is inf"),
    "no number": ({"temperature": "warm"}, TypeError, "temperature is 'warm': expected a number"),
    "no candidates": ({"top_p": 0.0}, ValueError, "top_p is 0.0: expected a number above 0 and up to 1"),
    "too many": ({"top_p": 1.1}, ValueError, "top_p is 1.1"),
    "seed": ({"seed": 0.5}, TypeError, "seed is 0.5: expected a whole number"),
    "long seed": ({"seed": 2**64}, ValueError, "seed is .*: expected a number of 64 bits"),
    "end": ({"eos_token_id": 61}, ValueError, "eos_token_id is 61: expected None or a token of the vocabulary"),
    "ends": ({"eos_token_id": [2]}, ValueError, r"eos_token_id is \[2\]"),
    "mask list": ({"pad_mask": [[True]]}, TypeError, r"pad_mask is \[\[True\]\]: expected a tensor of bool on cpu"),
    "mask of ints": ({"pad_mask": torch.ones(2, 5, dtype=torch.int64)}, TypeError, "pad_mask is torch.int64 on cpu"),
    "mask shape": ({"pad_mask": torch.ones(2, 4) > 0}, ValueError, r"pad_mask is \(2, 4\): expected \(2, 5\)"),
    "right padding": ({"pad_mask": torch.arange(5).expand(2, 5) < 3}, ValueError, "expected padding on the left"),
    "a hole": ({"pad_mask": torch.arange(5).expand(2, 5) != 3}, ValueError, "expected padding on the left"),
    "padding alone": ({"pad_mask": torch.zeros(2, 5) > 0}, ValueError, "expected padding on the left"),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_requests_outside_their_range_are_refused_in_one_line(dense, case):
    wrong, kind, pattern = REQUESTS[case]
    with one_line(pattern, kind):
        dense.generate(prompt(5), **({"max_new_tokens": 2} | wrong))
