"""Explorers of bytes: what shared heads save in the cache, and which model fits which card."""

from dataclasses import replace

import numpy as np

from ..config import PRESETS
from ..figures import bare_figure, plot_budget, plot_head_groups, plot_kept_bytes
from ..memory import DEVICES, PRECISIONS, SPEEDS, kv_cache_bytes, nearest_fit, plan, plan_outside, weight_bytes
from .base import Explorer, binary_unit, bytes_text, choice_list, choice_slider, count_slider, offer_choices

HEADS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32)
WIDTHS = (32, 64, 96, 128, 256)
LENGTHS = tuple(2**power for power in range(9, 18))  # 512 to 131,072 tokens
BATCHES = (1, 2, 4, 8, 16, 32)
BARS = ("as chosen", "multi-head: K = H", "multi-query: K = 1")


def head_groups() -> Explorer:
    """Choose query heads H, key and value heads K, and see who shares with whom and what the cache takes.

    Only numbers that divide H are offered as K. The cache is that of `memory.kv_cache_bytes`, without a window, at 16
    bits per number. The first state has the shape of Mistral 7B.
    """

    def adapt(controls) -> None:
        H = controls["H"].value
        offer_choices(controls["K"], [K for K in range(1, H + 1) if H % K == 0])

    def view(H: int, K: int, D: int, layers: int, context: int):
        shape = replace(PRESETS["llama-2-7b"], n_layers=layers, n_heads=H, n_kv_heads=K, head_dim=D)
        caches = [kv_cache_bytes(replace(shape, n_kv_heads=heads), context) for heads in (K, H, 1)]
        scheme = "multi-head" if K == H else "multi-query" if K == 1 else "grouped-query"
        figure, axes = bare_figure(2, 1, height_in=4.0, heights=[1, 1])
        plot_head_groups(np.repeat(np.arange(K), H // K), title=scheme, ax=axes[0, 0])
        unit, size = binary_unit(max(caches))
        of = f"for {context:,} tokens"
        plot_kept_bytes(caches, [caches[1]] * 3, names=BARS, unit=unit, unit_bytes=size, of=of, ax=axes[1, 0])
        fewer = "as much as" if K == H else f"{H // K} times less than"
        return figure, (
            f"{scheme.capitalize()} attention with H = {H} and K = {K}: a key and value head serves {H // K} query "
            f"head{'s' * (H > K)}. With D = {D}, L = {layers} and {context:,} tokens the cache takes "
            f"{bytes_text(caches[0])} at 16 bits per number, {fewer} multi-head attention."
        )

    controls = {
        "H": choice_slider("query heads H", 32, HEADS),
        "K": choice_slider("key and value heads K", 8, [1, 2, 4, 8, 16, 32]),
        "D": choice_slider("head width D", 128, WIDTHS),
        "layers": count_slider("layers L", 32, 1, 96),
        "context": choice_slider("tokens", 4096, LENGTHS),
    }
    return Explorer(controls, view, adapt=adapt)


def memory_plan() -> Explorer:
    """Choose model, precision, context, batch and card; see what the model takes beside what the card has.

    The bytes are from `memory.plan`, the nearest thing that fits from `memory.nearest_fit`, and what runs although it
    does not fit from `memory.plan_outside`, with all experts in the computer's memory. No more tokens are offered than
    the checkpoint declares.
    """

    def adapt(controls) -> None:
        most = PRESETS[controls["model"].value].max_positions
        offer_choices(controls["context"], [length for length in LENGTHS if length <= most])

    def view(model: str, precision: str, context: int, batch: int, card: str):
        config, asked = PRESETS[model], {"context": context, "batch": batch, "device_bytes": DEVICES[card]}
        shown = PRECISIONS[max(0, PRECISIONS.index(precision) - 1) :]  # the next larger one, and all that are smaller
        plans = {other: plan(config, precision=other, **asked) for other in shown}
        amounts = [[p.weights_bytes, p.cache_bytes, p.overhead_bytes] for p in plans.values()]
        figure, axes = bare_figure(height_in=1.4 + 0.4 * len(plans))
        ax = plot_budget(
            np.array(amounts) / 2**30,
            names=shown,
            parts=["weights", "cache", "overhead"],
            limits={card: DEVICES[card] / 2**30},
            unit="GiB",
            columns=4,
            ax=axes[0, 0],
        )
        ax.get_yticklabels()[shown.index(precision)].set_fontweight("bold")
        sentence = f"{model} on {card}: {plans[precision]}."
        if not plans[precision].fits:
            nearest = nearest_fit(config, precision=precision, **asked)
            sentence += f" The nearest: {nearest}." if nearest else " Nor does it fit in fewer bits, with one token."
            if config.num_experts and precision.startswith("nf4"):
                host = {"host_bytes": 2 * weight_bytes(config, precision), "speeds": SPEEDS[card]}
                outside = plan_outside(config, precision=precision, **asked, **host)
                sentence += f" With its experts in the computer's memory: {outside}."
        return figure, sentence

    controls = {
        "model": choice_list("model", "mixtral-8x7b-v0.1", list(PRESETS)),
        "precision": choice_list("precision", "nf4-double", PRECISIONS),
        "context": choice_slider("tokens", 4096, LENGTHS),
        "batch": choice_slider("sequences", 1, BATCHES),
        "card": choice_list("card", "RTX 4090", list(DEVICES)),
    }
    return Explorer(controls, view, adapt=adapt)
