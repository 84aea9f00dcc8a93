"""Mapped weights: what the system is asked for, and files that change under a running model."""

import copy
import mmap
import os
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from mistral_lab import load
from mistral_lab.four_bit import keep_experts_outside, paging, read_experts_ahead, watch_files, will_need

TOKENS = torch.arange(3, 20)[None]


@pytest.fixture
def model():
    return load("tiny-mixtral", bits=4, device="cpu").model


@torch.no_grad()
def logits(model, tokens=TOKENS):
    return model(tokens).logits


def test_whole_pages_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(paging, "_madvise", lambda: lambda *arguments: asked.append(arguments))
    whole = torch.zeros(4 * mmap.PAGESIZE, dtype=torch.uint8)
    part = whole[mmap.PAGESIZE + 5 : 2 * mmap.PAGESIZE + 9]
    will_need([part])
    ((start, length, advice),) = asked
    assert start % mmap.PAGESIZE == 0
    assert start <= part.data_ptr() < start + mmap.PAGESIZE
    assert start + length == part.data_ptr() + part.nbytes
    assert advice == mmap.MADV_WILLNEED


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="only Linux lets a file leave the page cache")
def test_what_is_asked_for_is_read(tmp_path):
    size = 16 * 2**20
    save_file({"w": torch.arange(size, dtype=torch.int64).to(torch.uint8)}, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", framework="pt") as opened:
        tensor = opened.get_tensor("w")
    with open(tmp_path / "w.safetensors", "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    will_need([tensor])  # whatever the system makes of it, the bytes are the same
    assert torch.equal(tensor[-256:], torch.arange(256).to(torch.uint8))


def test_a_system_without_the_call_does_nothing(monkeypatch):
    paging._madvise.cache_clear()
    with monkeypatch.context() as patch:
        patch.delattr(mmap, "MADV_WILLNEED", raising=False)
        assert paging._madvise() is None
        will_need([torch.zeros(3)])
    paging._madvise.cache_clear()


@pytest.mark.parametrize("kept", [None, 2])
def test_each_layer_asks_for_its_experts_and_the_next_ones(kept, model, monkeypatch):
    expected = logits(model), logits(model, TOKENS[:, :1])
    if kept:
        keep_experts_outside(model, "cpu", slots_per_layer=kept)
    read_experts_ahead(model)
    read_experts_ahead(model)  # changes nothing
    asked = []
    monkeypatch.setattr(paging, "will_need", lambda tensors: asked.append([part.data_ptr() for part in tensors]))
    chosen = []
    hooks = [
        block.mlp.gate.register_forward_hook(lambda module, inputs, output: chosen.append(output[2]))
        for block in model.model.layers
    ]
    assert torch.equal(logits(model, TOKENS[:, :1]), expected[1])
    for hook in hooks:
        hook.remove()
    paging._thread().submit(int).result()  # all that was asked for before is through
    assert len(asked) == 4
    for layer, pointers in enumerate(asked):
        experts = model.model.layers[layer].mlp.experts
        needed = [part.weight.data_ptr() for e in chosen[layer].unique().tolist() for part in matrices(experts[e])]
        assert pointers[: len(needed)] == needed
        following = [
            part.weight.data_ptr()
            for expert in (model.model.layers[layer + 1].mlp.experts if layer < 3 else [])
            for part in matrices(expert)
        ]
        assert set(pointers[len(needed) :]) <= set(following)
        assert len(pointers) == len(needed) + (2 * 3 if layer < 3 else 0)
    monkeypatch.undo()
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other), expected[0])


def matrices(expert):
    return [expert.w1, expert.w2, expert.w3]


def test_a_model_without_experts_is_refused():
    with pytest.raises(ValueError, match="MistralForCausalLM has no experts in 4 bits: expected a Mixtral loaded with"):
        read_experts_ahead(load("tiny-mistral").model)


# Files


@pytest.fixture
def mapped(model, tmp_path):
    """A model whose weights are mapped from files, and the file."""
    model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    watch_files(again, [tmp_path / "config.json"])
    watch_files(again, [file])  # takes the place of the call before
    (tmp_path / "config.json").write_text("{}")
    return again, file


def test_a_file_that_was_cut_off_or_written_to_is_named(mapped):
    model, file = mapped
    expected, content = logits(model), file.read_bytes()
    times = os.stat(file)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other), expected)
    os.truncate(file, len(content) - 4096)
    with pytest.raises(OSError, match=rf"safetensors has {len(content) - 4096:,} bytes since the model was loaded"):
        logits(model)
    with open(file, "r+b") as opened:
        opened.write(content)
    with pytest.raises(OSError, match=r"safetensors was written to since the model was loaded from it with .* load"):
        logits(model)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert torch.equal(logits(model), expected)


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no file that is mapped")
@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_was_replaced_or_removed_is_no_harm(replaced, mapped):
    model, file = mapped
    expected = logits(model)
    if replaced:
        (file.parent / "new").write_bytes(b"another checkpoint")
        os.replace(file.parent / "new", file)
    else:
        file.unlink()
    assert torch.equal(logits(model), expected)


def test_a_file_that_is_not_there_is_said_at_once(model, tmp_path):
    with pytest.raises(FileNotFoundError):
        watch_files(model, [tmp_path / "nothing"])
