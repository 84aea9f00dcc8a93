"""What lesson 2 measures of one new token's attention: which way, on what, and in whose name."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from work_clock import WorkClock

from mistral_lab import experiments
from mistral_lab.attention import grouped_query_attention
from mistral_lab.experiments import from_memory, heads


def right(q, k, v, mask):
    return grouped_query_attention(*(x.transpose(1, 2) for x in (q, k, v)), mask)[0].transpose(1, 2)


def test_all_ways_that_are_timed_are_one_attention():
    q, (k, v) = heads._queries(torch.float64), from_memory.Ring(torch.float64, 8, 50).layer(8)
    expected = right(q, k, v, torch.ones(1, 50, dtype=torch.bool))
    for attend in (experiments.repeat_and_attend, experiments.in_rows):
        torch.testing.assert_close(attend(q, k, v), expected, rtol=0, atol=1e-12)  # float64 rounds at 1e-16
    as_rows = scaled_dot_product_attention(heads._as_rows(q, k), k, v).reshape(q.shape)
    torch.testing.assert_close(as_rows, expected, rtol=0, atol=1e-12)


def test_copies_of_keys_and_values_are_seen_in_memory():
    assert round(experiments.extra_memory(right)) == 0
    assert round(experiments.extra_memory(lambda q, k, v, mask: experiments.repeat_and_attend(q, k, v))) == 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_ways_take_turns_and_say_what_they_read(dtype):
    asked = []

    def attend(q, k, v, mask):
        asked.append((tuple(q.shape), tuple(k.shape), tuple(mask.shape), q.dtype))
        return right(q, k, v, mask)

    found = experiments.time_ways(attend, dtype=dtype, tokens=64, rounds=2)
    assert set(asked) == {((1, 32, 1, 128), (1, 8, 64, 128), (1, 64), getattr(torch, dtype))}
    assert list(found.runs_s)[0] == "copies, fresh memory"
    assert list(found.runs_s)[-1] == "yours"
    assert {runs.shape for runs in found.runs_s.values()} == {(2,)}
    assert found.nbytes == 2 * 8 * 64 * 128 * getattr(torch, dtype).itemsize
    assert found.ratio("yours", "yours") == 1


def test_times_of_heads_and_rows_have_a_row_each():
    by_heads = experiments.time_heads(right, (8, 2), tokens=64, rounds=3)
    assert by_heads.runs_s.shape == (2, 3)
    assert by_heads.near_s == np.median(by_heads.near_runs_s) > 0
    assert by_heads.ratio(8, 2) == pytest.approx(np.median(by_heads.runs_s[0] / by_heads.runs_s[1]))
    by_rows = experiments.time_rows((1, 4), tokens=64, rounds=3)
    assert by_rows.runs_s.shape == (2, 3)
    assert by_rows.head_by_head_s.shape == by_rows.unshared_s.shape == (3,)
    assert by_rows.median_s(4) == np.median(by_rows.runs_s[1])
    assert by_rows.share(4) == by_rows.median_s(4) / by_rows.median_s(1)
    assert by_rows.apart_share == np.median(by_rows.head_by_head_s) / by_rows.median_s(1)
    assert by_rows.shared_share == np.median(by_rows.head_by_head_s) / np.median(by_rows.unshared_s)


def test_all_floors_are_computed_with_one_speed_of_memory(monkeypatch):
    monkeypatch.setattr(heads, "memory_speed", lambda threads: 1e9)
    layer = 2 * 8 * 64 * 128 * 2  # keys and values, K, S, D, bytes
    floors = [experiments.time_ways(right, dtype=d, tokens=64, rounds=1).floor_s for d in ("bfloat16", "float32")]
    assert floors == [layer / 1e9, 2 * layer / 1e9]
    np.testing.assert_allclose(
        experiments.time_heads(right, (8, 2), tokens=64, rounds=1).floor_s, [floors[0], floors[0] / 4]
    )


@pytest.fixture
def clock(monkeypatch):
    """Calls take the seconds that are added; keys and values are small, and memory delivers 1 GB/s."""
    clock = WorkClock()
    monkeypatch.setattr(heads, "time_in_turns", clock.time_in_turns)
    monkeypatch.setattr(heads, "memory_speed", lambda threads: 1e9)
    monkeypatch.setattr(from_memory, "RING_BYTES", 2**16)
    return clock


def test_every_way_that_is_timed_attends_to_the_same_keys_and_values(clock, monkeypatch):
    """All ways get the same layer and must agree; a second of the clock tells them apart."""
    k, v = torch.randn(2, 1, 8, 16, 128, generator=torch.Generator().manual_seed(0)).unbind()
    monkeypatch.setattr(heads.Ring, "layer", lambda ring, n_kv_heads: (k, v))
    answers, operands = [], []

    def attend(q, k, v, attn_mask=None, **how):
        answers.append(scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, **how).flatten())
        operands.append((tuple(q.shape[1:3]), k.shape[1], how.get("enable_gqa", False)))
        clock.add(len(set(operands)))
        return answers[-1].reshape(q.shape)

    monkeypatch.setattr(heads, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(heads, "_page_faults", lambda call: None)
    found = experiments.time_ways(lambda q, k, v, mask: attend(q, k, v, mask, enable_gqa=True), dtype="float32",
                                  tokens=16, rounds=1)  # fmt: skip
    assert list(dict.fromkeys(operands)) == [((32, 1), 32, False), ((32, 1), 8, True), ((8, 4), 8, False)]
    for answer in answers:
        torch.testing.assert_close(answer, answers[0], rtol=0, atol=1e-5)  # float32, sums in another order
    ways = ["copies, fresh memory", "copies, kept memory", "no copies: enable_gqa", "group as rows", "yours"]
    assert {way: float(runs[0]) for way, runs in found.runs_s.items()} == dict(zip(ways, (1, 1, 2, 3, 3), strict=True))


def test_rows_and_heads_one_by_one_are_told_under_their_own_names(clock, monkeypatch):
    """A call takes 10,000 s for each query head, 100 s for each row and 1 s for each KV head."""

    def attend(q, k, v, enable_gqa=False):
        assert enable_gqa == (q.shape[1] != k.shape[1])
        assert k.shape == v.shape
        clock.add(10_000 * q.shape[1] + 100 * q.shape[2] + k.shape[1])

    monkeypatch.setattr(heads, "scaled_dot_product_attention", attend)
    found = experiments.time_rows((1, 4), tokens=16, rounds=2)
    assert found.runs_s.tolist() == [[80_108] * 2, [80_408] * 2]
    assert found.head_by_head_s.tolist() == [320_108] * 2
    assert found.unshared_s.tolist() == [320_132] * 2


def test_heads_are_timed_from_memory_and_once_from_the_cache(clock):
    """A layer takes a second for each KV head, and a hundredth where the keys were those of the call before."""
    places = []

    def attend(q, k, v, mask):
        places.append((k.data_ptr(), v.data_ptr()))
        near = len(places) > 1 and places[-1] == places[-2]
        clock.add(k.shape[1] / (100 if near else 1))

    found = experiments.time_heads(attend, (8, 2), tokens=16, rounds=2)
    assert found.runs_s.tolist() == [[8, 8], [2, 2]]
    assert found.near_runs_s == pytest.approx([0.02, 0.02], rel=1e-9)  # sums of hundredths


def test_queries_are_the_same_every_time(monkeypatch):
    seen = []
    monkeypatch.setattr(from_memory, "RING_BYTES", 2**16)
    monkeypatch.setattr(heads, "scaled_dot_product_attention", lambda q, k, v, **how: seen.append(q))
    before = torch.get_rng_state()
    for _ in range(2):
        experiments.time_rows((1, 4), tokens=16, rounds=1)
    once, again = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert all(torch.equal(q, same) for q, same in zip(once, again, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
