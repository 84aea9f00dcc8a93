"""The whole decoder: layers of attention and of a feed-forward network or experts; reads real checkpoints; generates.

B batch, T new tokens, S keys, H query heads, K key and value heads, D head_dim, d dim, E experts of which each token
goes through A, V vocabulary, W window.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

from ._checks import check_count
from ._generation import check_sampling
from ._tensors import check_tokens, count_pads, read_weights
from .attention import rotate, windowed_attention
from .cache import RollingCache
from .config import ModelConfig
from .masks import position_mask
from .moe import Expert, expert_forward, route_top_k, sparse_experts

# Prompt tokens a pass of `generate`. With fewer than some 128, reading the weights weighs on every token; more gain
# nothing, and hold more: for Mistral 7B CHUNK · 14,336 values inside a layer, CHUNK · S in the mask.
CHUNK = 512


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


class Transformer(nn.Module):
    """A Mistral, Mixtral or Llama decoder.

    Source: arXiv:2310.06825, section 2; arXiv:2401.04088, section 2.

    >>> model = Transformer.from_pretrained("tiny-mistral", dtype=torch.float32)
    >>> model(torch.tensor([[1, 5, 9]])).shape  # one sequence of three tokens; a vocabulary of 2,560
    torch.Size([1, 3, 2560])
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.n_layers))
        self.norm = nn.Parameter(torch.ones(config.dim))
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.output.weight = self.embedding.weight

    @classmethod
    def from_pretrained(cls, path, *, dtype: torch.dtype | None = None, device=None) -> "Transformer":
        """Read a checkpoint in Hugging Face format: safetensors, in one file or in shards, memory-mapped.

        A weight that has the dtype asked for and stays on the CPU is a view of its file: the system reads it when it
        is first used, and may drop it again.

        Args:
            path: a bundled name, a folder, or a hub id.
            dtype: of weights and arithmetic, float32, bfloat16 or float16. None is that of the checkpoint's embedding.
            device: None is the CPU.

        Raises:
            OSError: no such folder, a file missing or damaged, or tensors missing, surplus or misshapen; all are named.
            ValueError: another architecture, or a dtype or device that PyTorch cannot compute with here.
        """
        config = ModelConfig.from_pretrained(path)
        with torch.device("meta"):  # shapes alone: no memory is taken
            model = cls(config)
        shapes = {name: weight.shape for name, weight in model.state_dict().items()}
        tied = ["output.weight"] if config.tied_embeddings else []  # where it is stored all the same, it counts
        weights = read_weights(path, shapes, optional=tied, dtype=dtype, device=device)
        model.load_state_dict(weights, strict=False, assign=True)
        if "output.weight" not in weights:
            model.output.weight = model.embedding.weight
        for part in model.modules():
            # nn.Module looks for a weight once Python has found no attribute, which takes 1 µs, fifty times a token. So
            # they are attributes too; an assignment, as load_state_dict makes it, takes that back.
            vars(part).update([*part.named_children(), *part.named_parameters(recurse=False)])
        return model.requires_grad_(False).eval()

    def new_cache(self, batch: int = 1) -> RollingCache:
        """An empty cache for `batch` sequences: in each layer a ring of W tokens, or all tokens without a window."""
        check_count("batch", batch)
        cache, like = RollingCache(self.config), self.embedding.weight
        cache.early_initialization(batch, self.config.n_kv_heads, self.config.head_dim, like.dtype, like.device)
        return cache

    def forward(self, tokens: torch.Tensor, cache: RollingCache | None = None) -> torch.Tensor:
        """Logits of what follows each token.

        Args:
            tokens: (B, T) whole numbers below V.
            cache: from `new_cache`, with the tokens that came before; these are added to it.

        Returns:
            (B, T, V) in the dtype of the weights.

        Raises:
            TypeError, ValueError: tokens or a cache that do not fit; the cache is then as before.
        """
        start = 0 if cache is None else _tokens_in(cache, self.config)
        check_tokens(tokens, self.embedding.weight, room=self.config.max_positions, before=start)
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        return self.output(self._hidden(tokens, *self._angles(positions), cache))

    def generate(
        self,
        tokens: torch.Tensor,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        eos_token_id: int | None = None,
        pad_mask: torch.Tensor | None = None,
        on_token: Callable[[torch.Tensor], object] | None = None,
    ) -> torch.Tensor:
        """Continue every sequence of a batch, token by token; a long prompt is fed in chunks.

        Args:
            tokens: (B, T) prompts.
            max_new_tokens: tokens to add.
            temperature: divides the logits; 0 takes the likeliest token each time, and `top_p` then plays no part.
            top_p: the least probability that the candidates must reach together, in (0, 1]; 1 keeps every token.
            seed: the same seed gives the same tokens and leaves PyTorch's random state alone; None draws from it.
            eos_token_id: a sequence that has produced it repeats it; all stop when the last one has. None never stops.
            pad_mask: (B, T) bool, True where a token is real, for prompts of different lengths with padding on the
                left. Nothing attends to padding, and positions count from the first real token.
            on_token: called with the (B,) tokens of each step.

        Returns:
            (B, T + new) int64, prompts included.

        Raises:
            TypeError, ValueError: an argument outside its range.
        """
        check_sampling(max_new_tokens, temperature, top_p, seed)
        check_tokens(tokens, self.embedding.weight, room=self.config.max_positions, after=max_new_tokens)
        if eos_token_id is not None and eos_token_id not in range(self.config.vocab_size):
            raise ValueError(f"eos_token_id is {eos_token_id!r}: expected None or a token of the vocabulary")
        (B, T), device = tokens.shape, tokens.device
        pads = None if pad_mask is None else count_pads(pad_mask, tokens)
        random = None if seed is None else torch.Generator(device).manual_seed(seed)
        # Made outside of inference mode, whose tensors could not serve in training afterwards.
        out = torch.cat((tokens.long(), tokens.new_zeros(B, max_new_tokens)), dim=1)
        with torch.inference_mode():
            columns = torch.arange(out.shape[1], device=device)[None]
            cos, sin = self._angles(columns if pads is None else (columns - pads[:, None]).clamp(min=0))
            cache, fed, ended = self.new_cache(B), 0, torch.zeros(B, dtype=torch.bool, device=device)
            for length in range(T, out.shape[1]):
                for chunk in out[:, fed:length].split(CHUNK, dim=1):  # first the prompt, then the token just chosen
                    here = slice(fed, fed + chunk.shape[1])
                    hidden = self._hidden(chunk, cos[:, here], sin[:, here], cache, pads)
                    fed = here.stop
                chosen = _choose(self.output(hidden[:, -1]), temperature, top_p, random)
                if eos_token_id is not None:
                    chosen = torch.where(ended, eos_token_id, chosen)
                    ended = chosen == eos_token_id
                out[:, length] = chosen
                if on_token is not None:
                    on_token(out[:, length])
                if eos_token_id is not None and ended.all():
                    break
        return out[:, : length + 1]

    def _hidden(self, tokens, cos, sin, cache: RollingCache | None, pads: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T) tokens -> (B, T, d) after the last norm; pads (B,) is how many tokens of each sequence are padding."""
        now = Pass(cos, sin, cache, None if cache is None else self._mask(tokens.shape[1], cache, pads))
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, now)
        return rms_norm(x, self.norm, self.config.norm_eps)

    def _angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) positions -> what `turn` takes, (B, T, 1, D) each: `rotate` turns a pair (1, 0) into (cos, sin)."""
        half, like = self.config.head_dim // 2, self.embedding.weight
        pairs = torch.tensor([1.0] * half + [0.0] * half, dtype=like.dtype, device=like.device)
        turned = rotate(pairs.expand(*positions.shape, 1, -1), positions, theta=self.config.rope_theta)
        cos, sin = turned.chunk(2, dim=-1)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def _mask(self, T: int, cache: RollingCache, pads: torch.Tensor | None) -> torch.Tensor | None:
        S, first = cache.get_mask_sizes(T, 0)  # the keys that each layer will hand out, and the position of the first
        if T == 1 and pads is None:
            return None
        keys = torch.arange(first, first + S, device=self.embedding.weight.device)
        mask = position_mask(keys[-T:], keys, window=self.config.sliding_window or first + S)
        if pads is not None:
            padding = keys < pads[:, None]  # sees padding: a query that sees nothing has no softmax
            mask = (mask & (~padding[:, None, :] | padding[:, -T:, None]))[:, None]
        return mask


def _choose(logits: torch.Tensor, temperature: float, top_p: float, random: torch.Generator | None) -> torch.Tensor:
    """(B, V) logits -> (B,) tokens. Source, for top-p: Holtzman et al., arXiv:1904.09751, section 3.1."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if top_p < 1:
        rising, order = logits.sort(dim=-1)
        unlikely = rising.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        unlikely[:, -1] = False  # the likeliest stays, whatever rounding makes of the sum
        logits = logits.masked_fill(unlikely.scatter(1, order, unlikely), float("-inf"))
    return logits.softmax(dim=-1).multinomial(1, generator=random)[:, 0]


def _tokens_in(cache, config: ModelConfig) -> int:
    if not isinstance(cache, RollingCache):
        raise TypeError(f"cache is a {type(cache).__name__}: expected what new_cache() returns")
    found = [(layer.window, layer.n_kv_heads, layer.head_dim) for layer in cache.layers]
    expected = [(config.sliding_window, config.n_kv_heads, config.head_dim)] * config.n_layers
    if found != expected:
        what = f"{len(found)} layers, the first of (W, K, D) = {found[0]}"
        raise ValueError(f"cache has {what}: expected {len(expected)} of {expected[0]}, from new_cache() of this model")
    return cache.get_seq_length()
