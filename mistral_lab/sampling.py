"""Which token comes next: temperature, top-p, the draw, and the check of what a caller asks for."""

import math
import numbers

import torch

COLDEST = 1e-6  # logits divided by less could leave the range of float32


def check_sampling(max_new_tokens, temperature, top_p, seed) -> None:
    """Raise one line for the first argument, of those that say how to choose tokens, that is outside its range."""
    for name, value, kind in (
        ("max_new_tokens", max_new_tokens, numbers.Integral),
        ("seed", 0 if seed is None else seed, numbers.Integral),
        ("temperature", temperature, numbers.Real),
        ("top_p", top_p, numbers.Real),
    ):
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = "a whole number" if kind is numbers.Integral else "a number"
            raise TypeError(f"{name} is {value!r}: expected {expected}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: expected at least 1")
    if not (temperature == 0 or COLDEST <= temperature < math.inf):
        raise ValueError(f"temperature is {temperature}: expected 0 (greedy) or a number from {COLDEST} on")
    if seed is not None and not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed is {seed}: expected a number of 64 bits")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: expected a number above 0 and up to 1")


def choose_token(
    logits: torch.Tensor, temperature: float, top_p: float, random: torch.Generator | None
) -> torch.Tensor:
    """Choose the next token of each sequence: the likeliest at temperature 0, otherwise one that top-p keeps.

    Source, for top-p: Holtzman et al., arXiv:1904.09751, section 3.1.

    Args:
        logits: (B, V).
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: the least probability that the candidates must reach together, in (0, 1].
        random: what is drawn from; None is PyTorch's own state.

    Returns:
        (B,) int64.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if top_p < 1:
        rising, order = logits.sort(dim=-1)
        unlikely = rising.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        unlikely[:, -1] = False  # the likeliest stays, whatever rounding makes of the sum
        logits = logits.masked_fill(unlikely.scatter(1, order, unlikely), float("-inf"))
    return logits.softmax(dim=-1).multinomial(1, generator=random)[:, 0]
