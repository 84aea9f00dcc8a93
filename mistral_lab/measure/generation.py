"""A model that generates: time to the first token, time of every further one, and memory at its peak."""

import json
import math
import statistics
import time
from dataclasses import asdict, dataclass

import torch

from ..arguments import check_count
from .machine import Machine
from .peaks import peak_memory
from .progress import with_progress
from .timing import Timing, waiter


@dataclass(frozen=True)
class Measurement:
    """One model generating under one setting, every sample kept, and what it ran on.

    Args:
        prompt_tokens: length of each prompt.
        batch: sequences at once.
        new_tokens: tokens generated for each.
        samples_s: a tuple a run, of seconds a token: from the call to the first, then from one to the next.
        peak_bytes: memory at its peak; `peak_of` says of what: "CUDA tensors", or the whole "process".
        peak_reserved_bytes: on CUDA, what PyTorch's allocator had taken for them; None elsewhere.
        dtype: of the model's activations.
        machine: hardware and versions.

    Raises:
        TypeError, ValueError: counts or samples that no measurement can have.
    """

    prompt_tokens: int
    batch: int
    new_tokens: int
    samples_s: tuple[tuple[float, ...], ...]
    peak_bytes: int
    peak_reserved_bytes: int | None
    peak_of: str
    dtype: str
    machine: Machine

    def __post_init__(self) -> None:
        check_counts(self.prompt_tokens, self.new_tokens, self.batch, len(self.samples_s))
        check_count("peak_bytes", self.peak_bytes)
        if any(len(run_s) != self.new_tokens for run_s in self.samples_s):
            raise ValueError(f"samples_s has runs of other lengths: expected {self.new_tokens}, one sample a new token")
        if not all(math.isfinite(sample) and sample >= 0 for run_s in self.samples_s for sample in run_s):
            raise ValueError("samples_s has a sample that is negative or not finite: expected seconds")

    @property
    def first_token(self) -> Timing:
        """Seconds from the call to the first new token, a run: the prefill."""
        return Timing(tuple(run_s[0] for run_s in self.samples_s))

    @property
    def per_token(self) -> Timing:
        """Mean seconds a further token, a run: the decode."""
        return Timing(tuple(statistics.fmean(run_s[1:]) for run_s in self.samples_s))

    @property
    def each_token(self) -> Timing:
        """Seconds of every further token of every run: its spread shows single slow steps."""
        return Timing(tuple(sample for run_s in self.samples_s for sample in run_s[1:]))

    @property
    def first_token_s(self) -> float:
        """Median over the runs of the seconds to the first new token."""
        return self.first_token.median_s

    @property
    def per_token_s(self) -> float:
        """Median over the runs of the mean seconds a further token."""
        return self.per_token.median_s

    def to_json(self) -> str:
        """One JSON object, from which `from_json` makes an equal Measurement."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Measurement":
        """Read what `to_json` wrote.

        Raises:
            ValueError: text that it cannot have written.
        """
        try:
            values = json.loads(text)
            samples_s = tuple(tuple(run_s) for run_s in values["samples_s"])
            return cls(**values | {"samples_s": samples_s, "machine": Machine(**values["machine"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"this is no Measurement in JSON ({error})") from None


class _Clock:
    """A transformers streamer that notes when each token comes out."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def measure_generation(loaded, *, prompt_tokens: int, new_tokens: int, batch: int = 1, repeats: int = 3) -> Measurement:
    """Time `generate` of transformers, greedy and with its own cache, prefill apart from decode.

    One run before the timed ones warms up and takes the memory, so that sampling disturbs no clock. The prompts are of
    random tokens with a fixed seed, and the end token is held back, so every run does the same work. A token's time is
    taken when it has reached the CPU, so the device is done with it. On Apple's GPU transformers hands tokens out one
    step late, so the first token's time holds one decode step.

    Args:
        loaded: what `load()` returns; its `model` is used.
        prompt_tokens: length of each prompt.
        new_tokens: tokens to generate, at least 2: the first belongs to the prefill.
        batch: prompts at once. A step then makes `batch` tokens, and the seconds are those of the step.
        repeats: timed runs.

    Returns:
        every sample, medians, and the peak: on CUDA the bytes that tensors held ("CUDA tensors", weights included),
        elsewhere the resident memory of this whole process ("process"), Python and libraries included.

    Raises:
        TypeError, ValueError: a count that is no whole number, or below its smallest value.
    """
    check_counts(prompt_tokens, new_tokens, batch, repeats)
    model = loaded.model
    random = torch.Generator().manual_seed(0)
    prompts = torch.randint(model.config.vocab_size, (batch, prompt_tokens), generator=random).to(model.device)
    attention_mask = torch.ones_like(prompts)
    wait = waiter(model.device)

    def run() -> tuple[float, ...]:
        clock = _Clock()
        wait()
        start = time.perf_counter()
        model.generate(
            prompts,
            attention_mask=attention_mask,
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            pad_token_id=0,
            streamer=clock,
        )
        moments = [start, *clock.times[1:]]  # the streamer is handed the prompt first
        return tuple(after - before for before, after in zip(moments, moments[1:], strict=False))

    samples_s = []
    for number in with_progress(repeats + 1, "Measuring generation"):
        if number == 0:
            peak = peak_memory(run, model.device)
        else:
            samples_s.append(run())
    return Measurement(
        prompt_tokens=prompt_tokens,
        batch=batch,
        new_tokens=new_tokens,
        samples_s=tuple(samples_s),
        peak_bytes=peak.bytes,
        peak_reserved_bytes=peak.reserved_bytes,
        peak_of=peak.of,
        dtype=dtype_name(model.dtype),
        machine=Machine.here(model.device),
    )


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def check_counts(prompt_tokens: int, new_tokens: int, batch: int, repeats: int) -> None:
    """Raise TypeError or ValueError for a count that measures nothing."""
    for name, value in (
        ("prompt_tokens", prompt_tokens),
        ("new_tokens", new_tokens),
        ("batch", batch),
        ("repeats", repeats),
    ):
        check_count(name, value)
    if new_tokens < 2:
        raise ValueError(f"new_tokens is {new_tokens}: expected at least 2, the first belongs to the prefill")
