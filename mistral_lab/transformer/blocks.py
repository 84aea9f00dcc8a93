"""The parts of the decoder: the norm, grouped-query attention, the feed-forward network or experts, and their layer.

B batch, T new tokens, S keys, H query heads, K key and value heads, D head_dim, d dim, E experts of which each token
goes through A.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

from ..attention import windowed_attention
from ..cache import RollingCache
from ..config import ModelConfig
from ..moe import Expert, expert_forward, route_top_k, sparse_experts


class Pass(NamedTuple):
    """What all layers share while T tokens of each sequence go through them."""

    cos: torch.Tensor  # (B or 1, T, 1, D), as `turn` takes them
    sin: torch.Tensor
    cache: RollingCache | None
    mask: torch.Tensor | None  # over the cache's keys, (T, S) or (B, 1, T, S) bool; None where all may be seen


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


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`attention.rotate` with the angles at hand: cos holds every cosine twice, sin every sine as -sin and as sin.

    >>> turn(torch.tensor([3.0, 4.0]), torch.zeros(2), torch.tensor([-1.0, 1.0]))  # a quarter turn: cos 0, sin 1
    tensor([-4., 3.])
    """
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def matrix(inputs: int, outputs: int) -> nn.Parameter:
    """A weight (outputs, inputs) for `linear(x, weight)`, random until a checkpoint is read."""
    return nn.Linear(inputs, outputs, bias=False).weight


class Attention(nn.Module):
    """Grouped-query attention with rotary positions: over the cache, or without one over the tokens given."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.window, self.head_dim = layer, config.sliding_window, config.head_dim
        self.wq = matrix(config.dim, config.n_heads * config.head_dim)
        self.wk = matrix(config.dim, config.n_kv_heads * config.head_dim)
        self.wv = matrix(config.dim, config.n_kv_heads * config.head_dim)
        self.wo = matrix(config.n_heads * config.head_dim, config.dim)

    def forward(self, x: torch.Tensor, now: Pass) -> torch.Tensor:
        """(B, T, d) -> (B, T, d)."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q = turn(linear(x, self.wq).view(heads), now.cos, now.sin)  # (B, T, H, D)
        k = turn(linear(x, self.wk).view(heads), now.cos, now.sin)  # (B, T, K, D)
        v = linear(x, self.wv).view(heads)  # (B, T, K, D)
        if now.cache is None:
            out = windowed_attention(q, k, v, window=self.window or x.shape[1])
        else:
            k, v = now.cache.update(k.transpose(1, 2), v.transpose(1, 2), self.layer)  # (B, K, S, D)
            out = scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=now.mask, enable_gqa=True)
            out = out.transpose(1, 2)
        return linear(out.flatten(2), self.wo)


class FeedForward(nn.Module):
    """The network of a dense layer, or one expert: `moe.expert_forward` on weights of its own."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = matrix(config.dim, config.hidden_dim)
        self.up = matrix(config.dim, config.hidden_dim)
        self.down = matrix(config.hidden_dim, config.dim)

    def weights(self) -> Expert:
        """The three matrices, as room `moe` takes them."""
        return Expert(self.gate, self.up, self.down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, d) -> (B, T, d)."""
        return expert_forward(x, self.weights())


class MixtureOfExperts(nn.Module):
    """A router, and E feed-forward networks of which each token goes through A."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.router = nn.Linear(config.dim, config.num_experts, bias=False)  # a module: `moe.capture_routing` hooks it
        self.experts = nn.ModuleList(FeedForward(config) for _ in range(config.num_experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, d) -> (B, T, d)."""
        tokens = x.flatten(0, 1)
        routing = route_top_k(self.router(tokens), num_experts_per_tok=self.num_experts_per_tok)
        if len(tokens) == 1:  # nothing to sort, which in a small model takes longer than to run the experts
            answers = [expert_forward(tokens, self.experts[e].weights()) for e in routing.indices[0].tolist()]
            return (routing.weights.T * torch.cat(answers)).sum(dim=0).to(x.dtype).view_as(x)
        return sparse_experts(tokens, routing, [expert.weights() for expert in self.experts]).view_as(x)


class Layer(nn.Module):
    """Attention, then the feed-forward network; each reads the stream through a norm, and adds to it what it finds."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.eps = config.norm_eps
        self.attention_norm = nn.Parameter(torch.ones(config.dim))
        self.attention = Attention(config, layer)
        self.feed_forward_norm = nn.Parameter(torch.ones(config.dim))
        self.feed_forward = FeedForward(config) if config.num_experts is None else MixtureOfExperts(config)

    def forward(self, x: torch.Tensor, now: Pass) -> torch.Tensor:
        """(B, T, d) -> (B, T, d)."""
        x = x + self.attention(rms_norm(x, self.attention_norm, self.eps), now)
        return x + self.feed_forward(rms_norm(x, self.feed_forward_norm, self.eps))
