"""Whether a model fits the device that it is to be loaded on, and the one error where it does not."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from ..checkpoints import weight_files
from ..config import ModelConfig
from ..memory import PRECISIONS, RUNTIME_BYTES, Plan, nearest_fit, plan
from .forms import bytes_in_files

SHORT_CONTEXT = 512  # tokens with which a model must fit to be loaded


def planned_precision(bits: int | None, dtype: torch.dtype) -> str:
    """The name that `memory` has for what a checkpoint in 16 bits becomes."""
    quantised = {8: "int8", 4: "nf4-double"}
    return quantised.get(bits) or ("float32" if dtype == torch.float32 else "bfloat16")


def as_held(asked: Plan, folder: Path, dtype: torch.dtype) -> Plan:
    """The plan of a quantised checkpoint with the bytes that its files hold, whatever is quantised in them."""
    held = bytes_in_files(weight_files(folder), dtype)
    return replace(asked, weights_bytes=held.total, tables_bytes=held.tables)


def plan_here(config: ModelConfig, precision: str, device: torch.device) -> Plan:
    """What the model takes with a short text, beside what a card has in all or a computer has free."""
    if device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[1]
    else:  # the plan counts a process with its libraries, and this one is running already
        room = psutil.virtual_memory().available + min(psutil.Process().memory_info().rss, RUNTIME_BYTES)
    context = min(SHORT_CONTEXT, config.max_positions)
    return plan(config, precision=precision, context=context, device_bytes=room)


def does_not_fit(name: str, config: ModelConfig, asked: Plan) -> str:
    """The message of a plan that does not fit, with the nearest one that does."""
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
    """Turn running out of memory into one MemoryError with the plan, and give back what was taken."""
    try:
        yield
        return
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        ran_out = isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
        if not ran_out:  # PyTorch's error on a CPU is a plain RuntimeError with those words
            raise
        # The traceback holds the half-loaded model; it is dropped before memory is given back.
        error.__traceback__ = None
    gc.collect()
    torch.cuda.empty_cache()
    taken = "other programs, or this one, hold the rest" if asked.fits else does_not_fit(name, config, asked)
    raise MemoryError(f"{name} ran out of memory while it was loaded ({asked}); {taken}")
