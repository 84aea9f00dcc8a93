"""Whether a model fits the device that it is to be loaded on, and the one error where it does not."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ..config import ModelConfig
from ..files import weight_files
from ..memory import PRECISIONS, Plan, nearest_fit, plan, room_to_load_bytes
from .forms import bytes_in_files

SHORT_CONTEXT = 512


def short_context(config: ModelConfig) -> int:
    """Return the tokens with which a model must fit to be loaded."""
    return min(SHORT_CONTEXT, config.max_positions)


def planned_precision(bits: int | None, dtype: torch.dtype) -> str:
    """Return the name that `memory` has for what a checkpoint in 16 bits becomes."""
    quantised = {8: "int8", 4: "nf4-double"}
    return quantised.get(bits) or ("float32" if dtype == torch.float32 else "bfloat16")


def as_held(asked: Plan, folder: Path, dtype: torch.dtype) -> Plan:
    """Return the plan of a quantised checkpoint with the bytes that its files hold, whatever is quantised in them."""
    held = bytes_in_files(weight_files(folder), dtype)
    return replace(asked, weights_bytes=held.total, tables_bytes=held.tables)


def plan_here(config: ModelConfig, precision: str, device: torch.device) -> Plan:
    """Return what the model takes with a short text, beside what a device of this machine has for it."""
    return plan(config, precision=precision, context=short_context(config), device_bytes=room_to_load_bytes(device))


def check_fits(name: str, config: ModelConfig, asked: Plan, *, mapped: bool) -> None:
    """Refuse a model that does not fit.

    Args:
        name, config: of the model.
        asked: its plan.
        mapped: whether its weights are mapped from files, which the system reads again where memory is short. Then
            only the rest has to fit.

    Raises:
        MemoryError: it does not fit.
    """
    needed = asked.total_bytes - (asked.weights_bytes + asked.tables_bytes if mapped else 0)
    if needed > asked.device_bytes:
        raise MemoryError(does_not_fit(name, config, asked))


def does_not_fit(name: str, config: ModelConfig, asked: Plan) -> str:
    """Return the message for a plan that does not fit, with the nearest one that does."""
    other = nearest_fit(
        config,
        precision=asked.precision,
        context=asked.context,
        device_bytes=asked.device_bytes,
        precisions=[precision for precision in PRECISIONS if not (config.num_experts and precision == "int8")],
    )
    offer = f"the nearest that does is {other}" if other else "at no precision does it: choose a smaller model"
    return f"{name} does not fit this device ({asked}); {offer}"


@contextmanager
def out_of_memory_explained(name: str, config: ModelConfig, asked: Plan) -> Iterator[None]:
    """Turn running out of memory into one MemoryError with the plan, and give back what was taken.

    Raises:
        MemoryError: the memory ran out inside.
    """
    try:
        yield
        return
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # PyTorch's error on a CPU is a plain RuntimeError with these words.
        ran_out = isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
        if not ran_out:
            raise
        # The traceback holds the half-loaded model; it is dropped before memory is given back.
        error.__traceback__ = None
    gc.collect()
    torch.cuda.empty_cache()
    taken = "other programs, or this one, hold the rest" if asked.fits else does_not_fit(name, config, asked)
    raise MemoryError(f"{name} ran out of memory while it was loaded ({asked}); {taken}")
