"""The parts of the decoder: norm, rotation, attention, feed-forward network or experts, and the layer made of them.

B batch, T new tokens, S keys, H query heads, K key and value heads, D head_dim, d dim, E experts, A experts per token.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

from ..attention import windowed_attention
from ..cache import RollingCache
from ..config import ModelConfig
from ..moe import Expert, expert_forward, route_top_k, sparse_experts


class SharedInputs(NamedTuple):
    """What every layer receives besides the residual stream, the same for all layers of one forward pass."""

    cos: torch.Tensor  # (B or 1, T, 1, D), as `apply_rotation` takes them
    sin: torch.Tensor
    cache: RollingCache | None
    mask: torch.Tensor | None  # over the cache's keys, (T, S) or (B, 1, T, S) bool; None where every key may be seen


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Scale each token to a root mean square of 1, then each of its values by a learnt weight.

    Equation: weight · x / √(mean(x²) + ε), the quotient in float32 whatever the dtype of x, as in transformers.
    Source: Zhang and Sennrich, arXiv:1910.07467, equation 4.

    >>> rms_norm(torch.tensor([3.0, 4.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 2.0]), 0.0)  # mean(x²) = 25/4
    tensor([1.2000, 1.6000, 0.0000, 0.0000])
    """
    wide = x.float()
    scale = torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).type_as(x)


def apply_rotation(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate queries or keys as `attention.rotate` does, with the cosines and sines already computed.

    Args:
        x: (B, T, H, D).
        cos: (B or 1, T, 1, D), every cosine twice: for the first and for the second half of D.
        sin: (B or 1, T, 1, D), every sine twice: with its sign changed, then as it is.

    Returns:
        (B, T, H, D).

    >>> apply_rotation(torch.tensor([3.0, 4.0]), torch.zeros(2), torch.tensor([-1.0, 1.0]))  # by 90°: cos 0, sin 1
    tensor([-4., 3.])
    """
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def weight_matrix(inputs: int, outputs: int) -> nn.Parameter:
    """A weight (outputs, inputs) for `linear(x, weight)`, random until a checkpoint is read."""
    return nn.Linear(inputs, outputs, bias=False).weight


class Attention(nn.Module):
    """Grouped-query attention with rotary positions: over what the cache holds, or over the given tokens alone."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.window, self.head_dim = layer, config.sliding_window, config.head_dim
        self.wq = weight_matrix(config.dim, config.n_heads * config.head_dim)
        self.wk = weight_matrix(config.dim, config.n_kv_heads * config.head_dim)
        self.wv = weight_matrix(config.dim, config.n_kv_heads * config.head_dim)
        self.wo = weight_matrix(config.n_heads * config.head_dim, config.dim)

    def forward(self, x: torch.Tensor, shared: SharedInputs) -> torch.Tensor:
        """(B, T, d) -> (B, T, d)."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q = apply_rotation(linear(x, self.wq).view(heads), shared.cos, shared.sin)  # (B, T, H, D)
        k = apply_rotation(linear(x, self.wk).view(heads), shared.cos, shared.sin)  # (B, T, K, D)
        v = linear(x, self.wv).view(heads)  # (B, T, K, D)
        if shared.cache is None:
            out = windowed_attention(q, k, v, window=self.window)
        else:
            k, v = shared.cache.update(k.transpose(1, 2), v.transpose(1, 2), self.layer)  # (B, K, S, D)
            out = scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=shared.mask, enable_gqa=True)
            out = out.transpose(1, 2)
        return linear(out.flatten(2), self.wo)


class FeedForward(nn.Module):
    """The network of a dense layer, or one expert: `moe.expert_forward` on weights of its own."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = weight_matrix(config.dim, config.hidden_dim)
        self.up = weight_matrix(config.dim, config.hidden_dim)
        self.down = weight_matrix(config.hidden_dim, config.dim)

    def weights(self) -> Expert:
        """The three matrices, in the form that module `moe` takes."""
        return Expert(self.gate, self.up, self.down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, d) -> (B, T, d)."""
        return expert_forward(x, self.weights())


class MixtureOfExperts(nn.Module):
    """A router and E feed-forward networks; each token goes through A of them."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.router = nn.Linear(config.dim, config.num_experts, bias=False)  # a module: `moe.capture_routing` hooks it
        self.experts = nn.ModuleList(FeedForward(config) for _ in range(config.num_experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, d) -> (B, T, d)."""
        tokens = x.flatten(0, 1)
        routing = route_top_k(self.router(tokens), num_experts_per_tok=self.num_experts_per_tok)
        if len(tokens) == 1:  # There is nothing to sort; in a small model, sorting takes longer than the experts.
            answers = [expert_forward(tokens, self.experts[e].weights()) for e in routing.indices[0].tolist()]
            return (routing.weights.T * torch.cat(answers)).sum(dim=0).to(x.dtype).view_as(x)
        return sparse_experts(tokens, routing, [expert.weights() for expert in self.experts]).view_as(x)


class Layer(nn.Module):
    """Attention, then the feed-forward network: each reads the residual stream through a norm and adds its answer."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.eps = config.norm_eps
        self.attention_norm = nn.Parameter(torch.ones(config.dim))
        self.attention = Attention(config, layer)
        self.feed_forward_norm = nn.Parameter(torch.ones(config.dim))
        self.feed_forward = FeedForward(config) if config.num_experts is None else MixtureOfExperts(config)

    def forward(self, x: torch.Tensor, shared: SharedInputs) -> torch.Tensor:
        """(B, T, d) -> (B, T, d)."""
        x = x + self.attention(rms_norm(x, self.attention_norm, self.eps), shared)
        return x + self.feed_forward(rms_norm(x, self.feed_forward_norm, self.eps))
