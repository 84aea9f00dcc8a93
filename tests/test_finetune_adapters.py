"""Adapters are where they should be, and their files hold what was trained, whole, for this model alone."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from small_adapters import MODELS, TWO, logits, same, student, weights_of

from mistral_lab import finetune, load
from mistral_lab.checkpoints import BUNDLED
from mistral_lab.finetune.saving import SETTINGS, WEIGHTS
from mistral_lab.four_bit import ExactLinear4bit


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_every_matrix_that_should_have_an_adapter_has_one_and_the_router_has_none(name, targets):
    loaded = student(name, targets=targets)
    config = loaded.config
    a_layer = 4 + (3 * (config.num_experts or 1) if targets == "all" else 0)
    names = list(finetune.adapted(loaded.model))
    assert len(names) == config.n_layers * a_layer
    assert len({name.partition(".self_attn.")[0].partition(".mlp.")[0] for name in names}) == config.n_layers
    trained = [key for key, parameter in loaded.model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(names)
    assert all(".lora_A." in key or ".lora_B." in key for key in trained)
    count = sum(parameter.numel() for parameter in loaded.model.parameters() if parameter.requires_grad)
    assert count == finetune.trainable_parameters(config, rank=2, targets=targets)


@pytest.mark.parametrize("name", MODELS)
def test_a_new_adapter_changes_nothing(name):
    before = logits(load(name, bits=4))
    assert torch.equal(logits(student(name, targets="all")), before)


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_adds_what_its_equation_says(name):
    loaded = student(name, targets="all", filled=True, dtype="float32")
    for layer in finetune.adapted(loaded.model).values():
        x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
        base, A, B = layer.base_layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight
        W = dequantize_4bit(base.weight.data, base.weight.quant_state).double().numpy()
        x64 = x.double().numpy()
        expected = x64 @ W.T + 4 / 2 * (x64 @ A.detach().double().numpy().T) @ B.detach().double().numpy().T
        # float32 sums of at most 384 products
        np.testing.assert_allclose(layer.train()(x).detach().numpy(), expected, rtol=0, atol=1e-4)


def test_the_same_seed_gives_the_same_adapter_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (weights_of(student()) for _ in range(2))
    assert same(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_targets_and_ranks_are_one_sentence():
    loaded = load("tiny-mistral", bits=4)
    with pytest.raises(
        ValueError, match="no matrix that can be adapted is called 'query': expected 'attention', 'all'"
    ):
        finetune.add_adapter(loaded, targets=["q_proj", "query"])
    with pytest.raises(ValueError, match="called 'gate'"):  # the router
        finetune.add_adapter(load("tiny-mixtral", bits=4), targets="gate")
    with pytest.raises(ValueError, match="targets is empty"):
        finetune.add_adapter(loaded, targets=[])
    with pytest.raises(ValueError, match="rank is 0"):
        finetune.add_adapter(loaded, rank=0)
    with pytest.raises(NotImplementedError, match="experts of tiny-mixtral are fused, so there is no w1"):
        finetune.add_adapter(load("tiny-mixtral"), targets="all")
    with pytest.raises(ValueError, match="tiny-mistral has no adapter"):
        finetune.tune(loaded, TWO)
    adapted = finetune.add_adapter(loaded)
    with pytest.raises(ValueError, match="tiny-mistral has an adapter already"):
        finetune.add_adapter(adapted)


def test_peft_left_to_itself_passes_over_the_experts():
    """The reason for hiding the architecture; where this fails, PEFT has changed and the detour can go."""
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "w1", "w2", "w3"], task_type="CAUSAL_LM")
    with pytest.warns(RuntimeWarning, match="no parameter was matched"):
        model = peft.get_peft_model(load("tiny-mixtral", bits=4).model, settings)
    assert not [name for name in finetune.adapted(model) if ".experts." in name]


def test_an_adapter_comes_back_in_a_fresh_process(tmp_path):
    for name in MODELS:
        loaded = student(name, targets="all", filled=True)
        nbytes = finetune.save_adapter(loaded, tmp_path / name)
        assert nbytes > 4 * finetune.trainable_parameters(loaded.config, rank=2, targets="all")
        assert str(tmp_path) not in (tmp_path / name / "adapter_config.json").read_text()
        torch.save(logits(loaded), tmp_path / f"{name}.pt")
    code = (
        "import sys, torch\n"
        "from mistral_lab import finetune, load\n"
        "for name in sys.argv[2:]:\n"
        "    loaded = finetune.load_adapter(load(name, bits=4), sys.argv[1] + '/' + name)\n"
        "    with torch.no_grad(): found = loaded.model(torch.arange(3, 60)[None]).logits\n"
        "    print(name, torch.equal(found, torch.load(f'{sys.argv[1]}/{name}.pt')))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), *MODELS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "".join(f"{name} True\n" for name in MODELS), done.stderr


def test_an_adapter_for_another_model_is_refused(tmp_path):
    finetune.save_adapter(student("tiny-mistral", targets="all"), tmp_path)
    settings = tmp_path / "adapter_config.json"
    with pytest.raises(ValueError, match="was trained for tiny-mistral, and this is tiny-mixtral"):
        finetune.load_adapter(load("tiny-mixtral", bits=4), tmp_path)
    settings.write_text(settings.read_text().replace("tiny-mistral", "tiny-mixtral"))
    with pytest.raises(ValueError, match="no matrix that can be adapted is called 'down_proj'"):
        finetune.load_adapter(load("tiny-mixtral", bits=4), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config\.json"):
        finetune.load_adapter(load("tiny-mixtral", bits=4), tmp_path / "nothing")


def test_an_adapter_of_another_shape_is_refused(tmp_path):
    loaded = load("tiny-mistral", bits=4)
    finetune.save_adapter(student(), tmp_path)
    narrow = ExactLinear4bit(128, 64, compute_dtype=torch.bfloat16, double=True)
    loaded.model.model.layers[1].self_attn.k_proj = narrow
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.k_proj has 128 outputs, here it has 64"):
        finetune.load_adapter(loaded, tmp_path)
    loaded.model.model.layers = loaded.model.model.layers[:1]
    with pytest.raises(ValueError, match=r"is for another model: there is no model\.layers\.1\."):
        finetune.load_adapter(loaded, tmp_path)


def test_a_model_that_got_an_adapter_is_refused_under_its_old_name(tmp_path):
    before = load("tiny-mistral", bits=4)
    after = finetune.add_adapter(before, rank=2)
    finetune.save_adapter(after, tmp_path)
    kept = {key: tensor.clone() for key, tensor in weights_of(after).items()}
    with pytest.raises(ValueError, match="tiny-mistral has an adapter already"):
        finetune.add_adapter(before, rank=2, seed=1)
    with pytest.raises(ValueError, match="tiny-mistral has an adapter already"):
        finetune.load_adapter(before, tmp_path)
    with pytest.raises(ValueError, match="from before: use what add_adapter or load_adapter returned"):
        finetune.tune(before, TWO)
    assert same(weights_of(after), kept)


def test_a_matrix_named_twice_gets_one_adapter():
    loaded = student(targets=["q_proj", "v_proj", "q_proj"])
    assert len(finetune.adapted(loaded.model)) == 2 * loaded.config.n_layers
    once = finetune.trainable_parameters(loaded.config, rank=2, targets=["q_proj"])
    assert finetune.trainable_parameters(loaded.config, rank=2, targets=["q_proj", "q_proj"]) == once


def test_saving_writes_two_files_and_leaves_the_others(tmp_path):
    folder = tmp_path / "deep" / "adapter"
    finetune.save_adapter(student(), folder)
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    (folder / "README.md").write_text("mine")
    filled = student(filled=True)
    assert finetune.save_adapter(filled, folder) == (folder / WEIGHTS).stat().st_size
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert (folder / "README.md").read_text() == "mine"
    assert same(weights_of(finetune.load_adapter(load("tiny-mistral", bits=4), folder)), weights_of(filled))


def test_a_disk_that_fills_up_while_saving_leaves_what_was_there(tmp_path, monkeypatch):
    finetune.save_adapter(student(), tmp_path / "adapter")
    before = {file: file.read_bytes() for file in (tmp_path / "adapter").iterdir()}
    filled = student(filled=True)

    def torn(self, folder, **settings):
        Path(folder, WEIGHTS).write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr(peft.PeftModel, "save_pretrained", torn)
    for folder in ("adapter", "new", "new/deeper"):
        with pytest.raises(OSError, match="no space"):
            finetune.save_adapter(filled, tmp_path / folder)
    assert list(tmp_path.iterdir()) == [tmp_path / "adapter"]
    assert {file: file.read_bytes() for file in (tmp_path / "adapter").iterdir()} == before


def broken(tmp_path, change, **adapter):
    """A saved adapter whose tensors a function has changed."""
    finetune.save_adapter(student(**adapter), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / WEIGHTS)
    return tmp_path


Q = "base_model.model.model.layers.2.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q.format("B")), r"for another model, or incomplete: it has no .*layers\.2\..*q_proj\.lora_B"),
        (
            lambda t: t.update({Q.replace("q_proj", "x_proj").format("A"): torch.ones(2, 2)}),
            "there is no .*x_proj here",
        ),
        (
            lambda t: t.update({Q.replace("self_attn.q", "mlp.up").format("A"): torch.ones(2, 128)}),
            r"there is no model\.layers\.2\.mlp\.up_proj here that its settings name",
        ),
        (lambda t: t.update({Q.format("A"): torch.ones(2, 64)}), "q_proj has 64 inputs, here it has 128"),
        (lambda t: t.update({Q.format("B"): torch.ones(128, 2)}), "q_proj has 128 outputs, here it has 256"),
        (lambda t: t.update({Q.format("A"): torch.ones(3, 128)}), r"has shape \(2, 128\), in its file \(3, 128\)"),
        (lambda t: t.update({Q.format("B"): torch.ones(256, 3)}), r"has shape \(256, 2\), in its file \(256, 3\)"),
        (lambda t: t.update({Q.format("B"): torch.ones(256)}), r"has shape \(256, 2\), in its file \(256,\)"),
        (lambda t: t[Q.format("A")].view(-1)[5].fill_(torch.nan), r"not finite, in .*q_proj\.lora_A"),
        (lambda t: t[Q.format("B")].view(-1)[5].fill_(-torch.inf), r"not finite, in .*q_proj\.lora_B"),
    ],
)
def test_an_adapter_with_wrong_tensors_is_refused_and_the_model_stays_as_it_was(tmp_path, change, message):
    loaded = load("tiny-mistral", bits=4)
    with pytest.raises(ValueError, match=message) as raised:
        finetune.load_adapter(loaded, broken(tmp_path, change))
    assert "\n" not in str(raised.value)
    finetune.add_adapter(loaded)


def test_a_rank_that_the_settings_do_not_know_is_refused(tmp_path):
    finetune.save_adapter(student(rank=4), tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps(settings | {"r": 2}))
    with pytest.raises(ValueError, match=r"by its settings .* has shape \(2, 128\), in its file \(4, 128\)"):
        finetune.load_adapter(load("tiny-mistral", bits=4), tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (SETTINGS, b'{"r": 2'),
        (SETTINGS, b"[]"),
        (SETTINGS, b"{}"),
        (SETTINGS, b"\xff\xfe"),
        (WEIGHTS, b""),
        (WEIGHTS, b"half a file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, file, content):
    finetune.save_adapter(student(), tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file} is damaged: copy it again") as raised:
        finetune.load_adapter(load("tiny-mistral", bits=4), tmp_path)
    assert not isinstance(raised.value, SafetensorError | json.JSONDecodeError)


def test_a_cut_weights_file_and_a_folder_in_its_place_are_named(tmp_path):
    finetune.save_adapter(student(), tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="safetensors is damaged"):
        finetune.load_adapter(load("tiny-mistral", bits=4), tmp_path)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / WEIGHTS).mkdir()
    with pytest.raises(FileNotFoundError, match="has no adapter_model"):
        finetune.load_adapter(load("tiny-mistral", bits=4), tmp_path)


def test_a_loaded_adapter_can_be_trained_further(tmp_path):
    finetune.save_adapter(student(filled=True), tmp_path)
    again = finetune.load_adapter(load("tiny-mistral", bits=4), tmp_path)
    before = {key: tensor.clone() for key, tensor in weights_of(again).items()}
    finetune.tune(again, TWO, steps=2, batch_size=2)
    changed = {key for key, tensor in weights_of(again).items() if not torch.equal(tensor, before[key])}
    assert changed == before.keys()


def test_the_adapter_of_a_local_model_knows_it_by_the_name_of_its_folder_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("MISTRAL_LAB_CACHE", str(tmp_path / "cache"))
    here, there = tmp_path / "here" / "copy", tmp_path / "there" / "copy"
    shutil.copytree(BUNDLED["tiny-mistral"], here)
    loaded = finetune.add_adapter(load(here, bits=4), rank=2)
    finetune.save_adapter(loaded, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / SETTINGS).read_text())["base_model_name_or_path"] == "copy"
    there.parent.mkdir()
    here.rename(there)
    finetune.save_adapter(loaded, tmp_path / "adapter")  # the model has moved since
    assert json.loads((tmp_path / "adapter" / SETTINGS).read_text())["base_model_name_or_path"] == "copy"
    monkeypatch.chdir(there.parent)
    for name in ("./copy", str(there), "../there/copy/."):
        again = finetune.load_adapter(load(name, bits=4), tmp_path / "adapter")
        assert same(weights_of(again), weights_of(loaded))
    monkeypatch.chdir(there)
    finetune.load_adapter(load(".", bits=4), tmp_path / "adapter")
    monkeypatch.chdir(there.parent)
    os.rename("copy", "other")
    with pytest.raises(ValueError, match="was trained for copy, and this is other$"):
        finetune.load_adapter(load("./other", bits=4), tmp_path / "adapter")


def test_a_hub_model_is_the_same_under_its_alias(tmp_path):
    finetune.save_adapter(student(), tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps(settings | {"base_model_name_or_path": "mistral-7b-v0.1"}))
    loaded = replace(load("tiny-mistral", bits=4), name="mistralai/Mistral-7B-v0.1")
    finetune.load_adapter(loaded, tmp_path)
    other = replace(load("tiny-mistral", bits=4), name="mistralai/Mistral-7B-v0.3")
    with pytest.raises(ValueError, match=r"was trained for mistral-7b-v0\.1, and this is mistralai/Mistral-7B-v0\.3"):
        finetune.load_adapter(other, tmp_path)
