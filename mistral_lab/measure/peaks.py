"""The most memory in use while something runs."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

SAMPLE_S = 0.005  # how often resident memory is read on the CPU


@dataclass(frozen=True)
class Peak:
    """Bytes at the highest moment.

    Args:
        bytes: of tensors on a CUDA device, elsewhere of this whole process: `of` says which.
        reserved_bytes: on CUDA, what PyTorch's allocator had taken from the device, slack included; None elsewhere.
        of: "CUDA tensors", "process", or "process, anonymous".
    """

    bytes: int
    reserved_bytes: int | None
    of: str


def peak_memory(function: Callable[[], object], device="cpu", *, anonymous: bool = False) -> Peak:
    """The most memory in use while a callable runs, what was in use before it included.

    Args:
        function: called once, without arguments.
        device: on "cuda", the bytes that tensors on that card held at once (`torch.cuda.max_memory_allocated`), and
            those that the allocator had taken for them (`torch.cuda.max_memory_reserved`); elsewhere, the resident
            memory of this process, read every 5 ms: a shorter peak can be missed.
        anonymous: off CUDA, leave out pages of mapped files, such as a checkpoint that is being read, which the system
            can take back at any time. Only Linux tells them apart; elsewhere they are counted.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()  # or what earlier work left in the allocator would count as reserved
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


def peak_bytes(function: Callable[[], object], device="cpu") -> int:
    """The bytes of `peak_memory`: of tensors on CUDA, of this process elsewhere."""
    return peak_memory(function, device).bytes
