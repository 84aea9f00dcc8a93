"""How long callables take, and the speed at which a device reads its memory."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import torch

from .progress import with_progress

READ_BYTES = {"cpu": 2**29, "cuda": 2**30}  # larger than caches: 50 MiB in an H200, up to about 400 MiB in a server CPU


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of every run, with their median and their spread."""

    runs_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The median, which a single slow run does not move."""
        return statistics.median(self.runs_s)

    @property
    def spread_s(self) -> float:
        """The slowest run minus the fastest."""
        return max(self.runs_s) - min(self.runs_s)


def time_callable(function: Callable[[], object], *, repeats: int = 5, device: str | torch.device = "cpu") -> Timing:
    """Run a callable once to warm up, then time it. On a GPU each run waits until the device is done.

    >>> len(time_callable(lambda: sum(range(1000)), repeats=3).runs_s)
    3
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}: expected at least 1")
    wait = waiter(device)
    runs_s = []
    for _ in with_progress(repeats + 1, "Timing"):
        wait()
        start = time.perf_counter()
        function()
        wait()
        runs_s.append(time.perf_counter() - start)
    return Timing(tuple(runs_s[1:]))


def time_in_turns(functions: Mapping[Hashable, Callable[[], object]], *, repeats: int = 5) -> dict[Hashable, Timing]:
    """Time several callables on the CPU in rounds, so that a slow minute of the machine affects all of them alike.

    Each callable runs once per round, and the first round only warms up. Every round begins with another callable, so
    that none always runs after the same one.

    >>> timings = time_in_turns({"one": lambda: sum(range(10)), "other": lambda: sum(range(1000))}, repeats=3)
    >>> [len(timing.runs_s) for timing in timings.values()]
    [3, 3]
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}: expected at least 1")
    names = list(functions)
    runs_s = {name: [] for name in names}
    for number in with_progress(repeats + 1, "Timing in turns"):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            functions[name]()
            runs_s[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(runs[1:])) for name, runs in runs_s.items()}


def compare(one: Timing, other: Timing) -> dict[str, float]:
    """How many times as long one took as the other, round by round, so that what slows a whole round cancels out.

    >>> compare(Timing((2.0, 8.0, 3.0)), Timing((1.0, 2.0, 1.0)))
    {'ratio': 3.0, 'least': 2.0, 'largest': 4.0}
    """
    ratios = [mine / theirs for mine, theirs in zip(one.runs_s, other.runs_s, strict=True)]
    return {"ratio": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)}


def measure_bandwidth(device: str | torch.device = "cpu", *, repeats: int = 5) -> float:
    """Measure how many bytes per second a device reads from its memory, by summing a tensor far larger than its caches.

    A decoded token reads every weight once and computes little with it. The bytes of the weights divided by this number
    are therefore a floor for the seconds per token. It is what PyTorch reaches with its current number of threads, not
    the figure on a data sheet.

    Source: Williams, Waterman and Patterson, "Roofline", Communications of the ACM 52(4), 2009.

    Args:
        device: "cpu", where 512 MiB are read, or a CUDA device, where 1 GiB is read.
        repeats: timed runs, of which the median counts.
    """
    size = READ_BYTES["cuda" if torch.device(device).type == "cuda" else "cpu"]
    values = torch.ones(size // 4, device=device)
    return size / time_callable(values.sum, repeats=repeats, device=device).median_s


def waiter(device: str | torch.device) -> Callable[[], object]:
    """A function that returns once the device has finished all its work; on a CPU it returns at once."""
    kind = torch.device(device).type
    if kind == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if kind == "mps" else lambda: None
