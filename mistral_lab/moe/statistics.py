"""Statistics of a router's choices: load, balance, repeats, and how many of them a small cache would hit.

N tokens, E experts, A experts per token.
"""

import math
from collections.abc import Sequence

import torch

from ..arguments import check_count
from .experts import WHOLE, Routing, check_indices, route_top_k

ROUTERS = (".mlp.gate", ".feed_forward.router")  # module names in transformers' models and in the lab's Transformer


def load_balancing_loss(logits: Sequence[torch.Tensor], *, num_experts_per_tok: int) -> torch.Tensor:
    """Compute what training adds to the loss so that no expert is left idle.

    It is A where the load is even (2 in Mixtral), and E where all tokens are sure of the same A experts (8). Layers are
    pooled before the product, so it cannot see imbalances that cancel: one layer may use half of the experts, and
    another layer the other half.

    Equation: E · Σ(e) f[e] · P[e], where f[e] is the share of tokens that chose e and P[e] the mean of softmax(l)[e],
        over the tokens of all layers. Gradients flow through P alone: f is a count.
    Source: Fedus et al., "Switch Transformers", arXiv:2101.03961, equations 4 to 6, with A = 1 and a layer at a time.
    Differs: transformers' `load_balancing_loss_func` takes the softmax in the dtype of logits; here it is float32.

    Args:
        logits: (N, E) for each layer, the router's output.
        num_experts_per_tok: A.

    Returns:
        scalar, float32, to be multiplied by a coefficient: 0.02 in Mixtral's published config.

    Raises:
        TypeError, ValueError: as in `route_top_k`, or no layer, no token, or layers with different E.

    >>> alike = torch.tensor([[9.0, 9.0, -99.0, -99.0]] * 5)  # E = 4
    >>> load_balancing_loss([alike], num_experts_per_tok=2)
    tensor(4.)
    >>> load_balancing_loss([alike, alike.flip(1)], num_experts_per_tok=2)  # each as uneven, together even
    tensor(2.)
    """
    if len({tuple(layer.shape[1:]) for layer in logits}) != 1:
        raise ValueError(f"logits has shapes {[tuple(layer.shape) for layer in logits]}: expected (N, E), all of one E")
    pooled = torch.cat(list(logits))
    load = expert_load(route_top_k(pooled, num_experts_per_tok=num_experts_per_tok).indices, pooled.shape[1])
    probabilities = pooled.float().softmax(dim=-1).mean(dim=0)
    return len(load) * num_experts_per_tok * (load * probabilities).sum()


def capture_routing(model: torch.nn.Module, input_ids: torch.Tensor) -> list[Routing]:
    """Run a model once and record where each layer sends each token; the model stays as it was.

    Routers are the modules named `...mlp.gate` (transformers) or `...feed_forward.router` (the lab's Transformer). A
    hook reads the logits that each of them returns, alone or as the first of several results; it is removed whatever
    happens. `route_top_k` makes the choice, with the model's `config.num_experts_per_tok`. The model runs without
    gradients, and in training mode if that is its mode.

    Args:
        model: of transformers or of this lab, with experts; called with the token ids alone.
        input_ids: (B, T) whole numbers, on the device of the model.

    Returns:
        for each layer, the Routing of N = B·T tokens, one sequence after the other.

    Raises:
        ValueError: a model without routers, or input_ids of another rank or dtype, or empty.
    """
    if input_ids.ndim != 2 or input_ids.numel() == 0 or input_ids.dtype not in WHOLE:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)} in {input_ids.dtype}: expected integers (B, T)")
    routers = [module for name, module in model.named_modules() if name.endswith(ROUTERS)]
    if not routers:
        raise ValueError(f"{type(model).__name__} has no experts: expected modules named *{' or *'.join(ROUTERS)}")
    logits: list[torch.Tensor] = []

    def note(module, inputs, output) -> None:
        logits.append((output[0] if isinstance(output, tuple) else output).flatten(end_dim=-2))

    hooks = [router.register_forward_hook(note) for router in routers]
    try:
        with torch.no_grad():
            model(input_ids)
    finally:
        for hook in hooks:
            hook.remove()
    return [route_top_k(layer, num_experts_per_tok=model.config.num_experts_per_tok) for layer in logits]


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
    """Compute the share of tokens, from the second on, that choose an expert again which the token before has chosen.

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
    """Count how often an expert is in a cache in which a layer keeps the `kept` experts that it used last.

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
