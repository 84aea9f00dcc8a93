"""What the explorer of several devices says, held against sums of its own and against the modules."""

import re

import numpy as np
import pytest
from explorer_checks import drawn, moved
from figure_checks import segments, texts_of
from matplotlib.colors import to_hex

from mistral_lab import PRESETS, explorers, memory
from mistral_lab.figures import style

GIB = 2**30


def choices(explorer, name):
    return list(explorer.controls[name].options)


def test_only_what_goes_together_is_offered():
    explorer = explorers.split_model()
    assert choices(explorer, "split") == ["layers", "experts", "tensors"]
    moved(explorer, split="experts", devices=8)
    assert choices(explorer, "precision") == ["nf4", "nf4-double"]
    assert choices(explorer, "devices") == list(range(1, 9))
    moved(explorer, devices=7, split="tensors")
    assert choices(explorer, "precision") == ["float32", "bfloat16"]
    assert choices(explorer, "devices") == [1, 2, 4, 8]  # they divide 8 heads of keys and values
    assert (explorer.controls["precision"].value, explorer.controls["devices"].value) == ("bfloat16", 4)
    moved(explorer, split="experts", model="llama-2-7b")
    assert choices(explorer, "split") == ["layers", "tensors"]
    assert explorer.controls["split"].value == "layers"
    assert choices(explorer, "precision") == list(memory.PRECISIONS)
    assert max(choices(explorer, "context")) == 4096
    moved(explorer, split="tensors", model="llama-2-13b")
    assert choices(explorer, "devices") == [1, 2, 4, 8]  # 5 divides its 40 heads, but not 13,824


@pytest.mark.parametrize(
    ("split", "precision", "devices"), [("layers", "int8", 3), ("experts", "nf4-double", 5), ("tensors", "float32", 4)]
)
def test_the_bars_are_what_each_device_holds_and_the_longest_is_the_plan(split, precision, devices):
    explorer = moved(explorers.split_model(), split=split, precision=precision, devices=devices, context=8192)
    config = PRESETS["mixtral-8x7b-v0.1"]
    asked = {"devices": devices, "split": split}
    made = memory.plan(config, precision=precision, context=8192, device_bytes=memory.DEVICES["T4"], **asked)
    bars = segments(drawn(explorer).axes[0])
    assert bars.shape == (devices, 3)
    assert bars.sum(axis=1).max() * GIB == pytest.approx(made.total_bytes)
    weights = memory.weights_by_device(config, precision, **asked)
    np.testing.assert_allclose(bars[:, 0] * GIB, [sum(part.total for part in share.values()) for share in weights])
    wide = 4 if precision == "float32" else 2
    caches = memory.cache_by_device(config, 8192, batch=1, bytes_per_value=wide, **asked)
    np.testing.assert_allclose(bars[:, 1] * GIB, caches)
    assert str(made) in explorer.sentence
    [line] = drawn(explorer).axes[0].lines
    assert line.get_xdata()[0] == memory.DEVICES["T4"] / GIB


def test_beside_the_chosen_way_stand_those_that_this_number_of_devices_allows():
    explorer = moved(explorers.split_model(), split="experts", devices=4)
    bars = drawn(explorer).axes[1].containers[0]
    by_hand = [3 * 8, 3 * 32 * 2 * 8, 3 * (65 * 2 * 8 + 32_000 * 2 / 1024)]  # KiB; a vector of 4,096 takes 8
    np.testing.assert_allclose([bar.get_width() for bar in bars], np.array(by_hand) / 4)
    assert [to_hex(bar.get_edgecolor()) == style.PREDICTED for bar in bars] == [False, True, False]
    assert "all devices together receive 1.5 MiB, a device on average 384 KiB." in explorer.sentence
    assert "384" in texts_of(drawn(explorer).axes[1])  # the picture says what the sentence says
    assert "mean per device" in drawn(explorer).axes[1].get_xlabel()
    moved(explorer, devices=3)
    assert [label.get_text() for label in drawn(explorer).axes[1].get_yticklabels()] == ["layers", "experts"]
    moved(explorer, devices=1)
    assert explorer.sentence.endswith("Nothing crosses.")


@pytest.mark.parametrize(("model", "devices"), [("mixtral-8x7b-v0.1", 1), ("llama-2-70b", 2)])
def test_where_it_does_not_fit_the_fewest_devices_that_would_do_are_named(model, devices):
    explorer = moved(explorers.split_model(), model=model, precision="nf4-double", devices=devices)
    asked = {"precision": "nf4-double", "context": 4096, "device_bytes": memory.DEVICES["T4"], "split": "layers"}
    [enough] = re.findall(r"does not fit\. (\d) devices would do\.", explorer.sentence)
    assert memory.plan(PRESETS[model], devices=int(enough), **asked).fits
    assert not memory.plan(PRESETS[model], devices=int(enough) - 1, **asked).fits
    moved(explorer, model="llama-2-70b", precision="float32")
    assert "Nor would more devices do, up to 8." in explorer.sentence
