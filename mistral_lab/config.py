"""What a model is: the fourteen values that decide all its shapes, parameters and bytes."""

import json
import math
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import check_count
from .checkpoints import locate

if TYPE_CHECKING:  # transformers is heavy: it is imported where it is used
    from transformers import PreTrainedConfig

ARCHITECTURES = ("mistral", "mixtral", "llama")
# Prompt tokens per forward pass of generation, here and with transformers' `generate`. Below some 128, reading the
# weights costs every token; above it nothing is gained, and more is held at a time: for Mistral 7B, PREFILL_CHUNK
# times 14,336 values inside a layer, and PREFILL_CHUNK times all keys in the mask.
PREFILL_CHUNK = 512


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder, in Mistral's field names.

    Source: `params.json` of Mistral 7B and of Mixtral 8x7B; arXiv:2310.06825, table 1; arXiv:2401.04088, table 1.

    Args:
        vocab_size: V, the pieces in the vocabulary.
        dim: the width of the residual stream.
        n_layers: L, the decoder layers.
        n_heads: H, the query heads.
        n_kv_heads: K, the key and value heads; K = H is multi-head attention, K = 1 multi-query attention.
        head_dim: D, the width of a head; H·D need not equal `dim`.
        hidden_dim: the width inside the feed-forward network, or inside one expert.
        norm_eps: what RMSNorm adds under the root.
        rope_theta: the base of the rotary frequencies.
        max_positions: the length of text, in tokens, that the checkpoint declares.
        tied_embeddings: whether the output layer is the embedding matrix again.
        sliding_window: W, the keys that a query sees, its own included; None where it sees all keys before it.
        num_experts: E, the experts per layer; None in a dense model.
        num_experts_per_tok: A, the experts that each token goes through; None in a dense model.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: the sizes do not belong together.

    >>> mistral = PRESETS["mistral-7b-v0.1"]
    >>> mistral.n_heads, mistral.n_kv_heads, mistral.group_size
    (32, 8, 4)
    """

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_dim: int
    norm_eps: float
    rope_theta: float
    max_positions: int
    tied_embeddings: bool = False
    sliding_window: int | None = None
    num_experts: int | None = None
    num_experts_per_tok: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is bool:
                if not isinstance(value, bool):
                    raise TypeError(f"{field.name} is {value!r}: expected True or False")
            elif field.type is float:
                if not (math.isfinite(value) and value > 0):
                    raise ValueError(f"{field.name} is {value}: expected a positive number")
            elif value is not None or field.type is int:
                check_count(field.name, value)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads is {self.n_heads} and n_kv_heads {self.n_kv_heads}: n_heads must be a multiple of n_kv_heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}: rotary positions turn pairs of values, so it must be even")
        if (self.num_experts is None) != (self.num_experts_per_tok is None):
            raise ValueError(
                f"num_experts is {self.num_experts} and num_experts_per_tok {self.num_experts_per_tok}: "
                "give both, or neither for a dense model"
            )
        if self.num_experts is not None and self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}: a layer has only {self.num_experts} experts"
            )

    @property
    def group_size(self) -> int:
        """G = H/K, the query heads that share one key and value head."""
        return self.n_heads // self.n_kv_heads

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike, *, revision: str | None = None) -> "ModelConfig":
        """Read `config.json` of a checkpoint; no weights are read or downloaded.

        Where a key is missing, the value is the one that transformers would use: `head_dim` is then dim/n_heads, and a
        Mistral without `sliding_window` has a window of 4,096.

        Args:
            path_or_id: a folder, a hub id "owner/name", or a name that `load()` knows.
            revision: a branch, tag or commit on the hub; not allowed for a folder.

        Raises:
            FileNotFoundError: there is no such folder, or no `config.json` in it.
            PermissionError, ConnectionError: the hub requires a token, or cannot be reached.
            ValueError: the file describes no model that this package knows.
        """
        source = locate(path_or_id, revision)
        return cls.from_transformers(read_config(source.config_folder()))

    @classmethod
    def from_transformers(cls, config: "PreTrainedConfig") -> "ModelConfig":
        """Translate a transformers config of a Mistral, Mixtral or Llama model.

        Args:
            config: a transformers config, with `rope_parameters` (transformers 5) or `rope_theta` (before).

        Raises:
            ValueError: another architecture, scaled rotary positions, or biases, which a `ModelConfig` cannot describe.
        """
        if config.model_type not in ARCHITECTURES:
            raise ValueError(f"model_type is {config.model_type!r}: expected one of {', '.join(ARCHITECTURES)}")
        if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
            raise ValueError("the linear layers have biases: expected attention_bias and mlp_bias to be false")
        mixture = config.model_type == "mixtral"
        return cls(
            vocab_size=config.vocab_size,
            dim=config.hidden_size,
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            hidden_dim=config.intermediate_size,
            norm_eps=config.rms_norm_eps,
            rope_theta=_rope_theta(config),
            max_positions=config.max_position_embeddings,
            tied_embeddings=config.tie_word_embeddings,
            sliding_window=None if config.model_type == "llama" else getattr(config, "sliding_window", None),
            num_experts=config.num_local_experts if mixture else None,
            num_experts_per_tok=config.num_experts_per_tok if mixture else None,
        )

    def to_transformers(self) -> "PreTrainedConfig":
        """Make the transformers config of this shape, for a model without weights or with random ones.

        Returns:
            a MixtralConfig where there are experts, otherwise a MistralConfig, because a Llama computes the same as a
            Mistral of the same shape without a window.

        >>> tiny = ModelConfig.from_pretrained("tiny-mixtral")
        >>> ModelConfig.from_transformers(tiny.to_transformers()) == tiny
        True
        """
        from transformers import MistralConfig, MixtralConfig

        fields = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.hidden_dim,
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tied_embeddings,
            "sliding_window": self.sliding_window,
        }
        if not self.num_experts:
            return MistralConfig(**fields)
        experts = {"num_local_experts": self.num_experts, "num_experts_per_tok": self.num_experts_per_tok}
        return MixtralConfig(**fields, **experts)


def read_config(folder: Path) -> "PreTrainedConfig":
    """Read the transformers config of a folder; one line says whatever is wrong with the file.

    Raises:
        ValueError: `config.json` is no JSON object, names an unknown architecture, or has a value of the wrong type.
    """
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        architecture = fields.get("model_type")
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is not a JSON object: the file is damaged; copy or download it again") from None
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{path}: model_type is {architecture!r}, expected one of {', '.join(ARCHITECTURES)}")

    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def _rope_theta(config: "PreTrainedConfig") -> float:
    """The base of the rotary frequencies, under its old or its new name."""
    rope = getattr(config, "rope_parameters", None)
    scaling = getattr(config, "rope_scaling", None) if rope is None else rope
    kind = (scaling or {}).get("rope_type", "default")
    if kind != "default":
        raise ValueError(f"rope_type is {kind!r}: expected 'default', rotary positions without scaling")
    return float(rope["rope_theta"] if rope else config.rope_theta)


# huggingface.co/mistralai/Mistral-7B-v0.1, config.json; arXiv:2310.06825, table 1 (where context_len is 8192).
_MISTRAL_7B = ModelConfig(
    vocab_size=32_000,
    dim=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    hidden_dim=14_336,
    norm_eps=1e-5,
    rope_theta=1e4,
    max_positions=32_768,
    sliding_window=4096,
)
# huggingface.co/meta-llama/Llama-2-7b-hf, config.json; arXiv:2307.09288, table 1: no grouped-query attention.
_LLAMA_2_7B = ModelConfig(
    vocab_size=32_000,
    dim=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=32,
    head_dim=128,
    hidden_dim=11_008,
    norm_eps=1e-5,
    rope_theta=1e4,
    max_positions=4096,
)

PRESETS = {
    "mistral-7b-v0.1": _MISTRAL_7B,
    # huggingface.co/mistralai/Mistral-7B-v0.3, config.json: a larger vocabulary, no window, another rotary base.
    "mistral-7b-v0.3": replace(_MISTRAL_7B, vocab_size=32_768, rope_theta=1e6, sliding_window=None),
    # huggingface.co/mistralai/Mixtral-8x7B-v0.1, config.json; arXiv:2401.04088, table 1. Early copies of the file had a
    # window of 4096; the model never had one.
    "mixtral-8x7b-v0.1": replace(
        _MISTRAL_7B, rope_theta=1e6, sliding_window=None, num_experts=8, num_experts_per_tok=2
    ),
    "llama-2-7b": _LLAMA_2_7B,
    # huggingface.co/meta-llama/Llama-2-13b-hf, config.json; arXiv:2307.09288, table 1: wider and deeper.
    "llama-2-13b": replace(_LLAMA_2_7B, dim=5120, n_layers=40, n_heads=40, n_kv_heads=40, hidden_dim=13_824),
    # huggingface.co/meta-llama/Llama-2-70b-hf, config.json; arXiv:2307.09288, table 1: with grouped-query attention.
    "llama-2-70b": replace(_LLAMA_2_7B, dim=8192, n_layers=80, n_heads=64, n_kv_heads=8, hidden_dim=28_672),
}
