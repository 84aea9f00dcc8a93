"""The router: which experts a token goes through and with what weight, here and in a whole model.

N tokens, E experts, A experts per token.
"""

from typing import NamedTuple

import torch

from ..arguments import check_count

WHOLE = (torch.int64, torch.int32)
ROUTERS = (".mlp.gate", ".feed_forward.router")  # module names in transformers' models and in the lab's Transformer


class Routing(NamedTuple):
    """For every token, the experts that it goes through and the weight of each, the heaviest first."""

    indices: torch.Tensor  # (N, A) int64
    weights: torch.Tensor  # (N, A) float32; each row sums to 1


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
    >>> torch.nn.functional.normalize(logits.softmax(dim=-1)[:, :2], p=1)  # 4/7 and 2/7, divided by their sum 6/7
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
