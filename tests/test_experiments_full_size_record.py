"""What lessons 1 to 3 tell of records: the right machine and model, the floor at the fastest speed."""

import json

import pytest

from mistral_lab import experiments
from mistral_lab.experiments import full_size_record


def entry(what: str, setting: int, *, model: str = "mistral-7b-v0.1", device: str = "cpu", **found) -> dict:
    """One measurement as benchmarks/full_size.py keeps it, without what is not read here."""
    common = {"model": model, "layers": 32, "of_layers": 32, "machine": {"device": device, "threads": 6}}
    return common | {"what": what, "setting": setting} | found


def write(folder, name: str, entries: list[dict]) -> None:
    (folder / f"{name}.json").write_text(json.dumps({"format": 1, "device": name, "measurements": entries}))


@pytest.fixture
def records(monkeypatch, tmp_path):
    """Two machines, a card, which comes first, and a processor."""
    token = {"attention": 10**9, "cache": 10**9}
    card = entry("context", 128, device="A card", seconds=[1e-3], token_bytes=token, read_bytes_per_s=1e12)
    write(tmp_path, "a-card", [card])
    short = {"seconds": [3.0, 1.0, 2.0], "token_bytes": token, "read_bytes_per_s": 5e9}
    long = {"seconds": [4.0, 5.0, 9.0], "token_bytes": token | {"cache": 3 * 10**9}, "read_bytes_per_s": 8e9}
    others = [
        entry("context", 4096, **long),
        entry("context", 128, **short),
        entry("prefill", 256, seconds=[12.8, 25.6, 51.2], at_least_s=0.1),
        entry("context", 128, model="mistral-7b-v0.3", **long | {"read_bytes_per_s": 10e9}),
        entry("context", 128, **short) | {"layers": 2},
    ]
    write(tmp_path, "b-processor", others)
    monkeypatch.setattr(full_size_record, "RECORDS", tmp_path)


def test_a_record_is_that_of_the_whole_model_on_a_processor(records):
    found = experiments.recorded_times("mistral-7b-v0.1")
    assert (found.model, found.device, found.threads) == ("mistral-7b-v0.1", "b-processor", 6)
    assert found.contexts == (128, 4096)
    assert found.runs_s == ((3.0, 1.0, 2.0), (4.0, 5.0, 9.0))
    assert found.median_s == [2.0, 5.0]
    assert found.least_s == (0.2, 0.4)  # 2 and 4 GB at 10 GB/s, the fastest of this processor beside any model
    assert experiments.recorded_times("mistral-7b-v0.3").contexts == (128,)


def test_the_sentence_is_made_of_the_record(records):
    said = experiments.recorded_times("mistral-7b-v0.1").sentence
    assert "mistral-7b-v0.1, random weights in four bits, 6 threads (b-processor): 10.0, 12.5 times" in said
    assert "what reading alone takes at 10 GB/s, the fastest in the record" in said
    assert "each token of a prompt of 256 took 100 ms" in said
    assert "prompt" not in experiments.recorded_times("mistral-7b-v0.3").sentence  # none was measured


def test_the_conditions_are_those_of_all_records_shown(records):
    both = [experiments.recorded_times(f"mistral-7b-{which}") for which in ("v0.1", "v0.3")]
    assert experiments.conditions(both[0]).endswith(
        "of 3 runs; meanwhile memory delivered 5 to 8 GB/s, “at least” takes 10, the fastest on record"
    )
    assert experiments.conditions(*both).startswith("b-processor, 6 threads; bars: fastest to slowest of 3 runs")
    assert "memory delivered 5 to 10 GB/s" in experiments.conditions(*both)


def test_what_was_not_recorded_is_none(records, monkeypatch, tmp_path):
    assert experiments.recorded_times("mixtral-8x7b-v0.1") is None
    monkeypatch.setattr(full_size_record, "RECORDS", tmp_path / "missing")
    assert experiments.recorded_times("mistral-7b-v0.1") is None


@pytest.mark.parametrize("model", ["mistral-7b-v0.1"])
def test_no_recorded_token_was_faster_than_its_floor(model):
    found = experiments.recorded_times(model)
    for least, runs in zip(found.least_s, found.runs_s, strict=True):
        assert least < min(runs)
