"""`make bench`: the arithmetic of its table, its record, its files, and a GGUF file read back."""

import argparse
import doctest
import importlib.util
import json
from dataclasses import replace

import bench
import contenders
import pytest
import torch

from mistral_lab.config import PRESETS, ModelConfig
from mistral_lab.memory import kv_cache_bytes, parameter_counts, weight_bytes

SHAPE = {
    "vocab_size": 512,
    "dim": 256,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 64,
    "hidden_dim": 512,
    "norm_eps": 1e-5,
    "rope_theta": 1e4,
    "max_positions": 512,
}
DENSE = ModelConfig(**SHAPE)
MIXTURE = ModelConfig(**SHAPE, num_experts=8, num_experts_per_tok=2)


def turns(*seconds: float) -> list[contenders.Turn]:
    return [contenders.Turn(each, None) for each in seconds]


def options() -> argparse.Namespace:
    return argparse.Namespace(contexts=[32], prompts=[16], rounds=2, threads=2, new_tokens=8)


@pytest.mark.parametrize("module", [bench, contenders], ids=["bench", "contenders"])
def test_its_examples_hold(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_ratios_and_shares_are_taken_round_by_round():
    """The second round was slow for all: a ratio of medians would say 2.0, and a share of medians 0.28."""
    lab, peer = turns(1.0, 4.0, 1.0), turns(2.0, 6.0, 3.0)
    row = bench.row("decode", 512, "peer", peer, lab, 10, [20.0, 5.0, 20.0])
    assert (row["median_s"], row["spread_s"]) == (3.0, 4.0)
    assert (row["ratio"], row["least"], row["largest"]) == (2.0, 1.5, 3.0)
    assert row["floor_s"] == 0.5
    assert row["share"] == 0.25  # of 0.5 / 2, 2 / 6 and 0.5 / 3


def test_reading_a_prompt_has_no_floor_and_a_run_without_the_lab_no_ratio():
    row = bench.row("prefill", 32, "peer", turns(1.0), None, None, [1.0])
    assert not {"floor_s", "share", "ratio"} & row.keys()


@pytest.mark.parametrize("name", bench.MODELS)
def test_a_token_reads_all_but_the_embedding_and_the_idle_experts(name):
    config = PRESETS[name]
    every = weight_bytes(config, "nf4-double") - 2 * parameter_counts(config).embedding
    idle = parameter_counts(config).idle * (0.5 + 1 / 64 + 4 / (64 * 256))
    # A block of scales may be partly filled: less than one part in a million.
    assert bench.bytes_per_token(config) == pytest.approx(every - idle, rel=1e-6)


def test_a_token_reads_its_context_too(tmp_path):
    model = bench.Model("mistral-7b-v0.1", DENSE, tmp_path, rows=True)
    difference = model.bytes_per_token("lab", 512) - model.bytes_per_token("lab", 32)
    assert difference == kv_cache_bytes(DENSE, 512 - 32)


def rounds_of_two() -> bench.Rounds:
    rounds = bench.Rounds([("prefill", 16), ("decode", 32)])
    rounds.read_bytes_per_s = [1e9, 2e9]
    for second in (1.0, 2.0):
        rounds.add(("prefill", 16), {"lab": contenders.Turn(second, 0), "transformers": contenders.Turn(1.5, 2e6)})
        rounds.add(("decode", 32), {"lab": contenders.Turn(second / 10, 0)})
    rounds.add(("decode", 32), {"transformers": contenders.Turn(0.1, 0)})  # it failed in the second round
    rounds.failed["transformers"] = "ended with -9, perhaps because memory ran out"
    return rounds


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "device", lambda: torch.device("cpu"))
    model = bench.Model("mistral-7b-v0.1", replace(PRESETS["mistral-7b-v0.1"], n_layers=2), tmp_path, rows=True)
    return bench.record_of(model, options(), rounds_of_two(), 12 * 2**30, True, {"llama.cpp": bench.INSTALL})


def test_the_record_says_what_and_where_and_survives_json(record):
    assert json.loads(json.dumps(record)) == record
    assert record.keys() == {
        "prompts",
        "contexts",
        "model",
        "layers",
        "of_layers",
        "budget_bytes",
        "held",
        "threads",
        "new_tokens",
        "rounds",
        "machine",
        "memory_bytes",
        "read_bytes_per_s",
        "waiting_share",
        "contenders",
        "absent",
        "rows",
    }
    assert (record["layers"], record["of_layers"]) == (2, 32)
    assert {"torch", "transformers", "bitsandbytes", "instructions", "threads"} <= record["machine"].keys()
    # What was not done in every round has no row.
    assert [(row["work"], row["who"]) for row in record["rows"]] == [
        ("prefill", "lab"),
        ("prefill", "transformers"),
        ("decode", "lab"),
    ]


def test_the_table_shows_every_row_and_why_one_is_missing(record):
    text = bench.table(record)
    assert "2 of 32 layers, random weights; 2 rounds; each process held to 12 GiB" in text
    assert "reads 1.5 GB/s (1.0 to 2.0)" in text
    lines = text.splitlines()
    read = lines.index("read 16 tokens")
    assert lines[read + 1].split() == ["lab", "1,500", "1,000", "1.00", "1.00", "to", "1.00", "0"]
    # Ratios of 1.5 and 0.75, whose median is shown with two digits; 2 MB from the disk.
    assert lines[read + 2].split() == ["transformers", "1,500", "0", "1.12", "0.75", "to", "1.50", "2"]
    assert "one token after 32" in lines
    assert lines[-2] == f"llama.cpp: not run: {bench.INSTALL}"
    assert lines[-1] == "transformers: not run: ended with -9, perhaps because memory ran out"
    assert max(map(len, lines[:-2])) <= 120


def test_a_budget_that_could_not_be_held_is_said(record):
    assert "each process NOT held to 12 GiB" in bench.table(record | {"held": False})


def test_a_record_replaces_the_one_of_the_same_work_alone(record, tmp_path):
    others = [record | {"budget_bytes": None}, record | {"layers": 32}]
    for each in (*others, record, record | {"rounds": 7}):
        path = bench.keep(each, tmp_path / "bench")
    kept = json.loads(path.read_text())["records"]
    assert len(kept) == 3
    assert sorted(each["rounds"] for each in kept) == [2, 2, 7]
    assert path.stem == "-".join(path.stem.lower().split())


def test_who_cannot_take_part_is_named_with_the_reason(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    dense = bench.absent(bench.contenders_for(DENSE), DENSE)
    assert dense == {"llama.cpp": bench.INSTALL}
    mixture = PRESETS["mixtral-8x7b-v0.1"]
    found = bench.absent(bench.contenders_for(mixture), mixture)
    assert found.keys() == {"transformers", "llama.cpp mapped"}
    assert "experts in 16 bits, 84.0 GiB" in found["transformers"]


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "weight_bytes", lambda config, precision: 10**15)
    model = bench.Model("mistral-7b-v0.1", DENSE, tmp_path / "models", rows=True)
    with (
        pytest.raises(OSError, match="1000000.0 GB are needed in .*the checkpoint in NF4"),
        bench.files_of(model, ["lab"], keep=False),
    ):
        pass
    assert not model.folder.exists()


def test_what_was_there_before_stays_and_what_was_written_goes(tmp_path, monkeypatch):
    model = bench.Model("mistral-7b-v0.1", DENSE, tmp_path, rows=True)
    monkeypatch.setattr(bench, "write_files", lambda model, kinds: model.path("llama.cpp").touch())
    model.path("lab").mkdir()
    with bench.files_of(model, ["lab", "llama.cpp"], keep=False):
        assert model.path("llama.cpp").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mistral-7b-v0.1-2-nf4-rows"]


class Sleeper:
    """Stands for a worker: the processor works for it only in its own turns, or also while it waits."""

    def __init__(self, kind: str, *, spins: bool = False) -> None:
        self.kind, self.spins, self.busy = kind, spins, 0.0

    def busy_s(self) -> float:
        self.busy += 3 * self.spins
        return self.busy


def test_every_round_begins_with_another_and_one_that_spins_is_noticed(monkeypatch):
    clock = iter(range(0, 1000, 2))  # a turn takes two seconds
    monkeypatch.setattr(contenders.time, "perf_counter", lambda: float(next(clock)))
    order = []

    def work(worker):
        order.append(worker.kind)
        return contenders.Turn(1.0, None)

    quiet = [Sleeper("a"), Sleeper("b")]
    assert [contenders.in_turns(quiet, work, number)[1] for number in range(2)] == [0.0, 0.0]
    assert order == ["a", "b", "b", "a"]
    _, waited = contenders.in_turns([Sleeper("a"), Sleeper("b", spins=True)], work, 0)
    assert waited == 1.5


def test_one_that_fails_is_noted_and_the_others_go_on():
    class Broken(Sleeper):
        def ask(self, question, *values):
            raise RuntimeError("ended with -9, perhaps because memory ran out")

    rounds, broken = bench.Rounds([("decode", 32)]), Broken("broken")
    rounds.add(("decode", 32), {"broken": rounds.asked(broken, ("decode", 32)), "lab": contenders.Turn(1.0, 0)})
    assert rounds.failed == {"broken": "ended with -9, perhaps because memory ran out"}
    assert rounds.turns["decode", 32].keys() == {"lab"}


@pytest.fixture
def writer():
    pytest.importorskip("gguf", reason="it comes with the extras dev and bench")
    import gguf_writer

    return gguf_writer


@pytest.mark.parametrize("config", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_a_gguf_file_holds_the_whole_model_as_llama_cpp_would_quantise_it(config, writer, tmp_path):
    import gguf

    path = tmp_path / "model.gguf"
    writer.write(config, path)
    reader = gguf.GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert sum(int(tensor.n_elements) for tensor in found.values()) == parameter_counts(config).total
    assert sum(int(tensor.n_bytes) for tensor in found.values()) == writer.file_bytes(config)
    types = {name: tensor.tensor_type.name for name, tensor in found.items()}
    assert types["output.weight"] == "Q6_K"
    assert types["token_embd.weight"] == types["blk.1.attn_q.weight"] == "Q4_0"
    assert types["blk.1.attn_k.weight"] == types["blk.1.attn_v.weight"] == ("Q8_0" if config.num_experts else "Q4_0")
    assert types["blk.0.attn_norm.weight"] == "F32"
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert (fields["tokenizer.ggml.model"], fields["llama.vocab_size"]) == ("no_vocab", 512)
    assert (fields["llama.block_count"], fields["llama.attention.head_count_kv"]) == (2, 2)
    if config.num_experts:
        assert list(found["blk.0.ffn_down_exps.weight"].shape) == [512, 256, 8]  # ggml names the innermost first
        assert (types["blk.0.ffn_gate_inp.weight"], fields["llama.expert_used_count"]) == ("F32", 2)
    for name, tensor in found.items():
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if "norm" in name:
            assert (values == 1).all()
        else:  # over 65,536 values drawn evenly the deviation is known to 0.2 %; a router has fewer
            assert values.std() == pytest.approx(writer.SCALE, rel=0.1 if "gate_inp" in name else 0.02)


def test_the_same_seed_gives_the_same_file(writer, tmp_path):
    assert doctest.testmod(writer).failed == 0
    for name in ("one", "other"):
        writer.write(DENSE, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_token_reads_two_of_eight_experts_of_a_gguf_file(writer):
    idle = writer.file_bytes(MIXTURE) - writer.bytes_per_token(MIXTURE)
    embedding = writer.stored_bytes((512, 256), writer.GGMLQuantizationType.Q4_0)
    assert idle - embedding == parameter_counts(MIXTURE).idle * 18 // 32  # 18 bytes hold 32 weights
