"""Bytes of keys and values: what attention needs, and what the rolling cache holds."""

from ..arguments import check_count
from ..config import ModelConfig


def kv_cache_bytes(config: ModelConfig, tokens: int, *, batch: int = 1, bytes_per_value: int = 2) -> int:
    """Bytes of the keys and values that attention needs for a text.

    Equation: 2 · L · K · D · min(tokens, W) · batch · bytes_per_value

    A sliding window caps it: keys further back than W can never be seen again.

    Source: arXiv:2310.06825, section 2 (rolling buffer cache).

    Args:
        tokens: tokens so far, prompt included.
        batch: sequences at once.
        bytes_per_value: 2 for bfloat16 and float16, 4 for float32.

    >>> from mistral_lab.config import PRESETS
    >>> mistral = PRESETS["mistral-7b-v0.1"]  # a window of 4,096
    >>> [kv_cache_bytes(mistral, tokens) // 2**20 for tokens in (8, 4_096, 32_768)]
    [1, 512, 512]
    """
    _check_amounts({"tokens": tokens, "batch": batch, "bytes_per_value": bytes_per_value})
    kept = tokens if config.sliding_window is None else min(tokens, config.sliding_window)
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * kept * batch * bytes_per_value


def rolling_cache_bytes(
    config: ModelConfig, prompt: int, *, new: int = 0, batch: int = 1, bytes_per_value: int = 2
) -> int:
    """Bytes that a `RollingCache` holds, slack included, after a prompt in one chunk and new tokens one by one.

    With a window it takes 2W slots a layer at the first token: every token is written twice, so that a window is one
    piece of memory. Without one it takes the prompt's length, and half as much again whenever it is full.

    Args:
        prompt: tokens of the prompt.
        new: tokens fed to the model after it; the last one that `generate` returns is not.
        batch: sequences at once.
        bytes_per_value: 2 for bfloat16 and float16, 4 for float32.

    >>> from mistral_lab.config import PRESETS
    >>> mistral = PRESETS["mistral-7b-v0.1"]  # a window of 4,096
    >>> rolling_cache_bytes(mistral, 8) == 2 * kv_cache_bytes(mistral, 4_096)
    True
    """
    check_count("prompt", prompt)
    _check_amounts({"new": new, "batch": batch, "bytes_per_value": bytes_per_value})
    slots = prompt
    while slots < prompt + new:
        slots = max(slots + 1, slots * 3 // 2)
    if config.sliding_window is not None:
        slots = 2 * config.sliding_window
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * slots * batch * bytes_per_value


def _check_amounts(amounts: dict[str, int]) -> None:
    for name, value in amounts.items():
        if value < 0:
            raise ValueError(f"{name} is {value}: expected 0 or more")
