"""A model in four bits that is larger than its device: which experts stay outside, and one line on what that costs."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..arguments import check_count
from ..config import ModelConfig
from ..files import decimal_size, weight_files
from ..memory import (
    LAPTOP,
    SPEEDS,
    OutsidePlan,
    Plan,
    Speeds,
    free_bytes,
    plan_outside,
    rate_text,
    room_bytes,
    speeds_of,
)
from .fitting import short_context

PINNED = 0.7  # of the computer's free memory; the rest is for pages of mapped files, and for other programs
# Where a budget is given on a CPU, experts are copied from memory to memory.
WITHIN_MEMORY = Speeds(LAPTOP.memory_bytes_per_s, LAPTOP.memory_bytes_per_s, LAPTOP.disk_bytes_per_s)

FASTEST_CARD = SPEEDS["H100 80GB"]  # "at most" holds with it for a card whose speed is not known


def plan_within(
    name: str, config: ModelConfig, precision: str | None, device: torch.device, device_bytes: int | None
) -> OutsidePlan:
    """Say how many experts of each layer a device holds, within a budget or within what it has.

    Args:
        name: of the model, for the messages.
        config: of the model.
        precision: "nf4" or "nf4-double"; None where the model is not loaded in 4 bits.
        device: where the model computes.
        device_bytes: what it may take there; None is what the device has.

    Raises:
        TypeError, ValueError: a budget that is no number of bytes, that is too small for two experts per layer and the
            rest, or for a model that is dense or not in 4 bits.
    """
    if device_bytes is not None:
        check_count("device_bytes", device_bytes)
        if not config.num_experts:
            raise ValueError(
                f"device_bytes is {device_bytes:,}, and {name} is dense, so that every token needs all of it: "
                "expected a mixture of experts, or no device_bytes"
            )
        if precision is None:
            raise ValueError(
                f"device_bytes is {device_bytes:,}, and {name} is not loaded in 4 bits: expected bits=4, in which "
                "experts can stay outside, or no device_bytes"
            )
    has = room_bytes(device)
    if device_bytes is not None and device_bytes > has:
        raise ValueError(f"device_bytes is {device_bytes:,}: expected at most {has:,}, what {device} has for it")
    plan = _plan(config, precision, device, has if device_bytes is None else device_bytes)
    if device_bytes is not None and not plan.runs:
        least = plan.beside_bytes + config.n_layers * plan.least_slots * plan.expert_bytes
        raise ValueError(
            f"device_bytes is {device_bytes:,}: expected at least {least:,} for {name}, {plan.least_slots} experts of "
            "each layer and the rest of the model"
        )
    return plan


def plan_mapped(config: ModelConfig, asked: Plan) -> OutsidePlan | None:
    """Say what a mixture costs on a CPU whose memory holds a part of the files that it is mapped from.

    Args:
        config: of the model.
        asked: the plan of the whole model, with the memory that is free.

    Returns:
        None for a dense model.
    """
    if not config.num_experts:
        return None
    return plan_outside(
        config,
        precision=asked.precision,
        context=asked.context,
        device_bytes=asked.device_bytes,
        host_bytes=None,
        speeds=LAPTOP,
    )


def cost_line(name: str, outside: OutsidePlan | None, asked: Plan) -> str:
    """Say what lies where, and what a token costs at least.

    Args:
        name: of the model.
        outside: the plan of a mixture of which a part lies outside of its device or its memory; None: it is dense.
        asked: the plan of the whole model, with the memory that is free.
    """
    if outside is not None:
        speeds = outside.speeds
        link = f"the link {speeds.link_bytes_per_s / 1e9:.0f}, " if speeds.link_bytes_per_s else ""
        return (
            f"{name}: {outside}, if memory reads {speeds.memory_bytes_per_s / 1e9:.0f} GB/s, {link}the disk "
            f"{speeds.disk_bytes_per_s / 1e9:.1f}"
        )
    missing = asked.total_bytes - asked.device_bytes
    return (
        f"{name}: {asked}, but runs, mapped from the disk; a token reads at least {decimal_size(missing)} from it, at "
        f"most {rate_text(LAPTOP.disk_bytes_per_s / missing)} tokens per second if the disk reads "
        f"{LAPTOP.disk_bytes_per_s / 1e9:.1f} GB/s"
    )


def keep_outside(model: PreTrainedModel, plan: OutsidePlan, device: torch.device) -> None:
    """Bring a model from the CPU to its device, all but the experts for which the plan has no room there."""
    from ..four_bit import keep_experts_outside

    pinned = int(PINNED * free_bytes("cpu")) if device.type == "cuda" else 0
    keep_experts_outside(model, device, slots_per_layer=plan.slots, pinned_bytes=pinned)


def prepare_mapped(model: PreTrainedModel, folder: Path, *, fits: bool, plan: OutsidePlan | None) -> None:
    """Make a model in 4 bits ready that is mapped from the files of a folder.

    Args:
        model: on the CPU.
        folder: with its files.
        fits: whether the memory that is free holds all of it. If not, and the files do not hold the codes as the CPU
            wants them, they are used as they are, which is slow: memory of their own would not hold them.
        plan: of a mixture on a CPU whose memory holds a part of it: those experts stay in the page cache.
    """
    from ..four_bit import leave_unpacked, share_page_cache, watch_files

    watch_files(model, weight_files(folder))
    model.requires_grad_(False)  # under autograd a forward unpacks: into memory of its own, and for good
    if not fits:
        leave_unpacked(model)
    if plan is not None:
        share_page_cache(model, plan.in_memory_bytes)


def _plan(config: ModelConfig, precision: str, device: torch.device, device_bytes: int) -> OutsidePlan:
    speeds = WITHIN_MEMORY
    if device.type == "cuda":
        speeds = speeds_of(torch.cuda.get_device_name(device)) or FASTEST_CARD
    return plan_outside(
        config,
        precision=precision,
        context=short_context(config),
        device_bytes=device_bytes,
        host_bytes=free_bytes("cpu"),
        speeds=speeds,
    )
