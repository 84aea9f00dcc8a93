"""The bytes of a real device that a plan can count on."""

import psutil
import torch

from .fit import RUNTIME_BYTES


def room_bytes(device: str | torch.device = "cpu") -> int:
    """The memory of a device that this process can have, with what it holds already: the `device_bytes` of a plan.

    A card's total is more than that where a screen or another program is on it.

    Args:
        device: "cuda", "cuda:1", ...; anything else means the computer's memory.

    Returns:
        bytes: those that are free, and those that this process holds.

    >>> 0 < room_bytes("cpu") <= psutil.virtual_memory().total
    True
    """
    if torch.device(device).type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        # Nothing says how much of the rest is this process's own runtime: as much as a plan counts for it.
        return free + reserved + min(RUNTIME_BYTES, total - free - reserved)
    memory, process = psutil.virtual_memory(), psutil.Process().memory_info()
    # Pages of mapped files can be taken back at any time, so they count as free already; only Linux tells them apart.
    own = process.rss - getattr(process, "shared", 0)
    return min(memory.available + own, memory.total)
