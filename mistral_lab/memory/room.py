"""The bytes of a real device that a plan can count on: four numbers, each for another question.

total_bytes         What does the device have at all? To plan ahead for a machine that may be freed for the job.
free_bytes          What is free at this moment? To place the parts of a model on several devices.
room_to_load_bytes  What can a model have before it is loaded? `load` compares its plan with it.
room_bytes          What can this process have, with what it holds already? For a plan of a model that is loaded.

Of the computer's memory a container has what its control group allows.
"""

import psutil
import torch

from .fit import RUNTIME_BYTES
from .limit import memory_limits


def total_bytes(device: str | torch.device = "cpu") -> int:
    """Return all memory of a device, whoever uses it now.

    Of a card it is what PyTorch can have, less than what nvidia-smi prints. Asking makes no CUDA context on the card.

    Args:
        device: "cuda", "cuda:1", ...; anything else means the computer's memory.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min([psutil.virtual_memory().total, *(limit.total_bytes for limit in memory_limits())])


def free_bytes(device: str | torch.device = "cpu") -> int:
    """Return the memory of a device that is free now; what this process holds already is not free.

    Args:
        device: as in `total_bytes`.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([psutil.virtual_memory().available, *(limit.free_bytes for limit in memory_limits())])


def room_to_load_bytes(device: str | torch.device = "cpu") -> int:
    """Return the memory for a model that is still to be loaded: the `device_bytes` of its plan.

    Of a card that is the total: what an earlier model holds there may be given back before the new one needs it, and
    running out of memory is explained in any case. Of a computer it is what is free, because a computer that has too
    little memory swaps or kills, and what this process holds for other things makes no room.

    Args:
        device: as in `total_bytes`.
    """
    if torch.device(device).type == "cuda":
        return total_bytes(device)
    # A plan counts a process with its libraries, and this process is running already.
    return free_bytes(device) + min(psutil.Process().memory_info().rss, RUNTIME_BYTES)


def room_bytes(device: str | torch.device = "cpu") -> int:
    """Return the memory that this process can have, with what it holds already: the `device_bytes` of a plan.

    A card's total is more than that where a screen or another program is on it.

    Args:
        device: as in `total_bytes`.

    Returns:
        the bytes that are free, and those that this process holds.

    >>> 0 < room_bytes("cpu") <= total_bytes("cpu")
    True
    """
    if torch.device(device).type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        # Nothing says how much of the rest is this process's own runtime: as much as a plan counts for it.
        return free + reserved + min(RUNTIME_BYTES, total - free - reserved)
    process = psutil.Process().memory_info()
    # Pages of mapped files can be taken back at any time, so they count as free already; only Linux tells them apart.
    own = process.rss - getattr(process, "shared", 0)
    return min(free_bytes() + own, total_bytes())
