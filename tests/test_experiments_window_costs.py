"""What a window costs and saves: bytes, a prompt's time, the next token's, and what was to be expected."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from mistral_lab import PRESETS, experiments
from mistral_lab.experiments import window_costs
from mistral_lab.memory import kv_cache_bytes


def test_interleaved_bytes_are_those_of_its_layers():
    config = PRESETS["mistral-7b-v0.1"]
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
    config = replace(PRESETS["mistral-7b-v0.1"], n_heads=2, n_kv_heads=1, head_dim=4)
    costs = experiments.time_next_token([16, 64], config=config, window=32, rounds=2)
    token_s = 2 * 1 * 4 * 4 / 1e9
    np.testing.assert_allclose(costs.predicted_s["ring"], [16 * token_s, 32 * token_s], rtol=1e-12)
    for way in ("no window, joined", "no window, reserved"):
        np.testing.assert_allclose(costs.predicted_s[way], [16 * token_s, 64 * token_s], rtol=1e-12)


def test_reserved_room_hands_out_what_the_growing_cache_does():
    config = replace(PRESETS["mistral-7b-v0.1"], n_kv_heads=2, head_dim=4)
    reserved, growing = window_costs.ReservedCache(6, config), DynamicCache()
    for tokens in (4, 1, 1):
        keys, values = torch.randn(2, 1, 2, tokens, 4)
        for found, expected in zip(reserved.update(keys, values, 0), growing.update(keys, values, 0), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: experiments.time_prompts(()), r"lengths are \[\]: expected multiples of 512"),
        (lambda: experiments.time_prompts((500,)), r"lengths are \[500\]: expected multiples of 512"),
        (lambda: experiments.time_next_token((), config=PRESETS["mistral-7b-v0.1"], window=8), "expected 7 or more"),
        (lambda: experiments.time_next_token((6,), config=PRESETS["mistral-7b-v0.1"], window=8), r"contexts are \[6\]"),
    ],
)
def test_sizes_that_cannot_be_timed_are_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
