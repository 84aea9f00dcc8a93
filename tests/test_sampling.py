"""Top-p keeps what transformers keeps and what a slow count keeps, and tokens are drawn as often as they should be."""

import re

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from mistral_lab import explorers, sampling
from mistral_lab.sampling import check_sampling, choose_token, kept_by_top_p, token_probabilities

EIGHTHS = torch.tensor([1, 4, 1, 2], dtype=torch.float64) / 8


def some_logits(rows=3, V=30, seed=0):
    return 2 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


@given(
    rows=st.integers(1, 3),
    V=st.integers(1, 40),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_p=st.sampled_from([1e-9, 0.2, 0.5, 0.9, 0.999, 1.0]),
)
def test_probabilities_are_those_of_a_slow_count(rows, V, temperature, top_p):
    logits = some_logits(rows, V, seed=V).double()
    found = token_probabilities(logits, temperature=temperature, top_p=top_p)
    expected = [reference.token_probabilities(row, temperature, top_p) for row in logits.numpy()]
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)  # sums of 40 numbers that are at most 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smaller_dtypes_are_computed_in_float32(dtype):
    logits = some_logits().to(dtype)
    found = token_probabilities(logits, temperature=0.7, top_p=0.8)
    expected = token_probabilities(logits.double(), temperature=0.7, top_p=0.8)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.25, 0.375, 0.5, 0.625, 0.75, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["apart", "in bfloat16, with many ties", "all alike", "eighths", "with -inf"])
def test_what_is_kept_is_what_transformers_keeps(kind, top_p):
    """To the token, ties and sums that meet the line included: generation must draw what transformers draws."""
    logits = {
        "apart": some_logits(V=500),
        "in bfloat16, with many ties": some_logits(V=500).bfloat16().float(),
        "all alike": torch.zeros(2, 24),
        "eighths": EIGHTHS.log()[None],
        "with -inf": some_logits(V=9).index_fill(1, torch.tensor([2, 5]), -torch.inf),
    }[kind]
    assert torch.equal(kept_by_top_p(logits, top_p), TopPLogitsWarper(top_p)(None, logits) > -torch.inf)


@pytest.mark.parametrize(("top_p", "expected"), [
    (0.49, [False, True, False, False]),
    (0.51, [False, True, False, True]),  # the token that crosses the line stays
    (0.74, [False, True, False, True]),
    (1e-9, [False, True, False, False]),  # the likeliest always stays
    (1.0, [True, True, True, True]),
])  # fmt: skip
def test_top_p_by_hand(top_p, expected):
    assert kept_by_top_p(EIGHTHS.log(), top_p).tolist() == expected


def test_of_equal_logits_as_many_stay_as_are_needed():
    kept = kept_by_top_p(torch.zeros(3, 8, dtype=torch.float64), 0.5)
    assert kept.sum(dim=1).tolist() == [4, 4, 4]


def test_the_likeliest_stays_where_rounding_would_take_it():
    """1 - 1e-17 is 1, which no sum exceeds."""
    assert kept_by_top_p(torch.tensor([0.0, 9.0, 0.0]), 1e-17).tolist() == [False, True, False]


def test_at_temperature_zero_the_likeliest_token_has_all():
    logits = some_logits(V=7)
    found = token_probabilities(logits, temperature=0, top_p=0.3)
    assert torch.equal(found, torch.eye(7)[logits.argmax(dim=-1)])
    assert torch.equal(choose_token(logits, 0, 0.3, None), logits.argmax(dim=-1))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.8), (2.0, 0.95), (1.0, 0.3), (1.0, 1e-9)])
def test_tokens_are_drawn_as_often_as_the_warpers_of_transformers_say(temperature, top_p):
    logits = some_logits(1)
    warped = TemperatureLogitsWarper(temperature)(None, logits)
    shares = (warped if top_p == 1 else TopPLogitsWarper(top_p)(None, warped)).softmax(dim=-1)[0]
    draws, random = 50_000, torch.Generator().manual_seed(0)
    drawn = choose_token(logits.expand(draws, -1), temperature, top_p, random).bincount(minlength=30) / draws
    assert (drawn[shares == 0] == 0).all()
    # The share of n draws has a deviation of √(p(1 - p)/n): five of them are passed once in two million.
    assert ((drawn - shares).abs() <= 5 * (shares * (1 - shares) / draws).sqrt() + 1e-6).all()


# Broken on purpose.


def crossing_left_out(logits, top_p):
    rising, order = logits.sort(dim=-1)
    kept = rising.softmax(dim=-1).cumsum(dim=-1) - rising.softmax(dim=-1) > 1 - top_p
    return kept.scatter(-1, order, kept)


def order_forgotten(logits, top_p):
    kept = logits.sort(dim=-1).values.softmax(dim=-1).cumsum(dim=-1) > 1 - top_p
    kept[..., -1] = True
    return kept


def one_probability_alone(logits, top_p):
    return logits.softmax(dim=-1) > 1 - top_p


@pytest.mark.parametrize("breakage", [crossing_left_out, order_forgotten, one_probability_alone])
def test_a_broken_top_p_is_far_from_right(breakage, monkeypatch):
    logits = some_logits()
    right = token_probabilities(logits, temperature=1.0, top_p=0.8)
    monkeypatch.setattr(sampling, "kept_by_top_p", breakage)
    broken = token_probabilities(logits, temperature=1.0, top_p=0.8)
    assert not (broken - right).abs().max() < 1e-2  # or NaN, where nothing was kept


def test_the_explorer_keeps_the_first_of_equally_likely_tokens():
    """Top-p leaves open which of them stay; the explorer lists them in order, so those in front must stay."""

    class Letters:
        def decode(self, numbers):
            return "abcd"[numbers[0]]

    explorer = explorers.next_token(torch.zeros(4), Letters())
    explorer.controls["top_p"].value = 0.5
    assert "2 of 4 tokens can be drawn, “a” with probability 0.50" in explorer.sentence


# Bad input.


REFUSED = {
    "no token": ({"max_new_tokens": 0}, ValueError, "max_new_tokens is 0: expected at least 1"),
    "half a token": ({"max_new_tokens": 1.5}, TypeError, "max_new_tokens is 1.5: expected a whole number"),
    "True": ({"max_new_tokens": True}, TypeError, "max_new_tokens is True: expected a whole number"),
    "cold": ({"temperature": -0.1}, ValueError, "temperature is -0.1: expected 0 (greedy) or a number from 1e-06 on"),
    "nearly 0": ({"temperature": 1e-9}, ValueError, "temperature is 1e-09: expected 0 (greedy) or"),
    "infinite": ({"temperature": float("inf")}, ValueError, "temperature is inf: expected 0 (greedy) or"),
    "NaN": ({"temperature": float("nan")}, ValueError, "temperature is nan: expected 0 (greedy) or"),
    "a word": ({"temperature": "hot"}, TypeError, "temperature is 'hot': expected a number"),
    "nothing kept": ({"top_p": 0.0}, ValueError, "top_p is 0.0: expected a number above 0 and up to 1"),
    "more than all": ({"top_p": 1.1}, ValueError, "top_p is 1.1: expected a number above 0 and up to 1"),
    "half a seed": ({"seed": 0.5}, TypeError, "seed is 0.5: expected a whole number"),
    "65 bits": ({"seed": 2**64}, ValueError, f"seed is {2**64}: expected a number of 64 bits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_outside_their_range_are_refused_in_one_line(case):
    fine = {"max_new_tokens": 1, "temperature": 1e-6, "top_p": 1, "seed": None}
    check_sampling(**fine)
    check_sampling(**fine | {"temperature": 0, "top_p": 1e-9, "seed": -(2**63)})
    wrong, kind, message = REFUSED[case]
    with pytest.raises(kind, match=rf"\A{re.escape(message)}[^\n]*\Z"):
        check_sampling(**fine | wrong)
