"""What each of several devices holds, and a plan for them."""

import re
from dataclasses import replace

import pytest
import torch
from accelerate.utils import compute_module_sizes
from transformers import AutoModelForCausalLM

from mistral_lab.config import PRESETS, ModelConfig
from mistral_lab.memory import (
    PRECISIONS,
    SPLITS,
    cache_by_device,
    kv_cache_bytes,
    plan,
    split_evenly,
    traffic_bytes,
    weight_parts,
    weights_by_device,
)

MISTRAL, MIXTRAL = PRESETS["mistral-7b-v0.1"], PRESETS["mixtral-8x7b-v0.1"]
TINY = ModelConfig.from_pretrained("tiny-mixtral")
GIB = 2**30


def added(shares, part):
    return sum(share[part].total for share in shares)


def test_even_parts():
    assert split_evenly(8, 2) == [4, 4]
    assert split_evenly(7, 3) == [3, 2, 2]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("devices", [2, 3, 5])
def test_layers_on_all_devices_are_the_whole_model(precision, devices):
    for config in (MIXTRAL, MISTRAL, replace(MISTRAL, tied_embeddings=True)):
        shares = weights_by_device(config, precision, devices=devices, split="layers")
        whole = weight_parts(config, precision)
        copied = {"lm_head": whole["embedding"].total} if config.tied_embeddings else {}  # one matrix, at both ends
        for part in whole:
            assert added(shares, part) == copied.get(part, whole[part].total), part
        assert [share["embedding"].total > 0 for share in shares] == [True] + [False] * (devices - 1)
        assert [share["lm_head"].total > 0 for share in shares] == [False] * (devices - 1) + [True]


def test_layers_hold_the_bytes_of_the_modules_that_device_map_moves():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(TINY.to_transformers(), dtype=torch.float32)
    sizes = compute_module_sizes(model)
    layer = [sizes[f"model.layers.{number}"] for number in range(4)]
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    first, last = weights_by_device(TINY, "float32", devices=2, split="layers")
    assert sum(part.total for part in first.values()) == sizes["model.embed_tokens"] + sum(layer[:2])
    assert sum(part.total for part in last.values()) == sum(layer[2:]) + sizes["model.norm"] + sizes["lm_head"]
    assert sum(layer) + sizes["model.embed_tokens"] + sizes["model.norm"] + sizes["lm_head"] + buffers == sizes[""]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("devices", [2, 3, 8])
def test_experts_are_shared_out_and_all_else_is_everywhere(precision, devices):
    shares = weights_by_device(MIXTRAL, precision, devices=devices, split="experts")
    whole = weight_parts(MIXTRAL, precision)
    assert added(shares, "feed_forward") == whole["feed_forward"].total
    for share in shares:
        assert {part: share[part] for part in share if part != "feed_forward"} == {
            part: whole[part] for part in whole if part != "feed_forward"
        }


def test_tensors_are_cut_alike_but_for_router_and_norms():
    shares = weights_by_device(MIXTRAL, "bfloat16", devices=4, split="tensors")
    whole = weight_parts(MIXTRAL, "bfloat16")
    assert len(shares) == 4
    for part in whole:
        copies = 4 if part in ("router", "norms") else 1
        assert added(shares, part) == copies * whole[part].total


def test_the_cache_lies_where_attention_is_computed():
    asked = {"batch": 3, "bytes_per_value": 4}
    whole = kv_cache_bytes(MIXTRAL, 100, **asked)
    assert cache_by_device(MIXTRAL, 100, **asked, devices=1, split=None) == [whole]
    assert cache_by_device(MIXTRAL, 100, **asked, devices=2, split="experts") == [whole] * 2
    assert cache_by_device(MIXTRAL, 100, **asked, devices=2, split="tensors") == [whole // 2] * 2
    layers = cache_by_device(MIXTRAL, 100, **asked, devices=3, split="layers")
    assert layers == [whole // 32 * 11, whole // 32 * 11, whole // 32 * 10]


@pytest.mark.parametrize("split", SPLITS)
def test_a_plan_is_that_of_the_fullest_device_to_the_byte(split):
    precision = "bfloat16" if split == "tensors" else "nf4-double"
    asked = {"precision": precision, "context": 700, "batch": 2, "devices": 2, "split": split}
    made = plan(MIXTRAL, **asked, device_bytes=1)
    shares = weights_by_device(MIXTRAL, precision, devices=2, split=split)
    assert made.weights_bytes == max(sum(part.total for part in share.values()) for share in shares)
    assert plan(MIXTRAL, **asked, device_bytes=made.total_bytes).fits
    assert not plan(MIXTRAL, **asked, device_bytes=made.total_bytes - 1).fits
    assert f", {split} split over 2 devices, on the fullest: " in str(made)


def test_one_device_is_what_it_was():
    asked = {"precision": "nf4", "context": 4096, "device_bytes": GIB}
    assert plan(MIXTRAL, **asked) == plan(MIXTRAL, **asked, devices=1, split=None)
    assert "devices" not in str(plan(MIXTRAL, **asked))


@pytest.mark.parametrize(
    ("split", "gib", "fits"), [("experts", 16, True), ("experts", 12, False), ("layers", 16, True)]
)
def test_mixtral_in_four_bits_on_two_small_cards(split, gib, fits):
    made = plan(
        MIXTRAL, precision="nf4-double", context=4096, device_bytes=gib * GIB - GIB // 16, devices=2, split=split
    )
    assert made.fits is fits


def test_with_layers_of_unequal_number_the_first_device_is_the_fullest():
    made = plan(MIXTRAL, precision="bfloat16", context=8, device_bytes=GIB, devices=3, split="layers")
    first = weights_by_device(MIXTRAL, "bfloat16", devices=3, split="layers")[0]
    assert made.weights_bytes == sum(part.total for part in first.values())


def sent_by_hand(config, devices, split):
    """Values that arrive for a token, sent one by one."""
    arrived = [0] * devices
    if split == "layers":
        for device in range(1, devices):  # from the one before
            arrived[device] += config.dim
    elif split == "experts":
        for layer in range(config.n_layers):
            for choice in range(config.num_experts_per_tok):
                owner = (5 * layer + 3 * choice) % devices  # whichever it is
                for device in set(range(devices)) - {owner}:
                    arrived[device] += config.dim
    else:
        sums = 1 + 2 * config.n_layers
        for _ in range(sums):
            for _ in range(2 * (devices - 1)):  # turns of a ring: partial sums round, then whole ones
                arrived = [before + config.dim // devices for before in arrived]
        for device in range(devices):
            arrived[device] += (devices - 1) * config.vocab_size // devices
    return sum(arrived)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("width", [2, 4])
def test_traffic_is_what_arrives_when_everything_is_sent_one_by_one(split, devices, width):
    for config in (MIXTRAL, replace(MIXTRAL, num_experts_per_tok=3), *([MISTRAL] if split != "experts" else [])):
        received = traffic_bytes(config, devices=devices, split=split, bytes_per_value=width)
        assert received == width * sent_by_hand(config, devices, split)


def test_one_device_receives_nothing_and_an_impossible_split_has_no_traffic():
    assert traffic_bytes(MIXTRAL, devices=1, split=None) == 0
    with pytest.raises(ValueError, match="n_kv_heads is 8: expected a multiple of the 3 devices"):
        traffic_bytes(MIXTRAL, devices=3, split="tensors")
    with pytest.raises(ValueError, match="bytes_per_value is 0: expected at least 1"):
        traffic_bytes(MIXTRAL, devices=2, split="layers", bytes_per_value=0)


@pytest.mark.parametrize(
    ("config", "wrong", "message"),
    [
        (MIXTRAL, {"devices": 2}, "split is None: expected one of layers, experts, tensors for 2 devices"),
        (MIXTRAL, {"devices": 2, "split": "rows"}, "split is 'rows': expected one of layers, experts, tensors"),
        (MIXTRAL, {"devices": 9, "split": "experts"}, "9 devices for 8 experts: expected at most one for each expert"),
        (MIXTRAL, {"devices": 33, "split": "layers"}, "33 devices for 32 layers: expected at most one for each layer"),
        (MIXTRAL, {"devices": 3, "split": "tensors"}, "n_kv_heads is 8: expected a multiple of the 3 devices"),
        (
            replace(MIXTRAL, hidden_dim=14_337),
            {"devices": 2, "split": "tensors"},
            "hidden_dim is 14337: expected a multiple of the 2 devices",
        ),
        (
            replace(MIXTRAL, vocab_size=32_001),
            {"devices": 2, "split": "tensors"},
            "vocab_size is 32001: expected a multiple of the 2 devices",
        ),
        (MISTRAL, {"devices": 2, "split": "experts"}, "split is 'experts', but the model is dense"),
        (MIXTRAL, {"devices": 0, "split": "layers"}, "devices is 0: expected at least 1"),
    ],
)
def test_a_split_that_cannot_be_is_refused_in_a_sentence(config, wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        plan(config, precision="nf4", context=8, device_bytes=GIB, **wrong)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("config", "precision", "others"),
    [
        (MIXTRAL, "nf4", "'layers' or 'experts'"),
        (MIXTRAL, "nf4-double", "'layers' or 'experts'"),
        (MISTRAL, "nf4-double", "'layers'"),
        (MISTRAL, "int8", "'layers'"),
    ],
)
def test_quantised_matrices_are_not_cut_as_transformers_cannot(config, precision, others):
    message = (
        f"split is 'tensors' and precision is '{precision}': expected {others}, or precision 'bfloat16', because "
        "transformers 5.23.0 loses the scales of a quantised matrix that it cuts"
    )
    asked = {"precision": precision, "context": 8, "device_bytes": 80 * GIB, "split": "tensors"}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plan(config, **asked, devices=2)
    assert plan(config, **asked, devices=1).fits  # nothing is cut
