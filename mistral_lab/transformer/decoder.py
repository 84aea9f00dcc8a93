"""The whole decoder: it reads real checkpoints, computes logits and generates text.

B batch, T new tokens, S keys, D head_dim, d dim, V vocabulary, W window.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ..arguments import check_count
from ..attention import rotate
from ..cache import RollingCache
from ..config import ModelConfig
from ..masks import position_mask
from ..sampling import check_sampling, choose_token
from .blocks import Layer, SharedInputs, rms_norm
from .generation import continue_tokens
from .inputs import check_cache, check_end_token, check_tokens, count_pads
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

        A weight that already has the wanted dtype and stays on the CPU is a view of its file. The system reads it when
        it is first used, and may drop it from memory again.

        Args:
            path: a bundled name, a folder, or a hub id.
            dtype: of weights and arithmetic: float32, bfloat16 or float16. None is that of the checkpoint's embedding.
            device: None is the CPU.

        Raises:
            OSError: no such folder, a file missing or damaged, or tensors missing, surplus or misshapen; all are named.
            ValueError: another architecture, or a dtype or device that PyTorch cannot compute with here.
        """
        config = ModelConfig.from_pretrained(path)
        with torch.device("meta"):  # shapes alone, which take no memory
            model = cls(config)
        shapes = {name: weight.shape for name, weight in model.state_dict().items()}
        tied = ["output.weight"] if config.tied_embeddings else []  # it may be stored all the same, and then it counts
        weights = read_weights(path, shapes, optional=tied, dtype=dtype, device=device)
        model.load_state_dict(weights, strict=False, assign=True)
        if "output.weight" not in weights:
            model.output.weight = model.embedding.weight
        return model.requires_grad_(False).eval()

    def new_cache(self, batch: int = 1) -> RollingCache:
        """Make an empty cache for `batch` sequences. A layer keeps the last W tokens, or all without a window."""
        check_count("batch", batch)
        cache, like = RollingCache(self.config), self.embedding.weight
        cache.early_initialization(batch, self.config.n_kv_heads, self.config.head_dim, like.dtype, like.device)
        return cache

    def forward(self, tokens: torch.Tensor, cache: RollingCache | None = None) -> torch.Tensor:
        """Compute the logits of what follows each token.

        Args:
            tokens: (B, T) whole numbers below V.
            cache: from `new_cache`, holding the tokens that came before; the new ones are added to it.

        Returns:
            (B, T, V) in the dtype of the weights.

        Raises:
            TypeError, ValueError: tokens or a cache that do not fit. The cache is then left as it was.
        """
        if cache is not None:
            check_cache(cache, self.config)
        start = 0 if cache is None else cache.get_seq_length()
        check_tokens(tokens, self.embedding.weight, max_positions=self.config.max_positions, before=start)
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        return self.output(self.hidden_states(tokens, *self.cos_and_sin(positions), cache))

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
        check_tokens(tokens, self.embedding.weight, max_positions=self.config.max_positions, after=max_new_tokens)
        check_end_token(eos_token_id, self.config)
        random = None if seed is None else torch.Generator(tokens.device).manual_seed(seed)
        return continue_tokens(
            self,
            tokens,
            max_new_tokens=max_new_tokens,
            choose=partial(choose_token, temperature=temperature, top_p=top_p, random=random),
            eos_token_id=eos_token_id,
            pads=None if pad_mask is None else count_pads(pad_mask, tokens),
            on_token=on_token,
        )

    def hidden_states(
        self,
        tokens: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: RollingCache | None,
        pads: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run tokens through all layers and the last norm.

        Args:
            tokens: (B, T).
            cos, sin: of their positions, from `cos_and_sin`.
            cache: holds the tokens that came before; the new ones are added to it.
            pads: (B,), how many tokens of each sequence are padding on its left; None where there is no padding.

        Returns:
            (B, T, d), of which `output` makes logits.
        """
        shared = SharedInputs(cos, sin, cache, self.attention_mask(tokens.shape[1], cache, pads))
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, shared)
        return rms_norm(x, self.norm, self.config.norm_eps)

    def cos_and_sin(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute what `apply_rotation` takes, in the dtype of the weights.

        Args:
            positions: (B, T) whole numbers.

        Returns:
            cos (B, T, 1, D) and sin (B, T, 1, D).
        """
        half, like = self.config.head_dim // 2, self.embedding.weight
        pairs = torch.tensor([1.0] * half + [0.0] * half, dtype=like.dtype, device=like.device)
        # `rotate` turns each pair (1, 0) into the (cos, sin) of its angle.
        rotated = rotate(pairs.expand(*positions.shape, 1, -1), positions, theta=self.config.rope_theta)
        cos, sin = rotated.chunk(2, dim=-1)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def attention_mask(
        self, T: int, cache: RollingCache | None, pads: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Say which of the cache's keys each of the next T tokens may attend to.

        Args:
            T: tokens that are about to be added to the cache.
            cache: None where there is no cache; then each layer applies causality and window itself.
            pads: (B,), how many tokens of each sequence are padding on its left.

        Returns:
            (T, S) or (B, 1, T, S) bool; None where no mask is needed.
        """
        if cache is None or (T == 1 and pads is None):  # A single token may attend to every key that is handed out.
            return None
        S, first = cache.get_mask_sizes(T, 0)  # how many keys each layer will hand out; the position of the first
        keys = torch.arange(first, first + S, device=self.embedding.weight.device)
        mask = position_mask(keys[-T:], keys, window=self.config.sliding_window)
        if pads is None:
            return mask
        # Padding may attend to padding, for a query that attends to nothing has no softmax.
        padding = keys < pads[:, None]
        return (mask & (~padding[:, None, :] | padding[:, -T:, None]))[:, None]
