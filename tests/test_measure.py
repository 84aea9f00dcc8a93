import dataclasses
import json
import platform
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from mistral_lab.measure import (
    Machine,
    Measurement,
    Timing,
    compare,
    generation,
    machine,
    measure_bandwidth,
    measure_generation,
    peak_bytes,
    peak_memory,
    peaks,
    read_sweep,
    sweep,
    sweeps,
    time_callable,
    time_in_turns,
    timing,
)

MIB = 2**20


@pytest.fixture(scope="module")
def loaded():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = MistralConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, eos_token_id=list(range(63)))
    return SimpleNamespace(model=AutoModelForCausalLM.from_config(config).eval())


class Sleeper:
    """A model whose `generate` takes known times: 40 ms for the prompt, then 10 ms per token."""

    device = torch.device("cpu")
    dtype = torch.bfloat16
    config = SimpleNamespace(vocab_size=64)

    def __init__(self):
        self.prompts = []

    def parameters(self):
        return [torch.zeros(3), torch.zeros(5, dtype=torch.uint8)]

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
    assert (result.dtype, result.machine) == ("bfloat16", Machine.here())


def test_a_batch_is_prompts_that_differ():
    sleeper = Sleeper()
    result = measure_generation(SimpleNamespace(model=sleeper), prompt_tokens=9, new_tokens=2, batch=3, repeats=1)
    assert result.batch == 3
    assert [prompt.shape for prompt in sleeper.prompts] == [(3, 9)] * 2
    assert len({tuple(row) for row in sleeper.prompts[0].tolist()}) == 3


def test_a_real_model_makes_every_token_although_almost_all_are_end_tokens(loaded, monkeypatch):
    lengths = []
    monkeypatch.setattr(generation._Clock, "end", lambda clock: lengths.append(len(clock.times)))
    result = measure_generation(loaded, prompt_tokens=9, new_tokens=4, batch=2, repeats=3)
    assert [len(run_s) for run_s in result.samples_s] == [4] * 3
    assert lengths == [5] * 4  # the prompt and four tokens, in the warm-up and three timed runs
    assert (result.prompt_tokens, result.new_tokens, result.peak_of) == (9, 4, "process")
    assert result.first_token_s > 0
    assert result.per_token_s > 0
    assert result.peak_bytes > 50 * MIB  # this process holds PyTorch, which alone is larger


def test_the_median_ignores_one_slow_run():
    runs = Timing((1.0, 50.0, 2.0))
    assert runs.median_s == 2.0
    assert runs.spread_s == 49.0


@pytest.mark.parametrize("wrong", [{"prompt_tokens": 0}, {"new_tokens": 1}, {"batch": 0}, {"repeats": 0}])
def test_counts_that_measure_nothing_are_refused(loaded, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .: expected at least"):
        measure_generation(loaded, **{"prompt_tokens": 1, "new_tokens": 2, **wrong})


def test_a_callable_is_run_once_to_warm_up_and_then_timed():
    runs = []
    result = time_callable(lambda: (runs.append(None), time.sleep(0.5 if len(runs) == 1 else 0.01)), repeats=3)
    assert len(runs) == 4
    assert len(result.runs_s) == 3
    assert min(result.runs_s) >= 0.01
    assert max(result.runs_s) < 0.4  # the slow first run is not among them
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


@pytest.mark.skipif(not hasattr(psutil.Process().memory_info(), "shared"), reason="only Linux tells them apart")
def test_pages_of_a_mapped_file_are_left_out_of_anonymous_memory(tmp_path):
    (tmp_path / "mapped").write_bytes(bytes(64 * MIB))

    def read() -> None:
        mapped = torch.from_file(str(tmp_path / "mapped"), size=64 * MIB // 4)
        mapped.sum()
        time.sleep(0.05)
        del mapped

    def extra(function, **kind) -> int:
        return peak_memory(function, **kind).bytes - peak_memory(lambda: None, **kind).bytes

    # As above, a quarter either way.
    assert extra(read) > 48 * MIB
    assert extra(read, anonymous=True) < 16 * MIB
    assert extra(lambda: torch.ones(64 * MIB // 4).sum().item(), anonymous=True) > 48 * MIB
    assert peak_memory(lambda: None, anonymous=True).of == "process, anonymous"


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

    monkeypatch.setattr(timing, "READ_BYTES", {"cpu": 4096, "cuda": 4096})
    monkeypatch.setattr(timing, "time_callable", fake)
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


HERE = Machine.here()
ELSEWHERE = dataclasses.replace(HERE, device="RTX 4090", processor="Another CPU", threads=16)


def measurement(**changes) -> Measurement:
    fields = {
        "prompt_tokens": 8,
        "batch": 1,
        "new_tokens": 3,
        "samples_s": ((0.5, 0.1, 0.3), (0.7, 0.1, 0.1), (0.6, 0.2, 0.9)),
        "peak_bytes": 10**9,
        "peak_reserved_bytes": None,
        "peak_of": "process",
        "dtype": "float32",
        "machine": HERE,
    }
    return Measurement(**fields | changes)


def test_medians_and_spreads_come_from_the_samples():
    result = measurement()
    assert result.first_token == Timing((0.5, 0.7, 0.6))
    assert result.first_token_s == 0.6
    assert result.per_token.runs_s == pytest.approx((0.2, 0.1, 0.55), rel=1e-12)
    assert result.per_token_s == pytest.approx(0.2, rel=1e-12)
    assert result.each_token == Timing((0.1, 0.3, 0.1, 0.1, 0.2, 0.9))
    assert result.each_token.median_s == pytest.approx(0.15, rel=1e-12)
    assert result.each_token.spread_s == pytest.approx(0.8, rel=1e-12)


def test_a_measurement_goes_through_json_unchanged():
    for result in (
        measurement(),
        measurement(machine=ELSEWHERE, peak_reserved_bytes=2 * 10**9, samples_s=((1, 2, 3),)),
    ):
        assert Measurement.from_json(result.to_json()) == result
    assert json.loads(measurement().to_json())["machine"]["threads"] == HERE.threads


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"samples_s": [[0.5, 0.1]]}, "samples_s has runs of other lengths: expected 3"),
        ({"samples_s": []}, "repeats is 0: expected at least 1"),
        ({"samples_s": [[0.5, -0.1, 0.1]]}, "a sample that is negative or not finite"),
        ({"samples_s": [[0.5, float("nan"), 0.1]]}, "a sample that is negative or not finite"),
        ({"samples_s": 3}, "not iterable"),
        ({"prompt_tokens": 1.5}, "prompt_tokens is 1.5: expected a whole number"),
        ({"peak_bytes": 0}, "peak_bytes is 0"),
        ({"machine": {"device": "cpu"}}, "missing"),
        ({"machine": dataclasses.asdict(HERE) | {"threads": "two"}}, "threads is 'two'"),
        ({"machine": dataclasses.asdict(HERE) | {"processor": 7}}, "processor is 7: expected a text"),
        ({"speed": 1}, "unexpected keyword argument 'speed'"),
    ],
)
def test_what_is_no_measurement_is_refused_in_one_line(change, reason):
    with pytest.raises(ValueError, match=r"\Athis is no Measurement in JSON [^\n]*\Z") as caught:
        Measurement.from_json(json.dumps(json.loads(measurement().to_json()) | change))
    assert reason in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"samples_s": null}'])
def test_other_json_is_no_measurement(text):
    with pytest.raises(ValueError, match="this is no Measurement in JSON"):
        Measurement.from_json(text)


def test_the_machine_names_hardware_and_versions_but_no_host_and_no_path():
    assert HERE.torch == torch.__version__
    assert HERE.threads == torch.get_num_threads()
    assert HERE.device == "cpu"
    text = repr(HERE)
    assert platform.node() not in text
    assert str(Path.home()) not in text


def test_the_cpu_is_read_from_linux_and_named_by_its_architecture_elsewhere(monkeypatch):
    cpuinfo = "processor : 0\nmodel name\t: A CPU @ 3: GHz\nflags\t\t: fpu avx512_bf16 avx2\n"
    monkeypatch.setattr(Path, "read_text", lambda path: cpuinfo)
    assert machine.processor() == "A CPU @ 3: GHz"
    assert machine.instructions() == f"{torch.backends.cpu.get_cpu_capability()}, AVX512_BF16"
    monkeypatch.setattr(Path, "read_text", lambda path: cpuinfo.replace("_bf16", "f"))
    assert machine.instructions() == torch.backends.cpu.get_cpu_capability()

    def missing(path):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert machine.processor() == platform.machine()


def test_memory_on_a_card_is_allocated_and_reserved_apart(monkeypatch):
    calls = []

    class Card:
        def __getattr__(self, name):
            return lambda *_: (calls.append(name), {"max_memory_allocated": 700, "max_memory_reserved": 900}.get(name))[
                1
            ]

    monkeypatch.setattr(peaks.torch, "cuda", Card())
    peak = peak_memory(lambda: calls.append("work"), "cuda")
    assert (peak.bytes, peak.reserved_bytes, peak.of) == (700, 900, "CUDA tensors")
    # Reset before the work, and waited for after it.
    assert calls.index("reset_peak_memory_stats") < calls.index("work") < calls.index("synchronize")
    assert calls.index("synchronize") < calls.index("max_memory_allocated")


@pytest.fixture
def measured(monkeypatch):
    """A stand-in for `measure_generation`, which notes what it was asked for, and breaks off at `interrupt`."""
    state = SimpleNamespace(calls=[], interrupt=None, loaded=SimpleNamespace(model=Sleeper()))

    def fake(loaded, *, prompt_tokens, new_tokens, batch, repeats):
        if (prompt_tokens, batch) == state.interrupt:
            raise KeyboardInterrupt
        state.calls.append((prompt_tokens, batch))
        samples_s = ((0.5,) * new_tokens,) * repeats
        return measurement(
            prompt_tokens=prompt_tokens, batch=batch, new_tokens=new_tokens, samples_s=samples_s, dtype="bfloat16"
        )

    monkeypatch.setattr(sweeps, "measure_generation", fake)
    return state


GRID = {"label": "sleeper", "prompt_tokens": [4, 8], "batches": [1, 2], "new_tokens": 2, "repeats": 1}


def test_an_interrupted_sweep_goes_on_where_it_stopped(measured, tmp_path):
    path = tmp_path / "sweep.json"
    measured.interrupt = (4, 2)
    with pytest.raises(KeyboardInterrupt):
        sweep(measured.loaded, path, **GRID)
    assert [point.measurement.prompt_tokens for point in read_sweep(path)] == [4, 8]
    measured.interrupt = None
    points = sweep(measured.loaded, path, **GRID)
    assert measured.calls == [(4, 1), (8, 1), (4, 2), (8, 2)]  # none twice
    assert points == read_sweep(path)
    assert all(point.here for point in points)
    assert points[0].weights == {"float32": 12, "uint8": 5}
    assert sweep(measured.loaded, path, **GRID) == points
    assert len(measured.calls) == 4


@pytest.mark.parametrize("change", [{"label": "other"}, {"new_tokens": 3}, {"repeats": 2}])
def test_another_setting_is_measured_beside_the_old_one(measured, tmp_path, change):
    path = tmp_path / "sweep.json"
    first = sweep(measured.loaded, path, **GRID)
    assert sweep(measured.loaded, path, **GRID | change)[:4] == first
    assert len(read_sweep(path)) == len(measured.calls) == 8


@pytest.mark.parametrize("name", ["weights", "dtype"])
def test_another_model_under_an_old_label_is_measured(measured, tmp_path, name, monkeypatch):
    path = tmp_path / "sweep.json"
    sweep(measured.loaded, path, **GRID)
    if name == "weights":
        monkeypatch.setattr(Sleeper, "parameters", lambda model: [torch.zeros(4)])
    else:
        monkeypatch.setattr(Sleeper, "dtype", torch.float16)
    sweep(measured.loaded, path, **GRID)
    assert len(measured.calls) == 8


def test_points_of_another_machine_are_kept_and_labelled_and_measured_here_again(measured, tmp_path, monkeypatch):
    path = tmp_path / "sweep.json"
    sweep(measured.loaded, path, **GRID)
    content = json.loads(path.read_text())
    for entry in content["points"]:
        entry["measurement"]["machine"] = dataclasses.asdict(ELSEWHERE)
    path.write_text(json.dumps(content))
    points = sweep(measured.loaded, path, **GRID)
    assert [point.here for point in points] == [False] * 4 + [True] * 4
    assert [point.measurement.machine for point in read_sweep(path)] == [ELSEWHERE] * 4 + [HERE] * 4
    assert str(points[0]) == (
        "sleeper, 1 x 4 tokens: first token 500 ms, then 500 ms per token, measured elsewhere: RTX 4090 (Another CPU, "
        f"16 threads), torch {torch.__version__}"
    )
    assert str(points[4]) == "sleeper, 1 x 4 tokens: first token 500 ms, then 500 ms per token"


@pytest.mark.parametrize(
    "text", ["", "not JSON", "[1, 2]", '{"points": []}', '{"format": 2, "points": []}', '{"format": 1, "points": [{}]}']
)
def test_a_file_that_no_sweep_wrote_is_left_alone(measured, tmp_path, text):
    path = tmp_path / "notes.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"notes\.json is no file of a sweep, and is left as it is: [^\n]*\Z"):
        sweep(measured.loaded, path, **GRID)
    assert path.read_text() == text
    assert measured.calls == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_said_before_anything_is_measured(measured, tmp_path):
    with pytest.raises(FileNotFoundError):
        sweep(measured.loaded, tmp_path / "missing" / "sweep.json", **GRID)
    assert measured.calls == []


def test_an_interruption_while_writing_leaves_the_old_file(measured, tmp_path, monkeypatch):
    path = tmp_path / "sweep.json"
    sweep(measured.loaded, path, **GRID)
    before = path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(measured.loaded, path, **GRID | {"label": "other"})
    assert path.read_bytes() == before


@pytest.mark.parametrize("wrong", [{"prompt_tokens": [8, 0]}, {"batches": [0]}, {"new_tokens": 1}, {"repeats": 0}])
def test_a_sweep_refuses_counts_before_it_touches_the_file(measured, tmp_path, wrong):
    with pytest.raises(ValueError, match="expected at least"):
        sweep(measured.loaded, tmp_path / "sweep.json", **GRID | wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_of_a_real_model(loaded, tmp_path):
    grid = {"prompt_tokens": [3, 6], "batches": [1, 2], "new_tokens": 2, "repeats": 1}
    points = sweep(loaded, tmp_path / "sweep.json", label="small", **grid)
    settings = [(point.measurement.prompt_tokens, point.measurement.batch) for point in points]
    assert settings == [(3, 1), (6, 1), (3, 2), (6, 2)]
    assert points[0].weights == {"float32": sum(p.nbytes for p in loaded.model.parameters())}
    assert points == read_sweep(tmp_path / "sweep.json")
