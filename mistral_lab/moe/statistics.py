"""Statistics of a router's choices: load, repeats, and how many of them a small cache would hit.

N tokens, E experts, A experts per token.
"""

import math

import torch

from ..arguments import check_count
from .routing import check_indices


def expert_load(indices: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Compute the share of the assignments that each expert gets.

    Equation: load[e] = (number of n, a with indices[n, a] = e) / (N·A).
    Source: the f of Fedus et al., "Switch Transformers", arXiv:2101.03961, equation 5, divided by A.

    Args:
        indices: (N, A) whole numbers, the experts of each token.
        num_experts: E.

    Returns:
        (E,) float32, which sums to 1.

    Raises:
        TypeError: num_experts is not a whole number.
        ValueError: indices of another rank or dtype, or empty, or outside 0 ... E - 1.

    >>> expert_load(torch.tensor([[0, 1], [0, 2]]), num_experts=4)
    tensor([0.5000, 0.2500, 0.2500, 0.0000])
    """
    check_indices(indices, num_experts)
    return indices.flatten().bincount(minlength=num_experts) / indices.numel()


def load_entropy(load: torch.Tensor) -> float:
    """Measure how evenly a load is spread: log2 E where all shares are equal, 0 where one expert has all.

    Equation: -Σ(e) load[e] · log2 load[e], with 0 · log2 0 = 0.
    Source: Shannon, "A Mathematical Theory of Communication", 1948, section 6.

    Args:
        load: (E,) shares that sum to 1 within 1e-4.

    Returns:
        bits, from 0 to log2 E.

    Raises:
        ValueError: load of another rank, with a negative share or NaN, or with another sum.

    >>> load_entropy(torch.tensor([0.25, 0.25, 0.25, 0.25])), load_entropy(torch.tensor([0.5, 0.5, 0.0, 0.0]))
    (2.0, 1.0)
    """
    shares = load.tolist()
    if load.ndim != 1 or not (load >= 0).all() or not math.isclose(sum(shares), 1, abs_tol=1e-4):
        raise ValueError(f"load is {shares}: expected shares (E,) that sum to 1")
    return sum(-share * math.log2(share) for share in shares if share > 0)


def repeat_rate(indices: torch.Tensor, *, any_choice: bool = False) -> float:
    """Compute the share of tokens, from the second on, that choose an expert which the token before chose too.

    What counts is the first choice of both, or any choice of both. Compare with uniform routing, here E = 8 and A = 2:

        first choice   1/E = 12.5 %
        any choice     1 - C(E - A, A) / C(E, A) = 1 - C(6, 2) / C(8, 2) = 1 - 15/28 = 46.4 %

    Source: arXiv:2401.04088, section 5 and table 5.

    Args:
        indices: (N, A) whole numbers, the first choice first, of one sequence of at least two tokens.
        any_choice: whether one expert that both tokens share among their A is enough.

    Returns:
        a share of the N - 1 pairs.

    Raises:
        ValueError: indices of another rank or dtype, or of fewer than two tokens.

    >>> indices = torch.tensor([[0, 1], [0, 2], [3, 0], [4, 5]])  # the first choice again, another one again, none
    >>> round(repeat_rate(indices), 3), round(repeat_rate(indices, any_choice=True), 3)
    (0.333, 0.667)
    """
    check_indices(indices, least_tokens=2)
    counted = indices if any_choice else indices[:, :1]
    shared = (counted[:-1, :, None] == counted[1:, None, :]).flatten(1).any(dim=1)
    return shared.sum().item() / len(shared)


def co_activation(indices: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Find which experts go together: for any two, the share of the tokens that chose both.

    Under uniform routing A(A - 1) / (E(E - 1)) for two experts, and A/E on the diagonal, where both are the same.

    Equation: together[e, f] = (number of n with both e and f in indices[n]) / N.

    Args:
        indices: (N, A) whole numbers, the experts of each token, no two alike.
        num_experts: E.

    Returns:
        (E, E) float32, symmetric.

    Raises:
        TypeError, ValueError: as in `expert_load`.

    >>> co_activation(torch.tensor([[0, 1], [2, 0]]), num_experts=3).tolist()
    [[1.0, 0.5, 0.5], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]
    """
    check_indices(indices, num_experts)
    chosen = torch.zeros(len(indices), num_experts, device=indices.device).scatter(1, indices.long(), 1.0)
    return chosen.T @ chosen / len(indices)


def lru_hit_rate(indices: torch.Tensor, *, kept: int) -> float:
    """Compute the share of choices found in a layer's cache of the `kept` experts that it used last.

    A token's A experts are looked up together, in the cache that the token before left. Afterwards they are the most
    recent ones, the first choice ahead of the second. The cache starts empty, and the misses of the start count. Under
    uniform routing a full cache of k experts hits a share of k/E: 25 % for 2 of 8, 50 % for 4 of 8.

    Source: Eliseev and Mazur, "Fast Inference ... with Offloading", arXiv:2312.17238, section 3.1.

    Args:
        indices: (N, A) whole numbers, the first choice first, of tokens in their order.
        kept: k, the experts that the cache holds.

    Returns:
        a share of the N·A look-ups.

    Raises:
        TypeError: kept is not a whole number.
        ValueError: kept below 1, or indices of another rank or dtype, or empty.

    >>> indices = torch.tensor([[0, 1], [1, 2], [0, 1]])  # misses 0 and 1, hits 1; without a third place 0 is gone
    >>> lru_hit_rate(indices, kept=2) == 2 / 6, lru_hit_rate(indices, kept=3) == 3 / 6
    (True, True)
    """
    check_indices(indices)
    check_count("kept", kept)
    hits, cache = 0, []  # the most recent expert first
    for chosen in indices.tolist():
        hits += sum(expert in cache for expert in chosen)
        cache = (chosen + [expert for expert in cache if expert not in chosen])[:kept]
    return hits / indices.numel()
