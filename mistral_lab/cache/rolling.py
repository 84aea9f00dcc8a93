"""All layers' keys and values as a transformers Cache, for `generate` of transformers and for `Transformer`."""

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from ..arguments import check_count
from ..config import ModelConfig
from .ring import GrowingStore, KVRing, check_chunk


class RollingCache(Cache):
    """A transformers Cache that keeps the last W tokens of a layer with a window, and all tokens of one without.

    `update` returns keys and values in position order, as transformers' masks expect: left-padded batches, prompts
    longer than W and any length of generation give the tokens of `use_cache=False`. A layer with a window allocates
    storage for 2W tokens at its first token and never more. A layer without one grows by half whenever it is full.

    Differs: transformers' `DynamicCache` concatenates, and so copies the whole window at every token. This cache
    cannot take back tokens, so it refuses `crop`, and with it assisted generation. It holds no gradients.

    Args:
        config: of the model that the cache is for, a transformers config or a `ModelConfig`.

    Raises:
        TypeError: neither of the two.
        ValueError: a window below 1, or a kind of layer other than full and sliding attention.

    >>> from mistral_lab import PRESETS
    >>> cache = RollingCache(PRESETS["mistral-7b-v0.1"])
    >>> token = torch.zeros(1, 8, 1, 128, dtype=torch.bfloat16)  # (B, K, T, D)
    >>> keys, values = cache.update(token, token, 0)
    >>> cache.nbytes == 2 * 4096 * 2 * 8 * 128 * 2  # 2W tokens, keys and values, K, D, two bytes: one layer so far
    True
    """

    def __init__(self, config: ModelConfig | PreTrainedConfig):
        if isinstance(config, ModelConfig):
            windows = [config.sliding_window] * config.n_layers
            shape = (config.n_kv_heads, config.head_dim)
        elif isinstance(config, PreTrainedConfig):
            config = config.get_text_config(decoder=True)
            windows = _windows(config)
            head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            shape = (config.num_key_value_heads, head_dim)
        else:
            raise TypeError(f"config is a {type(config).__name__}: expected a ModelConfig or a model's config")
        super().__init__(layers=[_Layer(window, *shape) for window in windows])

    @property
    def nbytes(self) -> int:
        """Bytes of all storage held, slack included."""
        return sum(layer.store.nbytes for layer in self.layers if layer.is_initialized)

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        """Add a chunk to one layer, and hand out all keys and values that its queries may attend to.

        Args:
            key_states: (B, K, T, D), rotary positions applied.
            value_states: (B, K, T, D).
            layer_idx: which layer.
            args, kwargs: what else a transformers model passes; a rolling cache needs none of it.

        Returns:
            keys and values (B, K, S, D) in position order, as views that are valid until the layer's next update;
            S = min(tokens before, W − 1) + T, or all tokens where the layer has no window.

        Raises:
            TypeError, ValueError: a chunk or a layer that does not fit. Nothing is then stored.
        """
        if not 0 <= layer_idx < len(self.layers):
            if self.get_seq_length() == key_states.shape[-2]:  # this was the first pass, of which nothing must stay
                self.reset()
            raise ValueError(
                f"layer_idx is {layer_idx}, and the cache has {len(self.layers)} layers: build it from model.config"
            )
        return self.layers[layer_idx].update(key_states, value_states)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """The number of keys that the next update will hand out, and the position of the first of them.

        Raises:
            ValueError: as `check_layers_agree`, for one mask must serve all layers.
        """
        self.check_layers_agree()
        return super().get_mask_sizes(query_length, layer_idx)

    def check_layers_agree(self) -> None:
        """Raise ValueError where the layers hold different numbers of tokens."""
        counts = {layer.get_seq_length() for layer in self.layers}
        if len(counts) > 1:
            raise ValueError(
                f"the layers hold {min(counts)} to {max(counts)} tokens: the last pass broke off, or its model has "
                f"fewer than {len(self.layers)} layers; call reset() or build the cache from model.config"
            )


class _Layer(CacheLayerMixin):
    """One layer of a `RollingCache`: a ring where there is a window, a growing store where there is none."""

    def __init__(self, window: int | None, n_kv_heads: int, head_dim: int):
        super().__init__()
        if window is not None:
            check_count("sliding_window", window)
        self.window, self.n_kv_heads, self.head_dim = window, n_kv_heads, head_dim
        self.is_sliding = window is not None
        self.store = None

    def lazy_initialization(self, key_states, value_states) -> None:
        like = {"batch": key_states.shape[0], "dtype": key_states.dtype, "device": key_states.device}
        if self.window is None:
            self.store = GrowingStore(self.n_kv_heads, self.head_dim, **like)
        else:
            self.store = KVRing(self.window, self.n_kv_heads, self.head_dim, **like)
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        stored = self.store.keys if self.is_initialized else key_states
        batch = stored.shape[0] if self.is_initialized else None
        shape = {"B": batch, "K": self.n_kv_heads, "T": None, "D": self.head_dim}
        check_chunk(key_states, value_states, shape, stored)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self.store.write(key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        seen = self.get_seq_length()
        before = seen if self.window is None else min(seen, self.window - 1)
        return before + query_length, seen - before

    def get_seq_length(self) -> int:
        return self.store.seen if self.is_initialized else 0

    def get_max_length(self) -> int:
        return -1 if self.window is None else self.window

    def reset(self) -> None:
        self.store, self.is_initialized = None, False

    def reorder_cache(self, beam_idx) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices) -> None:
        if self.is_initialized:
            self.store.select_batch(indices.to(self.store.keys.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self.batch_select_indices(torch.arange(self.store.keys.shape[0]).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(
            f"crop({tokens_to_remove}): a RollingCache cannot take back tokens, whose predecessors it has "
            "overwritten; use transformers' DynamicCache for assisted generation"
        )


def _windows(config) -> list[int | None]:
    """The window of each layer of a transformers config, None where the layer sees everything before it."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention" if window is None else "sliding_attention"] * config.num_hidden_layers
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ValueError(f"layer_types has {sorted(unknown)}: expected 'full_attention' and 'sliding_attention' only")
    if window is None and "sliding_attention" in kinds:
        raise ValueError("layer_types has 'sliding_attention', and sliding_window is None: expected a number of tokens")
    return [window if kind == "sliding_attention" else None for kind in kinds]
