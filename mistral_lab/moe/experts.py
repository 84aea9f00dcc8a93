"""Routing a token to its experts, and computing only those.

N tokens, E experts, A experts per token, d width of the residual stream, h width inside an expert.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from ..arguments import check_count

WHOLE = (torch.int64, torch.int32)


class Routing(NamedTuple):
    """For every token, the experts that it goes through and the weight of each, the heaviest first."""

    indices: torch.Tensor  # (N, A) int64
    weights: torch.Tensor  # (N, A) float32; each row sums to 1


class Expert(NamedTuple):
    """The weights of one expert: a feed-forward network without biases."""

    gate: torch.Tensor  # (h, d)
    up: torch.Tensor  # (h, d)
    down: torch.Tensor  # (d, h)


def route_top_k(logits: torch.Tensor, *, num_experts_per_tok: int) -> Routing:
    """Choose each token's A experts, those of the largest logits, and weigh them by a softmax over these A alone.

    A softmax over all E experts, divided after the choice by the sum of the chosen, gives the same weights: the sum
    over all E cancels. It is computed that way here, as in transformers, so that the last digit agrees too.

    Equation: with T the A experts of the largest logits l, w[e] = exp l[e] / Σ(f in T) exp l[f]
        = p[e] / Σ(f in T) p[f], where p = softmax(l) over all E.
    Source: arXiv:2401.04088, section 2.1.

    Args:
        logits: (N, E), floating-point, the router's output.
        num_experts_per_tok: A, at most E.

    Returns:
        indices (N, A), the largest logit first, and weights (N, A), computed in float32 whatever the dtype of logits.

    Raises:
        TypeError: A is not a whole number.
        ValueError: A outside 1 ... E, logits of another rank or dtype, or with NaN or infinities that have no softmax.

    >>> logits = torch.tensor([[4.0, 2.0, 1.0]]).log()  # p = 4/7, 2/7, 1/7
    >>> route_top_k(logits, num_experts_per_tok=2)  # 4/6 and 2/6
    Routing(indices=tensor([[0, 1]]), weights=tensor([[0.6667, 0.3333]]))
    >>> functional.normalize(logits.softmax(dim=-1)[:, :2], p=1)  # 4/7 and 2/7, divided by their sum 6/7
    tensor([[0.6667, 0.3333]])
    """
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"logits has shape {tuple(logits.shape)} in {logits.dtype}: expected floating-point (N, E)")
    check_count("num_experts_per_tok", num_experts_per_tok)
    E = logits.shape[1]
    if num_experts_per_tok > E:
        raise ValueError(f"num_experts_per_tok is {num_experts_per_tok}: expected at most {E}, the experts in logits")
    indices = logits.topk(num_experts_per_tok, dim=-1).indices
    chosen = logits.float().softmax(dim=-1).gather(-1, indices)
    weights = chosen / chosen.sum(dim=-1, keepdim=True)
    if weights.isnan().any():
        token = int(weights.isnan().any(dim=-1).nonzero()[0])
        raise ValueError(f"logits[{token}] is {logits[token].tolist()}: expected numbers that have a softmax")
    return Routing(indices, weights)


def split_experts(gate_up_proj: torch.Tensor, down_proj: torch.Tensor) -> list[Expert]:
    """View the two tensors in which transformers 5 keeps the experts of a layer as experts; nothing is copied.

    Args:
        gate_up_proj: (E, 2h, d), of each expert the rows of gate and then those of up.
        down_proj: (E, d, h).

    Returns:
        E experts.

    Raises:
        ValueError: shapes that do not fit each other.

    >>> experts = split_experts(torch.zeros(8, 6, 2), torch.zeros(8, 2, 3))
    >>> len(experts), experts[0].gate.shape, experts[0].down.shape
    (8, torch.Size([3, 2]), torch.Size([2, 3]))
    """
    E, d, h = down_proj.shape if down_proj.ndim == 3 else (0, 0, 0)
    if E == 0 or gate_up_proj.shape != (E, 2 * h, d):
        raise ValueError(
            f"gate_up_proj has shape {tuple(gate_up_proj.shape)} and down_proj {tuple(down_proj.shape)}: "
            "expected (E, 2h, d) and (E, d, h)"
        )
    return list(map(Expert, *gate_up_proj.chunk(2, dim=1), down_proj))


def expert_forward(x: torch.Tensor, expert: Expert) -> torch.Tensor:
    """Run one expert on every token given: SwiGLU, the feed-forward network of a dense Mistral layer.

    Equation: down · (silu(gate · x) * (up · x)), with silu(z) = z / (1 + exp(-z)).
    Source: Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202, equation 6; arXiv:2401.04088, section 2.1.

    Args:
        x: (n, d), in the dtype of the weights.

    Returns:
        (n, d).

    >>> one = torch.ones(1, 1)
    >>> expert_forward(3 * one, Expert(gate=one, up=2 * one, down=one))  # silu(3) * 6 = 2.8577 * 6
    tensor([[17.1463]])
    """
    hidden = functional.silu(functional.linear(x, expert.gate)) * functional.linear(x, expert.up)
    return functional.linear(hidden, expert.down)


def sparse_experts(x: torch.Tensor, routing: Routing, experts: Sequence[Expert]) -> torch.Tensor:
    """Send every token through its A experts and add up their answers by weight.

    The N·A assignments are sorted by expert, so that an expert meets its tokens as the rows of one matrix:

        indices        [[2, 0], [0, 1], [2, 1]]    tokens 0, 1, 2 with two choices each
        sorted         0  0 | 1  1 | 2  2          an expert 3 would not be read, nor computed
        their tokens   0  1 | 1  2 | 0  2

    Equation: out[n] = Σ(a) weights[n, a] · expert_forward(x[n], experts[indices[n, a]]).
    Source: arXiv:2401.04088, section 2.1; Gale et al., "MegaBlocks", arXiv:2211.15841, for the sorting.
    Differs: transformers' "eager" adds in the dtype of x; here, as in its "grouped_mm", that is done in float32.

    Args:
        x: (N, d), at least one token.
        routing: of these N tokens.
        experts: E of one shape, in the dtype and on the device of x.

    Returns:
        (N, d) in the dtype of x, differentiable.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or an index outside 0 ... E - 1.

    >>> one = torch.ones(1, 1)
    >>> experts = [Expert(gate=one, up=factor * one, down=one) for factor in (2, -1)]
    >>> routing = Routing(torch.tensor([[0, 1]]), torch.tensor([[0.75, 0.25]]))
    >>> sparse_experts(3 * one, routing, experts)  # silu(3) * 3 = 8.5732, times 0.75 · 2 - 0.25 · 1
    tensor([[10.7165]])
    """
    _check_experts(x, routing, experts)
    A = routing.indices.shape[1]
    order = routing.indices.flatten().argsort(stable=True)  # assignment n·A + a is choice a of token n
    counts = routing.indices.flatten().bincount(minlength=len(experts)).tolist()
    tokens_of = (order // A).split(counts)
    chosen = [(tokens, expert) for tokens, expert in zip(tokens_of, experts, strict=True) if len(tokens)]
    answers = torch.cat([expert_forward(x[tokens], expert) for tokens, expert in chosen])  # (N·A, d) by expert
    by_token = answers[order.argsort()].unflatten(0, (-1, A))
    return (by_token * routing.weights[..., None]).sum(dim=1).to(x.dtype)


def check_indices(indices: torch.Tensor, num_experts: int | None = None, *, least_tokens: int = 1) -> None:
    """Refuse indices that are not a choice (N, A) among `num_experts`, for at least `least_tokens` tokens."""
    if indices.ndim != 2 or len(indices) < least_tokens or indices.numel() == 0 or indices.dtype not in WHOLE:
        found = f"indices has shape {tuple(indices.shape)} in {indices.dtype}"
        raise ValueError(f"{found}: expected integers (N, A), N at least {least_tokens}")
    if num_experts is not None:
        check_count("num_experts", num_experts)
        least, most = indices.min().item(), indices.max().item()
        if least < 0 or most >= num_experts:
            raise ValueError(f"indices go from {least} to {most}: expected experts 0 to {num_experts - 1}")


def _check_experts(x: torch.Tensor, routing: Routing, experts: Sequence[Expert]) -> None:
    if x.ndim != 2 or len(x) == 0 or not x.is_floating_point():
        raise ValueError(f"x has shape {tuple(x.shape)} in {x.dtype}: expected floating-point (N, d), N at least 1")
    indices, weights = routing
    check_indices(indices, len(experts))
    if len(indices) != len(x) or weights.shape != indices.shape or {indices.device, weights.device} != {x.device}:
        raise ValueError(
            f"routing has indices {tuple(indices.shape)} on {indices.device} and weights {tuple(weights.shape)} on "
            f"{weights.device}: expected both ({len(x)}, A) on {x.device}, a row for each token of x"
        )
    (h, d), dtype, device = (experts[0].gate.shape[0], x.shape[1]), x.dtype, x.device
    expected = Expert((h, d), (h, d), (d, h))
    for number, expert in enumerate(experts):
        for weight, shape in zip(expert, expected, strict=True):
            if weight.shape != shape or weight.dtype != dtype or weight.device != device:
                found = Expert(*(tuple(other.shape) for other in expert))
                raise ValueError(
                    f"experts[{number}] is {found} in {weight.dtype} on {weight.device}: "
                    f"expected {expected} in {dtype} on {device}"
                )
