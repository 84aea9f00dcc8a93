"""Which token comes next: temperature, top-p and the draw, for all who need them.

V vocabulary.
"""

import math
import numbers

import torch

COLDEST = 1e-6  # the lowest temperature above 0: logits divided by less could leave the range of float32


def check_sampling(max_new_tokens, temperature, top_p, seed) -> None:
    """Refuse the first of the arguments of generation that is outside its range.

    Raises:
        TypeError: not a number, or not a whole number where one is expected.
        ValueError: a number outside its range.
    """
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


def kept_by_top_p(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Say which tokens top-p keeps: the fewest of the likeliest that reach the probability `top_p` together.

    The token that crosses the line stays. Counted from the other end, as transformers' `TopPLogitsWarper` does: a token
    is left out where it and all less likely tokens together reach at most 1 - top_p. Where only some tokens of one same
    logit are needed, it is left open which of them stay. Where the likeliest reach `top_p` exactly, rounding decides
    whether one more stays.

    Source: Holtzman et al., arXiv:1904.09751, section 3.1.

    Args:
        logits: (..., V), already divided by the temperature.
        top_p: the least probability that the kept tokens must reach together, in (0, 1]; 1 keeps every token.

    Returns:
        (..., V) bool, True for at least one token of each row.

    >>> kept_by_top_p(torch.tensor([0.2, 0.5, 0.3]).log(), 0.6).tolist()  # 0.5 alone is too little, 0.5 + 0.3 is enough
    [False, True, True]
    """
    if top_p == 1:
        return torch.ones_like(logits, dtype=torch.bool)
    rising, order = logits.sort(dim=-1)
    kept = rising.softmax(dim=-1).cumsum(dim=-1) > 1 - top_p
    kept[..., -1] = True  # the likeliest stays, whatever rounding makes of the sum
    return kept.scatter(-1, order, kept)


def token_probabilities(logits: torch.Tensor, *, temperature: float, top_p: float) -> torch.Tensor:
    """Compute the probability with which each token is drawn: temperature first, then top-p.

    Equation: p = softmax(logits / temperature), where top-p keeps a token, and 0 elsewhere; scaled to sum to 1.

    Args:
        logits: (..., V).
        temperature: 0 gives the likeliest token all the probability.
        top_p: in (0, 1], as in `kept_by_top_p`.

    Returns:
        (..., V), in float64 where logits are, otherwise in float32.

    >>> logits = torch.tensor([0.2, 0.5, 0.3]).log()
    >>> token_probabilities(logits, temperature=1.0, top_p=0.6)  # 0.5 / 0.8 and 0.3 / 0.8
    tensor([0.0000, 0.6250, 0.3750])
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    logits = logits / temperature
    return logits.masked_fill(~kept_by_top_p(logits, top_p), -math.inf).softmax(dim=-1)


def choose_token(
    logits: torch.Tensor, temperature: float, top_p: float, random: torch.Generator | None
) -> torch.Tensor:
    """Choose the next token of each sequence: draw it by its probability, or take the likeliest at temperature 0.

    Args:
        logits: (B, V).
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: in (0, 1], as in `kept_by_top_p`.
        random: what is drawn from; None is PyTorch's own state.

    Returns:
        (B,) int64.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = token_probabilities(logits, temperature=temperature, top_p=top_p)
    return probabilities.multinomial(1, generator=random)[:, 0]
