"""Experts, and a sparse layer that computes only those that its tokens are routed to.

N tokens, E experts, A experts per token, d width of the residual stream, f width inside an expert.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from .routing import Routing, check_indices


class Expert(NamedTuple):
    """The weights of one expert: a feed-forward network without biases."""

    gate: torch.Tensor  # (f, d)
    up: torch.Tensor  # (f, d)
    down: torch.Tensor  # (d, f)


def split_experts(gate_up_proj: torch.Tensor, down_proj: torch.Tensor) -> list[Expert]:
    """View the two tensors in which transformers 5 keeps the experts of a layer as experts; nothing is copied.

    Args:
        gate_up_proj: (E, 2f, d), of each expert the rows of gate and then those of up.
        down_proj: (E, d, f).

    Returns:
        E experts.

    Raises:
        ValueError: shapes that do not fit each other.

    >>> experts = split_experts(torch.zeros(8, 6, 2), torch.zeros(8, 2, 3))
    >>> len(experts), experts[0].gate.shape, experts[0].down.shape
    (8, torch.Size([3, 2]), torch.Size([2, 3]))
    """
    E, d, f = down_proj.shape if down_proj.ndim == 3 else (0, 0, 0)
    if E == 0 or gate_up_proj.shape != (E, 2 * f, d):
        raise ValueError(
            f"gate_up_proj has shape {tuple(gate_up_proj.shape)} and down_proj {tuple(down_proj.shape)}: "
            "expected (E, 2f, d) and (E, d, f)"
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
    f, d = experts[0].gate.shape[0], x.shape[1]
    dtype, device = x.dtype, x.device
    expected = Expert((f, d), (f, d), (d, f))
    for number, expert in enumerate(experts):
        for weight, shape in zip(expert, expected, strict=True):
            if weight.shape != shape or weight.dtype != dtype or weight.device != device:
                found = Expert(*(tuple(other.shape) for other in expert))
                raise ValueError(
                    f"experts[{number}] is {found} in {weight.dtype} on {weight.device}: "
                    f"expected {expected} in {dtype} on {device}"
                )
