"""benchmarks/full_size.py on checkpoints that are small: what it keeps, what it predicts, how it ends."""

import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

import full_size
import notebook_files
from mistral_lab import PRESETS, memory
from mistral_lab.config import ModelConfig
from mistral_lab.measure import read_full_size, side_by_side

BENCHMARKS = notebook_files.ROOT / "benchmarks"
MIXTRAL, MISTRAL = PRESETS["mixtral-8x7b-v0.1"], PRESETS["mistral-7b-v0.1"]
MIXTURE = ModelConfig(
    vocab_size=2600,
    dim=64,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    hidden_dim=96,
    norm_eps=1e-5,
    rope_theta=1e4,
    max_positions=512,
    num_experts=4,
    num_experts_per_tok=2,
)


@pytest.fixture(scope="module")
def benchmark():
    """The script as a module; it has the name of a tool, and its folder is on the path while it is imported."""
    spec = importlib.util.spec_from_file_location("full_size_benchmark", BENCHMARKS / "full_size.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.append(str(BENCHMARKS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


def start(folder, *options: str) -> subprocess.Popen:
    command = [sys.executable, BENCHMARKS / "full_size.py", "--models", "mixtral-8x7b-v0.1", "--folder", folder]
    command += ["--results", folder / "results", "--tokens", "2", "--warm-up", "1", "--threads", "1", "--budgets"]
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run that was interrupted after its first measurement, and another that measured the rest."""
    folder = tmp_path_factory.mktemp("full-size")
    full_size.write(MIXTURE, folder / "mixtral-8x7b-v0.1-nf4", bits=4)
    first = start(folder, "--loads", "warm", "--contexts", "8", "--prompts", "4")
    line = first.stdout.readline()
    children = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGINT)
    _, interrupted = first.communicate(timeout=120)
    kept = read_full_size(folder / "results")
    second = start(folder, "--loads", "--contexts", "8", "16", "--prompts", "4", "--note", "a test")
    printed, error = second.communicate(timeout=240)
    assert second.returncode == 0, error
    return {
        "line": line,
        "left": [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE],
        "interrupted": interrupted,
        "kept": kept,
        "printed": printed,
        "folder": folder,
        "records": read_full_size(folder / "results"),
    }


@pytest.mark.long
def test_an_interrupted_run_keeps_what_was_finished_and_leaves_no_process(recorded):
    assert recorded["line"].startswith("mixtral-8x7b-v0.1, 3 of 32 layers, load warm: ")
    assert recorded["interrupted"].endswith("interrupted: finished measurements are kept\n")
    assert "Traceback" not in recorded["interrupted"]
    assert recorded["left"] == []
    assert [list(one.measurements) for one in recorded["kept"]] == [["load"]]


@pytest.mark.long
def test_a_second_run_adds_its_measurements_and_leaves_the_others(recorded):
    (record,) = recorded["records"]
    assert (record.model, record.layers, record.of_layers) == ("mixtral-8x7b-v0.1", 3, 32)
    settings = {what: list(record.of(what)) for what in record.measurements}
    assert settings == {"load": ["warm"], "context": [8, 16], "layers": [128], "prefill": [4]}
    assert record.of("load") == recorded["kept"][0].of("load")
    assert {entry.get("note") for entry in record.of("context").values()} == {"a test"}
    assert len(recorded["printed"].splitlines()) == 4


@pytest.mark.long
def test_each_measurement_says_where_it_was_made_and_what_was_predicted(recorded):
    (record,) = recorded["records"]
    for what in record.measurements:
        for entry in record.of(what).values():
            assert entry["machine"]["threads"] == 1
            assert "routing close to uniform" in entry["weights"]
            assert entry["date"] > "2026"
    took, least = record.seconds("context")
    assert took.keys() == least.keys() == {8, 16}
    assert all(0 < least[context] < took[context] for context in took)  # bytes alone are the least of so small a model
    assert [len(entry["seconds"]) for entry in record.of("context").values()] == [2, 2]
    load = record.of("load")["warm"]
    assert load["cached_before_bytes"] >= load["file_bytes"] > load["predicted"]["weights_bytes"]
    assert load["audit"]["nbytes"] == load["predicted"]["weights_bytes"] == memory.weight_bytes(MIXTURE, "nf4-double")
    assert load["peaks"]["first token"]["resident_bytes"] > 100 * 2**20  # Python and PyTorch
    assert str(recorded["folder"]) not in json.dumps(load)


@pytest.mark.long
def test_along_the_layers_there_is_a_place_for_each_and_for_both_ends(recorded):
    (record,) = recorded["records"]
    for measured, expected in (record.memory_by_layer(), record.token_by_layer()):
        assert list(measured) == list(expected) == list(range(MIXTURE.n_layers + 2))
    seconds, least = record.token_by_layer()
    assert sorted(seconds.values()) == list(seconds.values())
    assert seconds[0] == least[0] == 0


@pytest.mark.parametrize("config", [MISTRAL, MIXTRAL, MIXTURE], ids=["7B", "8x7B", "tiny"])
def test_a_long_text_touches_all_weights_and_one_token_those_that_it_goes_through(config, benchmark):
    whole = memory.weight_bytes(config, "nf4-double") - 2 * config.vocab_size * config.dim  # all but the embedding
    touched = benchmark.touched_by_layer(config, 10_000)
    assert len(touched) == config.n_layers + 2
    # The norm behind the last layer is counted with the layers, and each place is rounded to a byte.
    assert touched[-1] == pytest.approx(whole, abs=1)
    read = sum(benchmark.token_bytes(config, 1).values()) - 2 * config.dim - memory.kv_cache_bytes(config, 1)
    assert benchmark.touched_by_layer(config, 1)[-1] == pytest.approx(read, abs=2)
    assert benchmark.floor_by_layer(config, 64)[-1] == pytest.approx(
        sum(benchmark.token_bytes(config, 64).values()) - 2 * config.dim, abs=1
    )


def test_a_budget_misses_what_has_no_room_and_nothing_where_all_has(benchmark):
    read = benchmark.token_bytes(MIXTRAL, 8)["feed_forward"]
    missed = [benchmark.missed_bytes(MIXTRAL, budget * 2**30) for budget in (1, 8, 16, 24)]
    assert missed == sorted(missed, reverse=True)
    assert missed[0] == read == pytest.approx(64 * 90.875e6, rel=0.001)  # 2 experts in each of 32 layers
    assert missed[-1] == 0
    assert missed[1] == pytest.approx(read * (1 - (8 - 1.44) / 21.66), rel=0.02)  # all but experts is 1.44 GiB


def test_a_measurement_replaces_one_of_the_same_work_alone(benchmark, tmp_path):
    machine = {"device": "cpu", "processor": "A (R) Processor"}
    common = {"machine": machine, "model": "m", "layers": 2, "of_layers": 32, "what": "context"}
    for setting, second in ((8, 1.0), (16, 2.0), (8, 3.0)):
        benchmark.keep(common | {"setting": setting, "seconds": [second], "at_least_s": 0.5}, tmp_path)
    benchmark.keep(common | {"setting": 8, "layers": 3, "seconds": [4.0]}, tmp_path)
    benchmark.keep(common | {"what": "budget", "setting": 6, "outcome": "killed"}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a-r-processor.json"]
    two, three = read_full_size(tmp_path)
    assert two.seconds("context") == ({8: 3.0, 16: 2.0}, {8: 0.5, 16: 0.5})
    assert three.seconds("context") == ({8: 4.0}, {})
    assert two.seconds("budget") == ({}, {})
    assert two.of("prefill") == {}
    assert two.memory_by_layer() == two.token_by_layer() == ({}, {})


def test_on_a_card_the_weights_lie_there_before_the_first_token(benchmark, tmp_path):
    entry = {"machine": {"device": "A card"}, "model": "m", "layers": 1, "of_layers": 32, "what": "load"}
    found = {"held_by_layer": {"card_bytes": [7, 8, 9]}, "predicted": {"weights_bytes": 6}}
    benchmark.keep(entry | found | {"setting": "cold"}, tmp_path)
    (record,) = read_full_size(tmp_path)
    assert record.memory_by_layer() == ({0: 7, 1: 8, 2: 9}, {0: 6, 1: 6, 2: 6})
    assert side_by_side([record.memory_by_layer()])[1:] == ([[7, 8, 9]], [[6, 6, 6]])


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9}', '{"format": 1, "device": "x", "measurements": [{}]}'])
def test_what_is_no_record_is_refused_in_a_sentence(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"^x\.json is no record of benchmarks/full_size\.py \(.+\): write it again$"):
        read_full_size(tmp_path)


def test_without_records_there_are_none(tmp_path):
    assert read_full_size(tmp_path / "missing") == []


def test_a_checkpoint_that_cannot_be_loaded_is_a_sentence_without_its_path(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.utils.logging.disable_progress_bar", lambda: None)  # for this whole process

    class Connection:
        def __init__(self):
            self.sent = []
            self.send = self.sent.append

        def recv(self):
            return "go"

    connection = Connection()
    benchmark.work(connection, benchmark.Job("load", str(tmp_path), "cpu"))
    (message,) = connection.sent
    assert message["failed"].startswith("FileNotFoundError: ")
    assert "the checkpoint" in message["failed"]
    assert str(tmp_path) not in message["failed"]


def test_a_process_that_is_killed_leaves_no_semaphore_behind(tmp_path):
    """A bar is open when it is killed: the default lock of bars would be named by Python's tracker of leaks."""
    killed = """
import os, signal, sys
import full_size_worker as worker

class Connection:
    send = print
    def recv(self):
        return "go"

def open_a_bar(job, send):
    worker.tqdm(total=1)
    os.kill(os.getpid(), signal.SIGKILL)

def work():
    worker.TASKS["ready"] = open_a_bar
    worker.work(Connection(), worker.Job("ready", "", "cpu"))

if __name__ == "__main__":
    import multiprocessing
    process = multiprocessing.get_context("spawn").Process(target=work)
    process.start()
    process.join()
    sys.exit(process.exitcode != -signal.SIGKILL)
"""
    (tmp_path / "killed.py").write_text(killed)
    done = subprocess.run(
        [sys.executable, tmp_path / "killed.py"],
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "leaked" not in done.stderr


def test_files_that_stay_in_the_page_cache_measure_no_budget(benchmark, monkeypatch, tmp_path):
    runner = benchmark.Runner("m", tmp_path, MIXTURE, SimpleNamespace(device="cpu"))
    file = tmp_path / "weights"
    file.write_bytes(bytes(2**20))
    runner.files = [file]
    monkeypatch.setattr(benchmark, "cached_bytes", lambda files: 2**19)
    runner.measure_budget(8)
    (failure,) = runner.failures
    assert failure.startswith("m, budget 8: 0.0 GiB of 0.0 GiB stay in the page cache")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(["--tokens", "0"], "--tokens is 0: expected at least 1"), (["--contexts", "1"], "--contexts has 1: expected")],
)
def test_sizes_that_mean_nothing_are_refused(wrong, said, benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["full_size.py", *wrong])
    with pytest.raises(SystemExit):
        benchmark.arguments()
    assert said in capsys.readouterr().err


def seconds(entry: dict) -> str:
    return f"{statistics.median(entry['seconds']):.2f} s"


def test_the_readme_quotes_the_records_of_full_size():
    """One column per model: the names in the first row are the keys of the records."""
    folder = BENCHMARKS / "full_size"
    whole = [one for one in read_full_size(folder) if one.device == "AMD EPYC" and one.layers == one.of_layers]
    models = {one.model: one for one in whole if one.of("budget")}  # v0.3 was measured beyond the window alone
    columns = []
    for one in models.values():
        warm, anonymous = one.of("load")["warm"], one.of("load")["warm"]["peaks"]["first token"]["anonymous_bytes"]
        columns.append(
            [
                f"{warm['load_s']:.1f} s; {warm['first_token_s']:.1f} s",
                f"{anonymous / 2**30:.2f} GiB",
                *(seconds(one.of("context")[context]) for context in (128, 4096)),
                *(
                    f"{seconds(entry)}, {statistics.mean(entry['disk_bytes']) / 1e9:.1f} GB"
                    for entry in (one.of("budget")[budget] for budget in (20, 16, 12, 8, 6))
                ),
            ]
        )
    names = [
        "`load`; then the first token of a short prompt",
        "memory of its own by then, beside mapped files",
        "one token after 128",
        "one token after 4,096",
        *(f"one token in {budget} GiB, files included; of it read from the disk" for budget in (20, 16, 12, 8, 6)),
    ]
    lines = [f"| | {' | '.join(models)} |", "| --- |" + " --- |" * len(models)]
    lines += [f"| {name} | {' | '.join(row)} |" for name, row in zip(names, zip(*columns, strict=True), strict=True)]
    assert "\n".join(lines) in (notebook_files.ROOT / "README.md").read_text(encoding="utf-8")
