"""What a window costs and saves: bytes, a prompt's time, the next token's, and what was to be expected."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import DynamicCache
from work_clock import WorkClock

from mistral_lab import PRESETS, experiments
from mistral_lab.experiments import window_costs
from mistral_lab.masks import sliding_window_mask
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


def test_each_way_of_a_prompt_is_timed_under_its_own_name_and_predicted_by_its_pairs(monkeypatch):
    """Without any mask a call takes T^2 / 1000 s, so that a pair of query and key takes a millisecond."""
    clock = WorkClock()

    def kernel(q, k, v, *, enable_gqa, is_causal=False, attn_mask=None):
        assert enable_gqa
        tokens = q.shape[2]
        if attn_mask is not None:
            assert torch.equal(attn_mask, sliding_window_mask(tokens, 256))
            clock.add(2)
        else:
            clock.add(1 if is_causal else tokens**2 / 1000)

    def windowed(q, k, v, *, window):
        assert (q.shape[2], k.shape[2], window) == (8, 2, 256)
        clock.add(q.shape[1])

    monkeypatch.setattr(window_costs, "time_in_turns", clock.time_in_turns)
    monkeypatch.setattr(window_costs, "scaled_dot_product_attention", kernel)
    monkeypatch.setattr(window_costs, "windowed_attention", windowed)
    costs = experiments.time_prompts((512, 1024), window=256, rounds=2)
    assert {way: found.tolist() for way, found in costs.medians_s().items()} == {
        "no window": [1, 1],
        "window as a mask": [2, 2],
        "window in chunks": [512, 1024],
    }
    # Causal: in blocks of 512 keys, 1 of 1 and then 1 + 2 of 4. Chunks of 128: each sees itself and two before it.
    pairs = {
        "no window": [512**2, 3 * 512**2],
        "window as a mask": [512**2, 1024**2],
        "window in chunks": [(1 + 2 + 2 * 3) * 128**2, (1 + 2 + 6 * 3) * 128**2],
    }
    for way, count in pairs.items():
        np.testing.assert_allclose(costs.predicted_s[way], np.array(count) / 1000, rtol=1e-12)


def test_the_next_token_meets_the_keys_of_its_own_cache(monkeypatch):
    """A key that is handed out takes a second."""
    clock = WorkClock()

    def attend(query, keys, values):
        assert keys.shape == values.shape
        clock.add(keys.shape[2])

    monkeypatch.setattr(window_costs, "time_in_turns", clock.time_in_turns)
    monkeypatch.setattr(window_costs, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(window_costs, "measure_bandwidth", lambda repeats: 1e9)
    config = replace(PRESETS["mistral-7b-v0.1"], n_heads=2, n_kv_heads=1, head_dim=4)
    costs = experiments.time_next_token([16, 64], config=config, window=32, rounds=2)
    every_key = [(15, 16), (63, 64)]  # before the first timed token 14 and 62 were kept
    runs = {way: [timing.runs_s for timing in row] for way, row in costs.timings.items()}
    assert runs == {
        "ring": [(15, 16), (32, 32)],
        "no window, joined": every_key,
        "no window, reserved": every_key,
    }
