"""Mapped weights: what stays in the page cache and what is given back, and files that change under a running model."""

import copy
import mmap
import os
import pickle
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from mistral_lab import load
from mistral_lab.four_bit import paging, share_page_cache, watch_files
from mistral_lab.measure.paging import cached_bytes

TOKENS = torch.arange(3, 20)[None]


@pytest.fixture
def model():
    return load("tiny-mixtral", bits=4, device="cpu").model


@torch.no_grad()
def logits(model, tokens=TOKENS):
    return model(tokens).logits


@pytest.fixture
def advised(monkeypatch):
    """What the system would be told, as (start, length, advice)."""
    calls = []
    monkeypatch.setattr(paging, "_madvise", lambda: lambda *call: calls.append(call))
    return calls


@pytest.fixture
def mixture(model, tmp_path):
    """The model mapped from a file, and the bytes of one of its experts."""
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    logits(again)  # packs it where the CPU wants that
    return again, sum(tensor.nbytes for tensor in paging._mapped(again.model.layers[0].mlp.experts[0]))


def chosen_by(model, tokens):
    """The experts that each layer used for some tokens."""
    found = []

    def note(module, inputs, output):
        found.append(set(output[2].flatten().tolist()))

    hooks = [block.mlp.gate.register_forward_hook(note) for block in model.model.layers]
    logits(model, tokens)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("fitting", [0, 1, 9, 31, 32, 100])
def test_those_that_fit_stay_and_the_others_are_given_back_once_used(mixture, advised, fitting):
    model, each = mixture
    expected = logits(model)
    assert share_page_cache(model, paging.RESERVE_BYTES + fitting * each + 1) == min(fitting, 4 * 8)
    order = [(layer, number) for number in range(8) for layer in range(4)]
    used = chosen_by(model, TOKENS)
    passing = [(layer, number) for layer, number in order[fitting:] if number in used[layer]]
    wanted = set()
    for layer, number in passing:
        for tensor in paging._mapped(model.model.layers[layer].mlp.experts[number]):
            wanted.add((tensor.data_ptr() + tensor.nbytes, 21))
    assert {(start + length, advice) for start, length, advice in advised if length} <= wanted
    assert len(advised) == 6 * len(passing)
    assert all(start % mmap.PAGESIZE == 0 for start, _, _ in advised)
    assert torch.equal(logits(model), expected)


def test_a_later_share_takes_the_place_of_an_earlier_one(mixture, advised):
    model, each = mixture
    share_page_cache(model, 0)
    logits(model)
    assert advised
    share_page_cache(model, paging.RESERVE_BYTES + 32 * each)
    advised.clear()
    logits(model)
    assert not advised


def test_a_copy_of_the_model_and_unpacked_weights_are_not_given_back(mixture, advised):
    model, _ = mixture
    expected = logits(model)
    share_page_cache(model, 0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other), expected)
        assert not advised
    logits(model)
    assert advised


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the advice is Linux's")
def test_what_is_given_back_leaves_memory_and_comes_back_from_the_file(tmp_path):
    size = 16 * 2**20
    content = torch.arange(size, dtype=torch.int64).to(torch.uint8)
    save_file({"w": content}, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", framework="pt") as opened:
        tensor = opened.get_tensor("w")
    with (tmp_path / "w.safetensors").open("rb") as file:
        os.fsync(file.fileno())
    assert torch.equal(tensor, content)  # touches every page
    before = cached_bytes([tmp_path / "w.safetensors"])
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    assert paging._madvise()(start, size - mmap.PAGESIZE, paging.PAGEOUT) == 0
    after = cached_bytes([tmp_path / "w.safetensors"])
    assert torch.equal(tensor, content)
    if after == before:
        pytest.skip("this file system keeps its pages in memory")
    assert after < before / 2


def test_a_system_without_the_call_does_nothing(mixture, monkeypatch):
    model, _ = mixture
    expected = logits(model)
    share_page_cache(model, 0)
    monkeypatch.setattr(paging, "_madvise", lambda: None)
    assert torch.equal(logits(model), expected)


def test_a_model_without_experts_is_refused():
    with pytest.raises(ValueError, match="MistralForCausalLM has no experts in 4 bits: expected a Mixtral loaded with"):
        share_page_cache(load("tiny-mistral").model, 0)


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
