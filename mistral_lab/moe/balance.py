"""The loss that keeps a router from leaving experts idle.

N tokens, E experts, A experts per token.
"""

from collections.abc import Sequence

import torch

from .routing import route_top_k
from .statistics import expert_load


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
