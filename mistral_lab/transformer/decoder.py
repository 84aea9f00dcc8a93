"""The whole decoder: reads real checkpoints, gives logits, generates.

B batch, T new tokens, S keys, D head_dim, d dim, V vocabulary, W window.
"""

from collections.abc import Callable

import torch
from torch import nn

from ..arguments import check_count
from ..attention import rotate
from ..cache import RollingCache
from ..config import ModelConfig
from ..masks import position_mask
from ..sampling import check_sampling
from .blocks import Layer, Pass, rms_norm
from .generation import continue_tokens
from .weights import read_weights


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
        return self.output(self.hidden_states(tokens, *self.angles(positions), cache))

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
        return continue_tokens(
            self,
            tokens,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            eos_token_id=eos_token_id,
            pad_mask=pad_mask,
            on_token=on_token,
        )

    def hidden_states(
        self, tokens, cos, sin, cache: RollingCache | None, pads: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, T) tokens -> (B, T, d) after the last norm; pads (B,) is how many tokens of each sequence are padding."""
        now = Pass(cos, sin, cache, None if cache is None else self._mask(tokens.shape[1], cache, pads))
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, now)
        return rms_norm(x, self.norm, self.config.norm_eps)

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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


def check_tokens(tokens, embedding: torch.Tensor, *, room: int, before: int = 0, after: int = 0) -> None:
    """Refuse what is no batch of tokens for an embedding (V, d), or does not fit into the positions of a model.

    Args:
        tokens: hopefully (B, T) whole numbers below V, on the device of the embedding.
        room: positions that the model has.
        before: tokens that its cache holds.
        after: tokens that are to be generated.
    """
    if not isinstance(tokens, torch.Tensor):
        raise TypeError(f"tokens are a {type(tokens).__name__}: expected a tensor (B, T)")
    found = f"tokens are {tuple(tokens.shape)} in {tokens.dtype} on {tokens.device}"
    if tokens.ndim != 2 or 0 in tokens.shape or tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{found}: expected (B, T) int64 with at least one token")
    if tokens.device != embedding.device:
        raise ValueError(f"{found}: expected {embedding.device}, where the model is")
    least, most = (int(end) for end in tokens.aminmax())
    if least < 0 or most >= len(embedding):
        raise ValueError(f"tokens go from {least} to {most}: expected 0 to {len(embedding) - 1}, the vocabulary")
    if before + tokens.shape[1] + after > room:
        raise ValueError(
            f"{before} tokens in the cache, {tokens.shape[1]} given and {after} to come: "
            f"expected at most {room} together, the positions of the model"
        )


def _tokens_in(cache, config: ModelConfig) -> int:
    if not isinstance(cache, RollingCache):
        raise TypeError(f"cache is a {type(cache).__name__}: expected what new_cache() returns")
    found = [(layer.window, layer.n_kv_heads, layer.head_dim) for layer in cache.layers]
    expected = [(config.sliding_window, config.n_kv_heads, config.head_dim)] * config.n_layers
    if found != expected:
        what = f"{len(found)} layers, the first of (W, K, D) = {found[0]}"
        raise ValueError(f"cache has {what}: expected {len(expected)} of {expected[0]}, from new_cache() of this model")
    return cache.get_seq_length()
