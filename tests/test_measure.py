import time
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from mistral_lab import measure
from mistral_lab.measure import (
    Timing,
    compare,
    measure_bandwidth,
    measure_generation,
    peak_bytes,
    time_callable,
    time_in_turns,
)

MIB = 2**20


@pytest.fixture(scope="module")
def loaded():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = MistralConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, eos_token_id=list(range(63)))
    return SimpleNamespace(model=AutoModelForCausalLM.from_config(config).eval())


class Sleeper:
    """A model whose `generate` takes known times: 40 ms for the prompt, then 10 ms a token."""

    device = torch.device("cpu")
    config = SimpleNamespace(vocab_size=64)

    def __init__(self):
        self.prompts = []

    def generate(self, prompt, *, max_new_tokens, min_new_tokens, streamer, **_):
        assert max_new_tokens == min_new_tokens
        self.prompts.append(prompt)
        streamer.put(prompt)
        time.sleep(0.03)
        for _ in range(max_new_tokens):
            time.sleep(0.01)
            streamer.put(torch.tensor([1]))
        streamer.end()


def test_prefill_and_decode_are_told_apart():
    sleeper = Sleeper()
    result = measure_generation(SimpleNamespace(model=sleeper), prompt_tokens=5, new_tokens=6, repeats=2)
    # A sleep never ends early; on a busy machine it ends late, rarely by as much as the 30 ms that tell the two apart.
    assert min(result.first_token.runs_s) >= 0.04
    assert 0.01 <= min(result.per_token.runs_s) < 0.04
    assert len(result.first_token.runs_s) == len(result.per_token.runs_s) == 2
    assert len(sleeper.prompts) == 3  # one warms up
    assert all(prompt.shape == (1, 5) and torch.equal(prompt, sleeper.prompts[0]) for prompt in sleeper.prompts)


def test_a_real_model_makes_every_token_although_almost_all_are_end_tokens(loaded, monkeypatch):
    lengths = []
    monkeypatch.setattr(measure._Clock, "end", lambda clock: lengths.append(len(clock.times)))
    result = measure_generation(loaded, prompt_tokens=9, new_tokens=4, repeats=3)
    assert lengths == [5] * 4  # the prompt and four tokens, in the warm-up and three timed runs
    assert (result.prompt_tokens, result.new_tokens, result.peak_of) == (9, 4, "process")
    assert result.first_token_s > 0
    assert result.per_token_s > 0
    assert result.peak_bytes > 50 * MIB  # this process holds PyTorch, which alone is larger


def test_the_median_ignores_one_slow_run():
    timing = Timing((1.0, 50.0, 2.0))
    assert timing.median_s == 2.0
    assert timing.spread_s == 49.0


@pytest.mark.parametrize("wrong", [{"prompt_tokens": 0}, {"new_tokens": 1}, {"repeats": 0}])
def test_counts_that_measure_nothing_are_refused(loaded, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .: expected at least"):
        measure_generation(loaded, **{"prompt_tokens": 1, "new_tokens": 2, **wrong})


def test_a_callable_is_run_once_to_warm_up_and_then_timed():
    runs = []
    timing = time_callable(lambda: (runs.append(None), time.sleep(0.5 if len(runs) == 1 else 0.01)), repeats=3)
    assert len(runs) == 4
    assert len(timing.runs_s) == 3
    assert min(timing.runs_s) >= 0.01
    assert max(timing.runs_s) < 0.4  # the slow first run is not among them
    with pytest.raises(ValueError, match="repeats is 0"):
        time_callable(lambda: None, repeats=0)


def test_peak_memory_sees_what_was_freed_again():
    before = peak_bytes(lambda: None)

    def hold():
        block = torch.ones(64 * MIB // 4)
        time.sleep(0.05)  # ten samples of 5 ms
        del block

    # Other allocations of the process come and go, so a quarter of the 64 MiB is allowed either way.
    assert 48 * MIB < peak_bytes(hold) - before < 80 * MIB


def test_a_failing_callable_leaves_no_sampler_behind():
    import threading

    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        peak_bytes(lambda: 1 / 0)
    assert threading.active_count() == threads


def test_bandwidth_is_bytes_read_over_seconds(monkeypatch):
    read = []

    def fake(function, *, repeats, device):
        read.append(function().item())
        return Timing((0.25,) * repeats)

    monkeypatch.setattr(measure, "READ_BYTES", {"cpu": 4096, "cuda": 4096})
    monkeypatch.setattr(measure, "time_callable", fake)
    assert measure_bandwidth("cpu") == 4096 / 0.25
    assert read == [1024]  # the sum of 1,024 ones: every one of the 4,096 bytes was read


def test_bandwidth_of_this_machine_is_one_that_memory_can_have():
    # One channel of slow DDR3 has about 5 GB/s, shared with other work here; no CPU has reached 2 TB/s.
    assert 5e8 < measure_bandwidth("cpu", repeats=3) < 2e12


def test_callables_take_turns_and_none_always_follows_the_same():
    calls = []
    timings = time_in_turns({name: lambda name=name: calls.append(name) for name in "abc"}, repeats=3)
    assert "".join(calls) == "abc" + "bca" + "cab" + "abc"  # the first round warms up
    assert {name: len(timing.runs_s) for name, timing in timings.items()} == {"a": 3, "b": 3, "c": 3}
    with pytest.raises(ValueError, match=r"\Arepeats is 0: expected at least 1\Z"):
        time_in_turns({"a": calls.clear}, repeats=0)


def test_rounds_are_compared_one_by_one():
    assert compare(Timing((1.0, 30.0, 3.0)), Timing((1.0, 10.0, 2.0))) == {"ratio": 1.5, "least": 1.0, "largest": 3.0}
    with pytest.raises(ValueError, match="zip"):
        compare(Timing((1.0,)), Timing((1.0, 2.0)))
