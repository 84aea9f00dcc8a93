"""The peak of memory while something runs."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

SAMPLE_S = 0.005  # how often resident memory is read on the CPU


@dataclass(frozen=True)
class Peak:
    """Memory in use at the highest moment.

    Args:
        bytes: the bytes of all tensors on a CUDA device; elsewhere the bytes of this whole process. `of` says which.
        reserved_bytes: on CUDA, what PyTorch's allocator had reserved on the device, slack included; None elsewhere.
        of: "CUDA tensors", "process", or "process, anonymous".
    """

    bytes: int
    reserved_bytes: int | None
    of: str


def peak_memory(function: Callable[[], object], device: str | torch.device = "cpu", *, anonymous: bool = False) -> Peak:
    """Measure the most memory in use while a callable runs. What was in use before it counts too.

    Args:
        function: called once, without arguments.
        device: on "cuda", the peak is the bytes that tensors on that card held at once
            (`torch.cuda.max_memory_allocated`), and the bytes that the allocator had reserved for them
            (`torch.cuda.max_memory_reserved`). Elsewhere it is the resident memory of this process, read every 5 ms, so
            that a shorter peak can be missed.
        anonymous: off CUDA, leave out pages of mapped files, such as a checkpoint that is being read, because the
            system can take them back at any time. Only Linux tells them apart; elsewhere they are counted.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()  # or what the allocator kept from earlier work would count as reserved
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return Peak(torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device), "CUDA tensors")

    process = psutil.Process()

    def resident() -> int:
        info = process.memory_info()
        return info.rss - getattr(info, "shared", 0) if anonymous else info.rss

    peak = resident()
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_S):
            peak = max(peak, resident())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        function()
    finally:
        done.set()
        sampler.join()
    return Peak(max(peak, resident()), None, "process, anonymous" if anonymous else "process")


def peak_bytes(function: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """The bytes that `peak_memory` measures: those of tensors on CUDA, those of this process elsewhere."""
    return peak_memory(function, device).bytes
