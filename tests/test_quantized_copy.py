"""A four-bit copy is made without the model, where the model itself would not fit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mistral_lab import checkpoints, load, memory
from mistral_lab.config import ModelConfig
from mistral_lab.loading import loader, quantized_copy
from mistral_lab.memory import weight_bytes

MIXTRAL = ModelConfig.from_pretrained("tiny-mixtral")


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """A folder in 16 bits, and a cache of its own."""
    monkeypatch.setenv("MISTRAL_LAB_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(checkpoints.locate("tiny-mixtral").path, tmp_path / "plain")


def test_the_copy_is_what_load_makes_and_reads(plain):
    copy = quantized_copy(plain)
    made = {file: file.stat().st_mtime_ns for file in copy.iterdir()}
    loaded, again = load(plain, bits=4), load(copy)
    assert loaded.model.name_or_path == str(copy)
    assert {file: file.stat().st_mtime_ns for file in copy.iterdir()} == made
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(tokens).logits, again.model(tokens).logits)


def test_it_is_made_where_the_model_does_not_fit_and_no_model_is_loaded(plain, monkeypatch):
    full = memory.plan(MIXTRAL, precision="nf4-double", context=512, device_bytes=1)
    monkeypatch.setattr(loader, "plan_here", lambda *asked: full)
    with pytest.raises(MemoryError, match="does not fit"):
        load(plain, bits=4)
    monkeypatch.setattr(loader, "read_model", None)
    copy = quantized_copy(plain, dtype="float16")
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "float16"
    before, after = ((folder / "model.safetensors").stat().st_size for folder in (plain, copy))
    assert weight_bytes(MIXTRAL, "nf4-double") < after < 0.6 * before


def test_a_checkpoint_in_four_bits_is_its_own_copy(plain):
    copy = quantized_copy(plain)
    assert quantized_copy(copy) == copy


def test_a_bundled_model_has_no_copy(plain):
    with pytest.raises(ValueError, match=r"^tiny-mixtral is quantised as it is read and has no copy: use load"):
        quantized_copy("tiny-mixtral")
    assert not (plain.parent / "cache").exists()


def test_a_copy_that_lacks_a_matrix_is_refused_in_a_sentence(plain):
    copy = quantized_copy(plain)
    lost = "model.layers.0.block_sparse_moe.experts.5.w1.weight"
    tensors = {
        name: tensor for name, tensor in load_file(copy / "model.safetensors").items() if not name.startswith(lost)
    }
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match=r"lacks 1 of the tensors .*experts\.5\.w1\.weight first"):
        load(copy)
