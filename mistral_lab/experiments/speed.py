"""Lesson 1: how long a token takes, what it takes at least, and what of it grows with tokens and with layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ..arguments import check_count
from ..config import ModelConfig
from ..loading.forms import quantised_precision
from ..loading.loaded import Loaded
from ..measure import (
    Timing,
    measure_bandwidth,
    measure_generation,
    random_tokens,
    time_callable,
    time_in_turns,
    timed_steps,
)
from ..measure.progress import with_progress
from ..measure.timing import waiter
from ..memory import parameter_counts, weight_parts
from .cutting import only_layers

PROMPT_TOKENS = 128
SIDE = 1024  # of the square matrices whose product measures arithmetic


def held_precision(loaded: Loaded) -> str:
    """Name the form in which a loaded model holds its weights, as `memory` names it."""
    wide = "float32" if loaded.model.dtype == torch.float32 else "bfloat16"
    return quantised_precision(loaded.model.config) or wide


def pass_bytes(config: ModelConfig, precision: str) -> int:
    """Count the bytes of weights that one pass for one token reads: all but the rows of the embedding that it skips.

    Where the output layer is the embedding again, all of it is read. Keys and values of earlier tokens come on top.

    Args:
        config: of a dense model; a mixture also skips experts.
        precision: one of `memory.PRECISIONS`.

    Raises:
        ValueError: the model has experts.

    >>> from mistral_lab import PRESETS, memory
    >>> mistral = PRESETS["mistral-7b-v0.1"]
    >>> round(100 * pass_bytes(mistral, "bfloat16") / memory.weight_bytes(mistral, "bfloat16"), 1)
    98.2
    """
    if config.num_experts:
        raise ValueError(f"the model has {config.num_experts} experts, of which a token skips most: give a dense one")
    parts = {part: size.total for part, size in weight_parts(config, precision).items()}
    if parameter_counts(config).lm_head:
        parts["embedding"] //= config.vocab_size  # one row
    return sum(parts.values())


def pass_parameters(config: ModelConfig) -> int:
    """Count the parameters that one pass for one token reads: all but the rows of the embedding that it skips."""
    counts = parameter_counts(config)
    return counts.total - (counts.embedding - config.dim if counts.lm_head else 0)


@dataclass(frozen=True)
class TokenTimes:
    """What a token of a prompt and a new token took, and what bounds them from below.

    Args:
        prompt_tokens: length of the prompt that was read in one pass.
        read_bytes: of the weights, in a pass.
        read_parameters: the weights whose bytes those are.
        bytes_per_s: at which the same device read its memory in the same minute.
        prompt: seconds per token of the prompt, one per run.
        new: seconds per new token, one per run.
    """

    prompt_tokens: int
    read_bytes: int
    read_parameters: int
    bytes_per_s: float
    prompt: Timing
    new: Timing

    @property
    def least_s(self) -> tuple[float, float]:
        """Seconds that reading takes per token of the prompt, which share one pass, and per new token."""
        one_pass = self.read_bytes / self.bytes_per_s
        return one_pass / self.prompt_tokens, one_pass

    @property
    def bits(self) -> float:
        """Bits of a weight as it is held, on average."""
        return 8 * self.read_bytes / self.read_parameters

    @property
    def sentence(self) -> str:
        """What was found, for the caption of a picture."""
        new, prompt = (_milliseconds(timing.median_s) for timing in (self.new, self.prompt))
        return (
            f"A new token took {new}, a token of the prompt {prompt}, because {self.prompt_tokens} of "
            f"them share one pass (thin bars: fastest to slowest of {len(self.new.runs_s)} runs; a pass reads "
            f"{self.read_bytes / 1e6:,.1f} MB, and memory delivered {self.bytes_per_s / 1e9:.0f} GB/s)."
        )


def _milliseconds(seconds: float) -> str:
    """The same text as in the picture above the sentence, whose module may not be imported here."""
    amount = seconds * 1e3
    return f"{amount:,.0f} ms" if amount >= 100 else f"{amount:.2g} ms"


def time_tokens(
    loaded: Loaded, *, prompt_tokens: int = PROMPT_TOKENS, new_tokens: int = 32, repeats: int = 3
) -> TokenTimes:
    """Time `generate` of transformers, and the speed of memory beside it, on the device that holds the model.

    Args:
        loaded: a dense model.
        prompt_tokens: length of the prompt, random tokens with a fixed seed.
        new_tokens: made after it, at least 2.
        repeats: timed runs, after one that warms up.

    Raises:
        TypeError, ValueError: counts with which nothing can be measured, or a mixture of experts.
    """
    read = pass_bytes(loaded.config, held_precision(loaded))
    bytes_per_s = measure_bandwidth(loaded.model.device)
    found = measure_generation(loaded, prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats)
    return TokenTimes(
        prompt_tokens=prompt_tokens,
        read_bytes=read,
        read_parameters=pass_parameters(loaded.config),
        bytes_per_s=bytes_per_s,
        prompt=Timing(tuple(seconds / prompt_tokens for seconds in found.first_token.runs_s)),
        new=found.per_token,
    )


@dataclass(frozen=True)
class PassTimes:
    """How long one pass takes with more and more tokens in it, and what bounds it from below.

    Args:
        tokens: in a pass, one count per entry.
        runs_s: (rounds, counts) seconds of a pass.
        read_s: seconds in which memory delivers the weights once.
        compute_s: (counts,) seconds that the multiplications and additions take at the speed of a large product.
    """

    tokens: tuple[int, ...]
    runs_s: np.ndarray
    read_s: float
    compute_s: np.ndarray

    @property
    def median_s(self) -> np.ndarray:
        """(counts,) the median over the rounds."""
        return np.median(self.runs_s, axis=0)


def time_passes(loaded: Loaded, *, tokens: Sequence[int] = (1, 8, 32, 128), rounds: int = 7) -> PassTimes:
    """Time one pass through the model for several counts of tokens, in rounds that begin with another count each time.

    A pass takes two operations per weight and token, a multiplication and an addition. The two bounds are the halves of
    the roofline model; neither counts keys, values and attention.

    Source: Williams, Waterman and Patterson, "Roofline", Communications of the ACM 52(4), 2009.

    Args:
        loaded: a dense model.
        tokens: counts, each read from an empty cache; the tokens are random with a fixed seed.
        rounds: timed ones, after one that warms up.
    """
    for count in tokens:
        check_count("tokens", count)
    model, wait = loaded.model, waiter(loaded.model.device)

    def one_pass(prompt: torch.Tensor) -> None:
        wait()
        with torch.no_grad():
            model(prompt, use_cache=False)
        wait()

    prompts = {count: random_tokens(model, count).to(model.device) for count in tokens}
    timings = time_in_turns({count: partial(one_pass, prompt) for count, prompt in prompts.items()}, repeats=rounds)
    counts = parameter_counts(loaded.config)
    weights = counts.total - (counts.embedding if counts.lm_head else 0)  # a row of the embedding is only looked up
    return PassTimes(
        tokens=tuple(tokens),
        runs_s=np.array([timings[count].runs_s for count in tokens]).T,
        read_s=pass_bytes(loaded.config, held_precision(loaded)) / measure_bandwidth(model.device),
        compute_s=2 * weights * np.array(tokens) / operations_per_s(model.device, model.dtype),
    )


def operations_per_s(device: str | torch.device, dtype: torch.dtype, *, repeats: int = 5) -> float:
    """Measure multiplications and additions per second in a large matrix product, the most that a pass can reach."""
    left, right = (torch.ones(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    return 2 * SIDE**3 / time_callable(partial(torch.mm, left, right), repeats=repeats, device=device).median_s


@dataclass(frozen=True)
class LayerTimes:
    """How long a token takes in the same model with fewer layers: what is left at none does not grow with them.

    Args:
        layers: kept, one count per entry.
        pass_s: (rounds, counts) seconds of the fastest pass for one token after a prompt.
        token_s: (rounds, counts) seconds of the fastest token of `generate`, which calls that pass.
    """

    layers: tuple[int, ...]
    pass_s: np.ndarray
    token_s: np.ndarray

    def fastest_s(self, which: str) -> np.ndarray:
        """(counts,) the fastest round of a "pass" or a "token": what other programs take of the machine only adds."""
        return np.min({"pass": self.pass_s, "token": self.token_s}[which], axis=0)

    def line(self, which: str) -> tuple[float, float]:
        """Fit a line to the fastest rounds of a "pass" or a "token": seconds without a layer, and seconds per layer."""
        each, fixed = np.polyfit(self.layers, self.fastest_s(which), 1)
        return float(fixed), float(each)


def time_layers(
    loaded: Loaded,
    *,
    layers: Sequence[int] = (1, 2, 4),
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = 8,
    rounds: int = 5,
) -> LayerTimes:
    """Time one pass and one token of `generate` while the model has only its first layers, in rounds of all counts.

    What the cut model answers means nothing, and its work is that of a model with so few layers. Afterwards the model
    is as it was.

    Args:
        loaded: a model of transformers.
        layers: counts of layers, at least two different ones, none above the model's own.
        prompt_tokens, new_tokens: of each run; the tokens are random with a fixed seed.
        rounds: timed ones, after one that warms up.

    Raises:
        ValueError: counts of layers that the model does not have, or fewer than two.
    """
    if len(set(layers)) < 2 or not all(1 <= count <= loaded.config.n_layers for count in layers):
        raise ValueError(
            f"layers is {tuple(layers)}: expected two or more counts from 1 to {loaded.config.n_layers}, as it has"
        )
    model = loaded.model
    prompt = random_tokens(model, prompt_tokens)
    chosen = random_tokens(model, new_tokens, seed=1)[0].tolist()
    pass_s, token_s = (np.empty((rounds + 1, len(layers))) for _ in range(2))
    for number in with_progress(rounds + 1, "Cutting layers"):
        for place in np.roll(np.arange(len(layers)), number):  # each round begins with another count
            with only_layers(model, 0, layers[place]):
                token_s[number, place] = min(step.seconds for step in timed_steps(model, prompt, chosen)[1:])
                pass_s[number, place] = _cached_pass_s(model, prompt, repeats=new_tokens)
    return LayerTimes(tuple(layers), pass_s[1:], token_s[1:])


def _cached_pass_s(model, prompt: torch.Tensor, *, repeats: int) -> float:
    """The fastest seconds of one pass for one token, after a prompt whose keys and values are kept."""
    prompt = prompt.to(model.device)
    with torch.no_grad():
        cache = model(prompt, use_cache=True).past_key_values
        step = partial(model, prompt[:, -1:], past_key_values=cache, use_cache=True)
        return min(time_callable(step, repeats=repeats, device=model.device).runs_s)
