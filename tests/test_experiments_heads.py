"""What lesson 2 measures: the right answer is told from a wrong one, copies are seen, and results have their shapes."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mistral_lab import experiments, load
from mistral_lab.attention import grouped_query_attention
from mistral_lab.experiments import from_memory, heads, merged_heads
from mistral_lab.loading.compat import attention_of

STORY = "Once there was a baker called Nora, and she lived near the river. " * 5  # longer than the window of 64


def right(q, k, v, mask):
    return grouped_query_attention(*(x.transpose(1, 2) for x in (q, k, v)), mask)[0].transpose(1, 2)


@pytest.fixture(scope="module", params=["tiny-mistral", "tiny-mixtral"])
def lab(request):
    return load(request.param)


def test_the_right_attention_is_told_from_wrong_ones_in_a_whole_model(lab):
    before = attention_of(lab.model)
    same = experiments.differences(lab, STORY, right)
    # float32 keeps seven digits of sums over a hundred products; four layers add their rounding up.
    assert same.layer < 1e-4
    assert same.logits < 1e-3
    wrong = {
        "heads": lambda q, k, v, mask: right(q, k.flip(1), v.flip(1), mask),
        "no mask": lambda q, k, v, mask: right(q, k, v, torch.ones_like(mask)),
    }
    for mistake in wrong.values():
        apart = experiments.differences(lab, STORY, mistake)
        assert apart.layer > 0.1
        assert apart.logits > 0.1
    assert attention_of(lab.model) == before


def test_an_attention_that_computes_in_float64_can_be_plugged_in(lab):
    precise = experiments.differences(lab, STORY, lambda q, k, v, mask: right(q.double(), k.double(), v.double(), mask))
    assert precise.logits < 1e-3  # as above


def test_the_library_is_put_back_when_a_readers_function_fails(lab):
    before = attention_of(lab.model)
    with pytest.raises(ZeroDivisionError):
        experiments.differences(lab, STORY, lambda q, k, v, mask: 1 / 0)
    assert attention_of(lab.model) == before
    assert not lab.model.model.layers[0].self_attn._forward_hooks


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


def test_the_speed_of_memory_is_found_once_and_no_processor_keeps_what_is_read():
    assert from_memory.memory_speed(2) == from_memory.memory_speed(2) > 0
    ring = from_memory.Ring(torch.bfloat16, 32, 4096)
    places = [ring.layer(8)[0].data_ptr() for _ in range(40)]
    [distance] = {b - a for a, b in itertools.pairwise(i for i, place in enumerate(places) if place == places[0])}
    assert distance * 2 * 8 * 4096 * 128 * 2 >= 2**28  # read in between, in bytes: 8 times a cache of 32 MiB


def test_merged_heads_are_the_mean_or_the_first_of_their_group(lab):
    name = "model.layers.0.self_attn.k_proj.weight"
    groups = lab.model.state_dict()[name].unflatten(0, (1, 2, -1))
    for merge, expected in (("averaged", groups.mean(dim=1)), ("first kept", groups[:, 0])):
        fewer = merged_heads.merged(lab.model, 1, merge)
        assert torch.equal(fewer.state_dict()[name], expected.flatten(0, 1))
        assert fewer.config.num_key_value_heads == 1
    same = merged_heads.merged(lab.model, 2, "averaged").state_dict()
    assert all(torch.equal(same[key], value) for key, value in lab.model.state_dict().items())


@pytest.mark.parametrize(("heads", "merge"), [(3, "averaged"), (1, "last kept")])
def test_what_cannot_be_merged_is_refused(lab, heads, merge):
    with pytest.raises(ValueError, match=f"{heads} of 2 heads, '{merge}': expected a divisor, and one of averaged"):
        merged_heads.merged(lab.model, heads, merge)


def test_training_takes_back_loss_and_leaves_the_loaded_model_alone():
    lab = load("tiny-mistral")
    before = {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}
    found = experiments.fewer_heads(lab, documents=2, steps=1)
    built, averaged, _, trained, after = (interval.mean for interval in found.losses.values())
    assert built < after < averaged
    assert found.cost.mean == pytest.approx(after - trained)  # a mean of differences is the difference of means
    assert found.cost.low <= found.cost.mean <= found.cost.high
    assert all(torch.equal(lab.model.state_dict()[name], tensor) for name, tensor in before.items())


def test_arithmetic_does_not_depend_on_the_kv_heads():
    assert {experiments.count_arithmetic(count, tokens=10) for count in (32, 8, 1)} == {(4 * 32 * 10 * 128,) * 2}
