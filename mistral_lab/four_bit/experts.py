"""The experts of a layer as separate 4-bit matrices, in the place of transformers' two tensors for all of them."""

import torch
from torch import nn
from transformers import MixtralConfig
from transformers.activations import ACT2FN

from .linear import ExactLinear4bit


class FourBitExpert(nn.Module):
    """One expert, w2(silu(w1 x) * w3 x), under the names that Mixtral's checkpoints give its matrices."""

    def __init__(self, dim: int, hidden_dim: int, activation, *, compute_dtype: torch.dtype, double: bool) -> None:
        super().__init__()
        settings = {"compute_dtype": compute_dtype, "double": double}
        self.w1 = ExactLinear4bit(dim, hidden_dim, **settings)
        self.w2 = ExactLinear4bit(hidden_dim, dim, **settings)
        self.w3 = ExactLinear4bit(dim, hidden_dim, **settings)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, dim) -> (N, dim)."""
        return self.w2(self.activation(self.w1(x)) * self.w3(x))


class FourBitExperts(nn.ModuleList):
    """All experts of a layer as separate modules; called like transformers' `MixtralExperts`, whose place they take."""

    def forward(self, x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Send each token through the experts chosen for it; an expert that nobody chose is not touched.

        Args:
            x: (N, dim).
            indices, weights: (N, A), the experts of each token and what their outputs are multiplied by.

        Returns:
            (N, dim).
        """
        out = torch.zeros_like(x)
        for expert in indices.unique().tolist():
            token, choice = torch.where(indices == expert)
            y = self[expert](x[token]) * weights[token, choice, None]
            out.index_add_(0, token, y.to(out.dtype))
        return out


def new_experts(config: MixtralConfig, *, compute_dtype: torch.dtype, double: bool) -> FourBitExperts:
    """Make the experts of one layer, without weights.

    Args:
        config: of the model.
        compute_dtype, double: as in `ExactLinear4bit`.
    """
    shape = (config.hidden_size, config.intermediate_size, ACT2FN[config.hidden_act])
    settings = {"compute_dtype": compute_dtype, "double": double}
    return FourBitExperts([FourBitExpert(*shape, **settings) for _ in range(config.num_local_experts)])
