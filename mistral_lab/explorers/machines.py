"""The explorer of several devices: what each holds and what it receives, for every way to split a model."""

from dataclasses import replace

import numpy as np

from ..config import PRESETS, ModelConfig
from ..figures import bare_figure, keep_numbers_readable, plot_budget, plot_received
from ..memory import DEVICES, PRECISIONS, SPLITS, cache_by_device, plan, traffic_bytes, weights_by_device
from .base import Explorer, bytes_text, choice_list, choice_slider, offer_choices, offer_names
from .sizes import LENGTHS

MOST_DEVICES = 8
# What the lesson's programs support: a four-bit matrix is never cut, and whole experts are distributed in four bits.
PRECISIONS_OF = {"layers": PRECISIONS, "experts": ("nf4", "nf4-double"), "tensors": ("float32", "bfloat16")}


def split_model() -> Explorer:
    """Choose a model and a way to split it; see what each device holds, what its card has, and what crosses.

    Bytes are from `memory.plan`, `weights_by_device` and `cache_by_device`, traffic from `traffic_bytes`. The other
    ways that this number of devices allows are drawn beside the chosen one. Experts are offered for a mixture only,
    and for each way only the precisions and the numbers of devices that it allows.
    """

    def adapt(controls) -> None:
        config = PRESETS[controls["model"].value]
        offer_names(controls["split"], _ways(config), order=SPLITS)
        split = controls["split"].value
        offer_names(controls["precision"], PRECISIONS_OF[split], order=PRECISIONS)
        offer_choices(controls["devices"], _numbers(config, split))
        offer_choices(controls["context"], [length for length in LENGTHS if length <= config.max_positions])

    def view(model: str, split: str, precision: str, devices: int, context: int, card: str):
        config, value = PRESETS[model], 4 if precision == "float32" else 2
        asked = {"precision": precision, "context": context, "device_bytes": DEVICES[card], "split": split}
        fullest = plan(config, devices=devices, **asked)
        shares = weights_by_device(config, precision, devices=devices, split=split)
        caches = cache_by_device(config, context, batch=1, bytes_per_value=value, devices=devices, split=split)
        plans = [
            replace(
                fullest,
                weights_bytes=sum(part.total for part in share.values()),
                tables_bytes=sum(part.tables for part in share.values()),
                cache_bytes=cache,
            )
            for share, cache in zip(shares, caches, strict=True)
        ]
        amounts = [[p.weights_bytes, p.cache_bytes, p.overhead_bytes] for p in plans]
        ways = [way for way in _ways(config) if devices in _numbers(config, way)]
        received = {way: traffic_bytes(config, devices=devices, split=way, bytes_per_value=value) for way in ways}

        figure, axes = bare_figure(1, 2, height_in=1.5 + 0.3 * max(devices, len(SPLITS)), widths=[2.1, 1])
        ax = plot_budget(
            np.array(amounts) / 2**30,
            names=[f"device {device}" for device in range(devices)],
            parts=["weights", "cache", "overhead"],
            limits={card: DEVICES[card] / 2**30},
            unit="GiB",
            columns=4,
            ax=axes[0, 0],
        )
        keep_numbers_readable(ax, narrow=0.1)
        ax.locator_params(axis="x", nbins=4)  # few numbers, because each takes a millisecond of a redraw
        each = np.array(list(received.values())) / devices / 2**10
        unit = "received, KiB per token\n(predicted, mean per device)"
        plot_received(each, names=ways, chosen=split, unit=unit, ax=axes[0, 1])

        if fullest.fits:
            verdict = ""
        elif enough := [n for n in _numbers(config, split) if plan(config, devices=n, **asked).fits]:
            verdict = f" {enough[0]} devices would do."
        else:
            verdict = f" Nor would more devices do, up to {MOST_DEVICES}."
        crosses = "Nothing crosses"
        if devices > 1:
            together, mean = bytes_text(received[split]), bytes_text(received[split] / devices)
            crosses = f"Predicted for a token: all devices together receive {together}, a device on average {mean}"
        return figure, f"{model} on {card}: {fullest}.{verdict} {crosses}."

    controls = {
        "model": choice_list("model", "mixtral-8x7b-v0.1", list(PRESETS)),
        "split": choice_list("split by", "layers", SPLITS),
        "precision": choice_list("precision", "nf4-double", PRECISIONS),
        "devices": choice_slider("devices", 2, range(1, MOST_DEVICES + 1)),
        "context": choice_slider("tokens", 4096, LENGTHS),
        "card": choice_list("card", "T4", list(DEVICES)),
    }
    return Explorer(controls, view, adapt=adapt)


def _ways(config: ModelConfig) -> list[str]:
    return [way for way in SPLITS if way != "experts" or config.num_experts]


def _numbers(config: ModelConfig, split: str) -> list[int]:
    """The numbers of devices over which a model can be split in this way."""

    def possible(devices: int) -> bool:
        try:
            traffic_bytes(config, devices=devices, split=split)
        except ValueError:
            return False
        return True

    return [devices for devices in range(1, MOST_DEVICES + 1) if possible(devices)]
