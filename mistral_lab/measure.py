"""Time and peak memory of a callable or of a model, and the speed at which this machine reads memory."""

import statistics
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import psutil
import torch

READ_BYTES = {"cpu": 2**29, "cuda": 2**30}  # beyond the caches: an H200 has 50 MiB, a server CPU up to some 400 MiB
SAMPLE_S = 0.005  # how often resident memory is read on the CPU


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of every run; `median_s` stands for them, `spread_s` is slowest minus fastest."""

    runs_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The middle run, which one slow run does not move."""
        return statistics.median(self.runs_s)

    @property
    def spread_s(self) -> float:
        """Slowest run minus fastest run."""
        return max(self.runs_s) - min(self.runs_s)


@dataclass(frozen=True)
class Measurement:
    """One model generating: how long the prompt took, how long every further token took, and the memory at its peak."""

    prompt_tokens: int
    new_tokens: int
    first_token: Timing
    per_token: Timing
    peak_bytes: int
    peak_of: str

    @property
    def first_token_s(self) -> float:
        """Median seconds from the call to the first new token: the prefill."""
        return self.first_token.median_s

    @property
    def per_token_s(self) -> float:
        """Median over the runs of the mean seconds a further token: the decode."""
        return self.per_token.median_s


class _Clock:
    """A transformers streamer that notes when each token comes out."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def measure_generation(loaded, *, prompt_tokens: int, new_tokens: int, repeats: int = 3) -> Measurement:
    """Time `generate` of transformers, greedy and with its own cache, prefill apart from decode.

    One run before the timed ones warms up and takes the memory, so that sampling disturbs no clock. The prompt is of
    random tokens with a fixed seed, and the end token is held back, so every run does the same work. On Apple's GPU
    transformers hands tokens out one step late, so the first token's time holds one decode step.

    Args:
        loaded: what `load()` returns; its `model` is used.
        prompt_tokens: length of the prompt.
        new_tokens: tokens to generate, at least 2: the first belongs to the prefill.
        repeats: timed runs.

    Returns:
        times as medians with every run kept, and the peak: on CUDA the bytes that tensors held ("CUDA tensors", weights
        included), elsewhere the resident memory of this whole process ("process"), Python and libraries included.

    Raises:
        ValueError: a count below its smallest value.
    """
    for name, value, least in (
        ("prompt_tokens", prompt_tokens, 1),
        ("new_tokens", new_tokens, 2),
        ("repeats", repeats, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}: expected at least {least}")
    model = loaded.model
    random = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.config.vocab_size, (1, prompt_tokens), generator=random).to(model.device)

    def run() -> list[float]:
        clock = _Clock()
        start = time.perf_counter()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            pad_token_id=0,
            streamer=clock,
        )
        return [moment - start for moment in clock.times[1:]]  # the streamer is handed the prompt first

    peak = peak_bytes(run, model.device)
    times = [run() for _ in range(repeats)]
    return Measurement(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        first_token=Timing(tuple(run_s[0] for run_s in times)),
        per_token=Timing(tuple((run_s[-1] - run_s[0]) / (new_tokens - 1) for run_s in times)),
        peak_bytes=peak,
        peak_of="CUDA tensors" if model.device.type == "cuda" else "process",
    )


def time_callable(function: Callable[[], object], *, repeats: int = 5, device="cpu") -> Timing:
    """Run a callable once to warm up, then time it; on CUDA each run waits until the card is done.

    >>> len(time_callable(lambda: sum(range(1000)), repeats=3).runs_s)
    3
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}: expected at least 1")
    wait = _waiter(device)
    runs_s = []
    for _ in range(repeats + 1):
        wait()
        start = time.perf_counter()
        function()
        wait()
        runs_s.append(time.perf_counter() - start)
    return Timing(tuple(runs_s[1:]))


def time_in_turns(functions: Mapping[Hashable, Callable[[], object]], *, repeats: int = 5) -> dict[Hashable, Timing]:
    """Time several callables on the CPU, each once a round after a round of warm-up, so that a slow minute meets all.

    Every round begins with another, so that none always follows the same.

    >>> timings = time_in_turns({"one": lambda: sum(range(10)), "other": lambda: sum(range(1000))}, repeats=3)
    >>> [len(timing.runs_s) for timing in timings.values()]
    [3, 3]
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}: expected at least 1")
    names = list(functions)
    runs_s = {name: [] for name in names}
    for number in range(repeats + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            functions[name]()
            runs_s[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(runs[1:])) for name, runs in runs_s.items()}


def compare(one: Timing, other: Timing) -> dict[str, float]:
    """How many times as long one took as the other, round by round: what slows a whole round falls out.

    >>> compare(Timing((2.0, 8.0, 3.0)), Timing((1.0, 2.0, 1.0)))
    {'ratio': 3.0, 'least': 2.0, 'largest': 4.0}
    """
    ratios = [mine / theirs for mine, theirs in zip(one.runs_s, other.runs_s, strict=True)]
    return {"ratio": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)}


def peak_bytes(function: Callable[[], object], device="cpu") -> int:
    """The most memory in use while a callable runs, what was in use before it included.

    Args:
        function: called once, without arguments.
        device: on "cuda", the bytes that tensors on that card held at once (`torch.cuda.max_memory_allocated`);
            elsewhere, the resident memory of this process, read every 5 ms: a shorter peak can be missed.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)

    process = psutil.Process()
    peak = process.memory_info().rss
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_S):
            peak = max(peak, process.memory_info().rss)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        function()
    finally:
        done.set()
        sampler.join()
    return max(peak, process.memory_info().rss)


def measure_bandwidth(device="cpu", *, repeats: int = 5) -> float:
    """Bytes a second this device reads from its memory: the sum of a float32 tensor far larger than its caches.

    A decoded token reads every weight once and does little with it. So bytes of the weights over this number is a floor
    for the seconds a token takes. It is what PyTorch reaches with its current threads, not the figure on a data sheet.

    Source: Williams, Waterman and Patterson, "Roofline", Communications of the ACM 52(4), 2009.

    Args:
        device: "cpu", which reads 512 MiB, or a CUDA device, which reads 1 GiB.
        repeats: timed runs; the median counts.
    """
    size = READ_BYTES["cuda" if torch.device(device).type == "cuda" else "cpu"]
    values = torch.ones(size // 4, device=device)
    return size / time_callable(values.sum, repeats=repeats, device=device).median_s


def _waiter(device) -> Callable[[], object]:
    kind = torch.device(device).type
    if kind == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if kind == "mps" else lambda: None
