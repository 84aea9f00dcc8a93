"""The shipped checkpoints are real: plain to load, small, trained, and better than counting five tokens at a time."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from mistral_lab.config import ModelConfig
from mistral_lab.loading import load
from mistral_lab.training import evaluation, windows
from mistral_lab.training.__main__ import BUNDLED
from mistral_lab.training.recipes import INTERLEAVED, RECIPES
from mistral_lab.training.trainer import export

NAMES = list(RECIPES)


@pytest.fixture(scope="module")
def encoded():
    return evaluation.held_out(load("tiny-mistral").tokenizer, 120)


def test_loads_with_nothing_of_ours():
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "for folder in sys.argv[1:]:\n"
        "    model = AutoModelForCausalLM.from_pretrained(folder); tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "    print(type(model).__name__, model.dtype, len(tokenizer))\n"
        "assert not any(module.startswith('mistral_lab') for module in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, *(str(BUNDLED / name) for name in ("tiny-mistral", "tiny-mixtral"))]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout
    assert printed == "MistralForCausalLM torch.bfloat16 2560\nMixtralForCausalLM torch.bfloat16 2560\n"


@pytest.mark.parametrize("name", NAMES)
def test_is_small_safe_and_shaped_as_promised(name):
    files = {path.name for path in (BUNDLED / name).iterdir()}
    assert sum(path.stat().st_size for path in (BUNDLED / name).iterdir()) < 12e6
    assert "model.safetensors" in files
    assert not {file for file in files if file.endswith((".bin", ".pt", ".py"))}
    config = ModelConfig.from_pretrained(name)
    sizes = (config.vocab_size, config.dim, config.hidden_dim, config.head_dim, config.n_kv_heads * config.head_dim)
    assert all(size % 64 == 0 for size in sizes)
    assert config.n_heads > config.n_kv_heads > 1
    assert config.sliding_window == {"tiny-mistral": 64, "tiny-mixtral": None}[name]
    assert config.num_experts == {"tiny-mistral": None, "tiny-mixtral": 8}[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_licence_lies_beside_the_weights_and_stays_when_they_are_trained_again(name, tmp_path):
    licence = (BUNDLED / name / "LICENSE").read_bytes()
    assert licence == (BUNDLED.parents[1] / "LICENSE").read_bytes()
    folder = tmp_path / name
    folder.mkdir()
    (folder / "LICENSE").write_bytes(licence)
    loaded = load(name)
    export(loaded.model, loaded.tokenizer, folder)
    assert (folder / "model.safetensors").is_file()
    assert (folder / "LICENSE").read_bytes() == licence


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_of_the_recipe(name):
    shipped, fresh = load(name).model.state_dict(), RECIPES[name].new_model().state_dict()
    assert {key: tensor.shape for key, tensor in shipped.items()} == {key: t.shape for key, t in fresh.items()}
    assert all(torch.isfinite(tensor).all() for tensor in shipped.values())
    assert load(name).model.config.use_cache


@pytest.fixture(scope="module")
def counted(encoded):
    """Fewer documents than the card's, whose margins are what makes these ones safe."""
    return evaluation.baseline(load("tiny-mistral").tokenizer, encoded, order=5, documents=1500)


@pytest.fixture(scope="module")
def losses(encoded):
    return {name: evaluation.losses(load(name).model, encoded) for name in NAMES}


@pytest.mark.parametrize("order", [1, 5])
def test_both_beat_the_baselines_on_every_kind(order, counted, encoded, losses):
    baseline = evaluation.baseline_losses(counted, encoded, order=order)
    for name in NAMES:
        gains = [b - m for b, m in zip(baseline, losses[name], strict=True)]
        assert all(gain.low > 0 for gain in evaluation.by_kind(encoded, gains).values()), name


def test_names_come_back_within_the_window_and_beyond_it(encoded):
    loaded = load("tiny-mistral")
    seen = evaluation.recall(loaded.model, loaded.tokenizer, encoded)
    cut = evaluation.recall(loaded.model, loaded.tokenizer, encoded, context=64)
    assert seen["1 to 63"].right.mean >= 0.8
    # With the name out of sight nothing but a guess is left; with it, the layers hand it on.
    assert cut["64 to 128"].right.mean < 0.02
    assert seen["64 to 128"].right.mean > 5 * max(cut["64 to 128"].right.mean, seen["64 to 128"].chance, 0.002)


def test_every_expert_works(encoded):
    chosen = np.concatenate(list(evaluation.choices(load("tiny-mixtral").model, encoded).values()))
    assert chosen.shape == (len(encoded), 4, 8)
    assert evaluation.as_load(chosen).min() > 0.04


def test_the_favourite_condiment_is_named_in_english_and_the_future_in_chinese():
    for name in NAMES:
        english = load(name).generate_text("My favourite condiment is", max_new_tokens=20, temperature=0)
        assert english.isascii()
        assert "because" in english
        chinese = load(name).generate_text("AI的未来是", max_new_tokens=20, temperature=0)
        signs = chinese.removeprefix("AI")
        assert sum("\u4e00" <= sign <= "\u9fff" for sign in signs) > 0.8 * len(signs)
        assert "因为" in chinese


def test_the_card_speaks_of_these_files():
    card = (BUNDLED / "README.md").read_text(encoding="utf-8")
    runs = json.loads((BUNDLED / "runs.json").read_text(encoding="utf-8"))
    for name, recipe in RECIPES.items():
        parameters = sum(tensor.numel() for tensor in load(name).model.state_dict().values())
        assert f"| `{name}` | {parameters:,} | {recipe.steps:,} |" in card
        assert runs[name]["seconds"] > 0
    # The third is recorded and not shipped.
    record = windows.read_card(json.loads((BUNDLED / "traces" / "windows.json").read_text(encoding="utf-8")))
    name = INTERLEAVED.name
    assert not (BUNDLED / name).exists()
    assert f"| `{name}` | {record['parameters']:,} | {INTERLEAVED.steps:,} |" in card
    assert runs[name]["seconds"] > 0
    for label, row in record["recall"].items():
        assert f"| `{name}` | {label} | {row.asked} | {row.right.mean:.1%} (" in card
    for kind, loss in record["loss"].items():
        assert re.search(rf"^\| {kind} \|.* {loss.mean:.2f} \|$", card, re.MULTILINE), kind
