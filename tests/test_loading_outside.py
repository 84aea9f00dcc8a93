"""`load` on a device that is too small: experts stay outside within a budget, and a CPU maps what it cannot hold."""

import os
import shutil

import pytest
import torch

from mistral_lab import checkpoints, load
from mistral_lab.config import ModelConfig
from mistral_lab.four_bit import ExactLinear4bit, expert_traffic, experts_outside, watch_experts
from mistral_lab.loading import fitting, quantising
from mistral_lab.memory import bytes_for_slots

TINY = ModelConfig.from_pretrained("tiny-mixtral")
PROMPT = "My favourite condiment is"


def budget(slots: int, *, less: int = 0) -> int:
    """The bytes on the device for so many experts per layer of tiny-mixtral."""
    return bytes_for_slots(TINY, slots, precision="nf4-double", context=512) - less


@pytest.fixture(scope="module")
def whole():
    return load("tiny-mixtral", bits=4, device="cpu")


@pytest.mark.parametrize("slots", [2, 3, 7])
def test_a_budget_is_that_many_experts_per_layer_and_the_answers_are_the_same(whole, slots, capsys):
    loaded = load("tiny-mixtral", bits=4, device="cpu", device_bytes=budget(slots))
    assert experts_outside(loaded.model).slots_per_layer == slots
    assert f"{8 - slots} of 8 experts per layer outside" in capsys.readouterr().out
    with watch_experts(loaded.model) as uses:
        assert loaded.generate_text(PROMPT, max_new_tokens=12, seed=0) == whole.generate_text(
            PROMPT, max_new_tokens=12, seed=0
        )
    traffic = expert_traffic(uses)
    decoded = 11  # the first of twelve tokens comes with the prompt
    assert traffic.needed.shape == traffic.origin.shape == (decoded, TINY.n_layers, 2)
    assert 0 < traffic.moved_bytes.sum() < sum(use.moved_bytes for use in uses)
    fetched = [use for use in uses if use.tokens == 1 and use.brought]
    assert (traffic.origin == 2).sum() == sum(len(use.brought) for use in fetched)
    tokens = torch.arange(3, 90)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(tokens).logits, whole.model(tokens).logits)


def test_a_budget_for_all_of_it_keeps_nothing_outside(capsys):
    loaded = load("tiny-mixtral", bits=4, device="cpu", device_bytes=2**30)
    assert experts_outside(loaded.model) is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        (
            {"name": "tiny-mixtral", "bits": 4, "device_bytes": budget(2, less=1)},
            ValueError,
            rf"^device_bytes is {budget(2, less=1):,}: expected at least {budget(2):,} for tiny-mixtral, 2 experts of",
        ),
        (
            {"name": "tiny-mistral", "bits": 4, "device_bytes": 2**30},
            ValueError,
            r"^device_bytes is 1,073,741,824, and tiny-mistral is dense, so that every token needs all of it: expected",
        ),
        (
            {"name": "tiny-mixtral", "device_bytes": 2**30},
            ValueError,
            r"^device_bytes is 1,073,741,824, and tiny-mixtral is not loaded in 4 bits: expected bits=4",
        ),
        ({"name": "tiny-mixtral", "bits": 4, "device_bytes": 2**60}, ValueError, r"^device_bytes is .* at most "),
        ({"name": "tiny-mixtral", "bits": 4, "device_bytes": 0}, ValueError, r"^device_bytes is 0: expected at least"),
        ({"name": "tiny-mixtral", "bits": 4, "device_bytes": 1e9}, TypeError, r"^device_bytes is 1000000000\.0"),
    ],
)
def test_a_budget_that_means_nothing_is_refused_in_a_sentence(request_, kind, message):
    with pytest.raises(kind, match=message) as caught:
        load(device="cpu", **request_)
    assert "\n" not in str(caught.value)


# Mapped on a CPU


@pytest.fixture
def mixture(tmp_path, monkeypatch):
    """A folder in 16 bits with a cache of its own."""
    monkeypatch.setenv("MISTRAL_LAB_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(checkpoints.locate("tiny-mixtral").path, tmp_path / "mixture")


def room(monkeypatch, nbytes: int) -> None:
    monkeypatch.setattr(fitting, "room_to_load_bytes", lambda device: nbytes)


def least(name: str = "tiny-mixtral") -> int:
    """What a model takes beside its weights."""
    config = ModelConfig.from_pretrained(name)
    asked = fitting.plan_here(config, "nf4-double", torch.device("cpu"))
    return asked.total_bytes - asked.weights_bytes - asked.tables_bytes


def test_a_mixture_larger_than_the_memory_is_mapped_and_says_what_that_costs(mixture, monkeypatch, capsys):
    expected = load(mixture, bits=4, device="cpu")
    assert capsys.readouterr().out == ""
    room(monkeypatch, least() + 10_000)
    loaded = load(mixture, bits=4, device="cpu")
    line = capsys.readouterr().out
    assert "with all experts mapped" in line
    assert "at most" in line
    assert loaded.generate_text(PROMPT, max_new_tokens=8, seed=1) == expected.generate_text(
        PROMPT, max_new_tokens=8, seed=1
    )
    room(monkeypatch, least() - 10_000)
    with pytest.raises(MemoryError, match="does not fit this device"):
        load(mixture, bits=4, device="cpu")


def test_a_dense_model_larger_than_the_memory_is_mapped_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MISTRAL_LAB_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(checkpoints.locate("tiny-mistral").path, tmp_path / "dense")
    room(monkeypatch, least("tiny-mistral") + 10_000)
    load(folder, bits=4, device="cpu")
    assert "does not fit, but runs, mapped from the disk; a token reads at least" in capsys.readouterr().out
    with pytest.raises(MemoryError):
        load(folder, bits=16, device="cpu")


def test_codes_in_rows_that_do_not_fit_are_not_packed_in_memory(mixture, monkeypatch):
    folder = load(mixture, bits=4, device="cpu").model.name_or_path
    monkeypatch.setattr("mistral_lab.four_bit.checkpoint.has_fused_kernel", lambda: False)
    expected = load(mixture, bits=4, device="cpu")
    assert expected.model.name_or_path == folder
    room(monkeypatch, least() + 10_000)
    loaded = load(mixture, bits=4, device="cpu")
    loaded.generate_text(PROMPT, max_new_tokens=2, seed=0)
    assert not any(module.packed for module in loaded.model.modules() if isinstance(module, ExactLinear4bit))


def test_codes_in_rows_and_a_budget_that_does_not_hold_all(mixture, monkeypatch):
    monkeypatch.setattr("mistral_lab.four_bit.checkpoint.has_fused_kernel", lambda: False)
    expected = load(mixture, bits=4, device="cpu").generate_text(PROMPT, max_new_tokens=3, seed=0)
    room(monkeypatch, least() + 10_000)
    loaded = load(mixture, bits=4, device="cpu", device_bytes=budget(2))
    assert len(loaded.generate_text(PROMPT, max_new_tokens=3, seed=0)) > len(PROMPT) < len(expected)


@pytest.mark.parametrize("change", ["truncated", "changed", "gone", "replaced"])
def test_files_that_change_under_a_running_model(mixture, change):
    loaded = load(mixture, bits=4, device="cpu")
    expected = loaded.generate_text(PROMPT, max_new_tokens=4, seed=0)
    (file,) = sorted(quantising.weight_files(quantising.Path(loaded.model.name_or_path)))
    whole = file.read_bytes()
    if change in ("gone", "replaced"):
        file.unlink()
        if change == "replaced":
            file.write_bytes(b"another file")
        assert loaded.generate_text(PROMPT, max_new_tokens=4, seed=0) == expected
        return
    with file.open("r+b") as opened:
        if change == "truncated":
            opened.truncate(1000)
        else:
            opened.seek(len(whole) - 1)
            opened.write(b"\0")
    if change == "changed":
        os.utime(file, ns=(0, 0))  # a clock of coarse ticks could hide that it was written to
    with pytest.raises(OSError, match="since the model was loaded from it") as caught:
        loaded.generate_text(PROMPT, max_new_tokens=4, seed=0)
    assert "\n" not in str(caught.value)
    file.write_bytes(whole)
    assert load(mixture, bits=4, device="cpu").generate_text(PROMPT, max_new_tokens=4, seed=0) == expected
