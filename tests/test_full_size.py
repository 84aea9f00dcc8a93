"""Checkpoints of real shape and the run of lessons on them, on shapes that are small."""

import json

import pytest
import torch

import full_size
import full_size_lessons
from execute import CellRun, Run
from mistral_lab import PRESETS, load, memory
from mistral_lab.config import ModelConfig
from mistral_lab.four_bit import audit

SHAPE = {
    "vocab_size": 2600,
    "dim": 64,
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "hidden_dim": 96,
    "norm_eps": 1e-5,
    "rope_theta": 1e4,
    "max_positions": 512,
}
DENSE = ModelConfig(**SHAPE, sliding_window=32)
MIXTURE = ModelConfig(**SHAPE, num_experts=4, num_experts_per_tok=2)


@pytest.mark.parametrize("config", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_a_checkpoint_in_16_bits_is_whole_and_answers(config, tmp_path):
    full_size.write(config, tmp_path, bits=16)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == memory.weight_bytes(config, "bfloat16")
    loaded = load(tmp_path, dtype="bfloat16")
    assert loaded.config == config
    assert loaded.generate_text("My name is", max_new_tokens=3, temperature=0).startswith("My name is")


def test_a_mixture_in_four_bits_is_what_the_plan_counts(tmp_path):
    full_size.write(MIXTURE, tmp_path, bits=4)
    report = audit(load(tmp_path).model)
    assert report.passed
    assert report.nbytes == memory.weight_bytes(MIXTURE, "nf4-double")


def test_the_same_seed_gives_the_same_weights(tmp_path):
    for name in ("one", "other"):
        full_size.write(DENSE, tmp_path / name, bits=16)
    one, other = (load(tmp_path / name, dtype="bfloat16").model.state_dict() for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", PRESETS)
def test_the_shapes_hold_every_parameter(name):
    config = PRESETS[name]
    layer = sum(torch.Size(shape).numel() for shape in full_size.layer_shapes(config).values())
    ends = sum(torch.Size(shape).numel() for shape in full_size.end_shapes(config).values())
    assert config.n_layers * layer + ends == memory.parameter_counts(config).total


def record(minutes: float) -> full_size_lessons.Record:
    return full_size_lessons.Record(minutes, 8, True, 1, 1, 1.0, {}, {})


def test_what_falls_short_is_named():
    cells = (CellRun(4, 30.0, 21.0), CellRun(5, 30.0, 3.0))
    run = Run("01_lesson", None, 2, 960.0, None, "01_lesson, cell 5 of 9: ValueError: no", cells)
    assert full_size_lessons.shortcomings(run, record(16.0)) == [
        "01_lesson, cell 5 of 9: ValueError: no",
        "01_lesson took 16.0 minutes: expected at most 15",
        "01_lesson, cell 4: silent for 21 s: expected output every 20 s",
    ]
    good = Run("01_lesson", None, 2, 60.0, None, None, (CellRun(4, 30.0, 19.0),))
    assert full_size_lessons.shortcomings(good, record(1.0)) == []
