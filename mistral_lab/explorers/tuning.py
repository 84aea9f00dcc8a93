"""The explorer of adapters: what rank, places and tokens cost in bytes, beside the quality that was measured."""

from collections.abc import Mapping

import ipywidgets as widgets
import numpy as np

from ..config import PRESETS, ModelConfig
from ..figures import bare_figure, keep_numbers_readable, plot_budget, plot_parameters, plot_rank_choice
from ..memory import DEVICES, weight_bytes
from .base import FULL, Explorer, choice_list, choice_slider, offer_choices

LARGE = ("mistral-7b-v0.1", "mixtral-8x7b-v0.1")
PLACES = ("attention", "all")
RANKS = tuple(2**power for power in range(9))
TOKENS = tuple(2**power for power in range(7, 14))
LONGEST = 1024  # tokens per sequence: more tokens per step make several sequences
CARDS = ("T4", "RTX 4090")


def adapter_rank(found: Mapping) -> Explorer:
    """Choose rank and places of an adapter, and see the bytes of training beside the quality that was measured.

    Bytes are predicted for the chosen model: those of `memory.weight_bytes`, in NF4 with double quantisation, and those
    of `finetune.tuning_bytes`. Quality was measured on the model that the record names. No rank is offered beyond the
    narrowest side of a matrix, because it could learn nothing that a smaller one cannot. Tokens come in sequences as
    long as the window, but of at most 1,024 tokens.

    Args:
        found: what `python -m mistral_lab.training --only ranks` wrote to bundled/traces/ranks.json.

    Raises:
        ValueError: the record has another form.
    """
    from ..finetune import tuning_bytes  # imported here, because it needs PEFT, which other lessons do without

    tried, asked, rate, ranks, shares = _read(found)
    configs = {name: PRESETS[name] for name in LARGE} | {tried: ModelConfig.from_pretrained(tried)}

    def adapt(controls) -> None:
        config = configs[controls["model"].value]
        narrowest = min(config.dim, config.n_kv_heads * config.head_dim)
        offer_choices(controls["rank"], [rank for rank in RANKS if rank <= narrowest])

    def view(model: str, places: str, rank: int, tokens: int, checkpointing: bool):
        config = configs[model]
        length = min(tokens, LONGEST, config.sliding_window or LONGEST)
        held = tuning_bytes(
            config, rank=rank, targets=places, batch=tokens // length, tokens=length, checkpointing=checkpointing
        )
        parts = {"four-bit weights": weight_bytes(config, "nf4-double"), "adapter": held.adapter}
        parts |= {"gradients": held.gradients, "optimiser": held.optimiser, "activations": held.activations}
        total = sum(parts.values())
        large = model in LARGE
        unit, size = ("GiB", 2**30) if large else ("MiB", 2**20)
        cards = {card: DEVICES[card] for card in CARDS if large}  # a small model's bar would end far before them

        figure, axes = bare_figure(2, 1, height_in=4.1, heights=[1, 2.2])
        # Gradients and the optimiser's numbers stand in one segment: each is too narrow for its number, and a redraw
        # takes longer with every name in the legend.
        drawn = parts | {"gradients, optimiser": held.gradients + held.optimiser}
        order = ("four-bit weights", "adapter", "gradients, optimiser", "activations")
        bar = {"parts": order, "unit": f"predicted for {model}, {unit}", "columns": 3 if large else 4}
        amounts, names = np.array([[drawn[part] for part in order]]) / size, [f"rank {rank}"]
        if large:
            limits = {card: amount / size for card, amount in cards.items()}
            plot_budget(amounts, names=names, limits=limits, ax=axes[0, 0], **bar)
        else:
            plot_parameters(amounts, models=names, ax=axes[0, 0], **bar)
        keep_numbers_readable(axes[0, 0], narrow=0.07)
        right = shares[places]
        plot_rank_choice(
            ranks,
            right.mean(axis=1),
            right.min(axis=1),
            right.max(axis=1),
            chosen=rank,
            offered=[offered for offered in RANKS if offered <= max(*ranks, rank)],
            unit=f"right, % (measured\non {tried})",
            ax=axes[1, 0],
        )
        axes[1, 0].set_yticks([0, 50, 100])  # few numbers, because each takes a millisecond of a redraw
        axes[0, 0].locator_params(axis="x", nbins=4, prune=None if large else "upper")  # the last could leave the page

        beside = "attention" if places == "attention" else "attention and every feed-forward matrix"
        lacking = [card for card, amount in cards.items() if amount < total]
        verdict = f", beyond {' and '.join(lacking)}" if lacking else ""
        nearest = max((measured for measured in ranks if measured <= rank), default=ranks[0])
        answers = np.round(asked * right[ranks.index(nearest)]).astype(int)
        quality = f"{answers.mean():.4g} of {asked} answers right, the mean of {len(answers)} runs "
        quality += f"({answers.min()} to {answers.max()}) with one learning rate for all ranks, {rate:g}"
        return figure, (
            f"Adapters of rank {rank} beside {beside}; {tokens:,} tokens per step{', checkpointed' * checkpointing}. "
            f"Predicted for {model}: "
            + " + ".join(f"{part} {amount / size:.2f}" for part, amount in parts.items())
            + f" = {total / size:.2f} {unit}{verdict}; not counted: the runtime, and what lives for a moment only. "
            + (
                f"Measured on {tried}{'' if model == tried else ', not on this model'}: {quality}."
                if nearest == rank
                else f"Quality at this rank was not measured; at rank {nearest}, {tried} has {quality}."
            )
        )

    controls = {
        "model": choice_list("model", LARGE[0], list(configs)),
        "places": choice_list("adapters beside", "attention", PLACES),
        "rank": choice_slider("rank", 8, RANKS),
        "tokens": choice_slider("tokens per step", 1024, TOKENS),
        "checkpointing": widgets.Checkbox(False, description="gradient checkpointing", style=FULL, indent=False),
    }
    return Explorer(controls, view, adapt=adapt)


def _read(found: Mapping) -> tuple[str, int, float, list[int], dict[str, np.ndarray]]:
    """The model, its number of questions, the learning rate, the ranks, and for each place the shares of right answers
    as an array (ranks, seeds)."""
    try:
        tried, asked, rate = (found["settings"][name] for name in ("model", "asked", "learning_rate"))
        ranks, seeds = found["ranks"], found["seeds"]
        shares = {places: np.array(found["right"][places], float) / asked for places in PLACES}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"found is no record of ranks ({type(error).__name__}: {error})") from None
    for places, share in shares.items():
        if share.shape != (len(ranks), len(seeds)) or not ((share >= 0) & (share <= 1)).all():
            raise ValueError(f"found is no record of ranks: {places!r} lacks answers of a rank or seed")
    return tried, asked, rate, list(ranks), shares
