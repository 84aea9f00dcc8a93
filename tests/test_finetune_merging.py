"""What is exported is the tuned model, whole, in files that plain transformers reads."""

import shutil
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16
from small_adapters import MODELS, letters, logits, student
from transformers import AutoModelForCausalLM, MistralConfig

from mistral_lab import finetune, load
from mistral_lab.checkpoints import BUNDLED
from mistral_lab.four_bit import ExactLinear4bit
from mistral_lab.training.scribe import HELD_OUT, TRAIN


@pytest.mark.parametrize("name", MODELS)
def test_what_is_exported_is_the_dequantised_weight_and_its_adapter(name, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune.merging, "SHARD_BYTES", 2**20)  # several shards
    loaded = student(name, targets="all", filled=True)
    before = logits(loaded)
    folder = finetune.export(loaded, tmp_path / "mine")
    assert torch.equal(logits(loaded), before)
    assert len(list(folder.glob("*.safetensors"))) > 1
    plain, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    assert plain.num_parameters() == load(name).model.num_parameters()
    for path, layer in finetune.adapted(loaded.model).items():
        base, A, B = layer.base_layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight
        base.unpack()
        W = dequantize_4bit(base.weight.data, base.weight.quant_state).double().numpy()
        expected = W + 4 / 2 * B.detach().double().numpy() @ A.detach().double().numpy()
        found = matrix(plain, path).double().numpy()
        # bfloat16 keeps 8 bits: half a step is at most 2^-8 of the value; a float32 sum may sit on the other side
        np.testing.assert_allclose(found, expected, rtol=2.0**-8 * 1.01, atol=1e-7, err_msg=path)
    assert str(tmp_path) not in "".join(file.read_text() for file in folder.glob("*.json"))
    assert f"changed version of {name}" in (folder / "CHANGES.md").read_text()


def matrix(plain, path):
    """The matrix of transformers' own model that has this name in the lab's."""
    if ".experts." not in path:
        return plain.get_submodule(path).weight.detach()
    block, _, rest = path.partition(".experts.")
    number, name = rest.split(".")
    experts = plain.get_submodule(f"{block}.experts")
    tensor = (experts.down_proj if name == "w2" else experts.gate_up_proj)[int(number)].detach()
    half = len(tensor) // 2
    return {"w1": tensor[:half], "w2": tensor, "w3": tensor[half:]}[name]


def test_what_is_exported_answers_like_the_tuned_model(tmp_path):
    loaded = student(rank=8)
    finetune.tune(loaded, letters(TRAIN, 640), steps=40, batch_size=16)
    questions = letters(HELD_OUT, 60)
    plain = AutoModelForCausalLM.from_pretrained(finetune.export(loaded, tmp_path / "mine")).eval()
    assert finetune.exact_match(replace(loaded, model=plain), questions).share > 0.9


def no_space(*arguments):
    raise OSError("no space")


def test_export_refuses_what_it_would_spoil(tmp_path, monkeypatch):
    loaded = student()
    with pytest.raises(FileExistsError, match="exists: choose another name"):
        finetune.export(loaded, tmp_path)
    with pytest.raises(ValueError, match="tiny-mistral has no adapter"):
        finetune.export(load("tiny-mistral", bits=4), tmp_path / "mine")
    wide = finetune.add_adapter(load("tiny-mistral"), rank=2)
    with pytest.raises(ValueError, match="is not in four bits"):
        finetune.export(wide, tmp_path / "mine")
    monkeypatch.setattr("safetensors.torch.save_file", no_space)
    with pytest.raises(OSError, match="no space"):
        finetune.export(loaded, tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_nothing_and_no_folder_of_the_reader_is_touched(tmp_path, monkeypatch):
    (tmp_path / "m.unfinished").mkdir()
    (tmp_path / "m.unfinished" / "notes").write_text("mine")
    loaded = student()
    folder = finetune.export(loaded, tmp_path / "m")
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((tmp_path / "m.unfinished").stat().st_mode)

    monkeypatch.setattr("safetensors.torch.save_file", no_space)
    with pytest.raises(OSError, match="no space"):
        finetune.export(loaded, tmp_path / "new" / "deeper" / "m")
    assert {path.name for path in tmp_path.iterdir()} == {"m", "m.unfinished"}
    assert (tmp_path / "m.unfinished" / "notes").read_text() == "mine"


@pytest.mark.parametrize("name", MODELS)
def test_a_packed_weight_is_exported_as_it_was_quantised(name, tmp_path):
    """A forward outside training packs the weights where a CPU has the kernel; what is written must not change."""
    fresh, used = (student(name, filled=True) for _ in range(2))
    logits(used)
    first = {key: tensor.clone() for key, tensor in finetune.merged(fresh)}
    packed = [module for module in used.model.modules() if isinstance(module, ExactLinear4bit) and module.packed]
    assert packed or not has_avx512bf16()
    second = dict(finetune.merged(used))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def copy_of(name, folder, monkeypatch):
    """A folder with a bundled model, and the lab's own four-bit copies beside it."""
    monkeypatch.setenv("MISTRAL_LAB_CACHE", str(folder.parent / "cache"))
    return shutil.copytree(BUNDLED[name], folder)


def test_licence_files_of_the_origin_come_along(tmp_path, monkeypatch):
    origin = copy_of("tiny-mistral", tmp_path / "origin", monkeypatch)
    (origin / "NOTICE.txt").write_text("from us")
    (origin / "LICENSES").mkdir()
    loaded = finetune.add_adapter(load(origin, bits=4), rank=2)
    folder = finetune.export(loaded, tmp_path / "mine")
    assert (folder / "NOTICE.txt").read_text() == "from us"
    assert (folder / "LICENSE").read_bytes() == (BUNDLED["tiny-mistral"] / "LICENSE").read_bytes()
    assert not (folder / "LICENSES").exists()
    assert "changed version of origin.\n" in (folder / "CHANGES.md").read_text()
    assert str(tmp_path) not in "".join(file.read_text() for file in folder.glob("*.[jm][sd]*") if file.is_file())
    shutil.rmtree(origin)  # nothing that was trained is lost with it
    assert not (finetune.export(loaded, tmp_path / "again") / "LICENSE").exists()


@pytest.mark.parametrize("name", MODELS)
def test_a_bundled_model_brings_its_licence(name, tmp_path):
    folder = finetune.export(student(name), tmp_path / "mine")
    assert (folder / "LICENSE").read_bytes() == (BUNDLED[name] / "LICENSE").read_bytes()


def test_tied_embeddings_are_exported_once(tmp_path, monkeypatch):
    origin = copy_of("tiny-mistral", tmp_path / "tied", monkeypatch)
    for file in ("model.safetensors", "config.json"):
        (origin / file).unlink()
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=2560, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, dtype="bfloat16",
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(origin)
    loaded = finetune.add_adapter(load(origin, bits=4), rank=2)
    folder = finetune.export(loaded, tmp_path / "mine")
    plain, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert torch.equal(plain.lm_head.weight, loaded.model.get_output_embeddings().weight)
