"""What lesson 2 measures of one new token's attention: which way, on what, and in whose name."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

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
