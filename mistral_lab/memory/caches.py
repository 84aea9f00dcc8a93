"""The bytes of keys and values: what attention needs, and what the rolling cache holds."""

from ..arguments import check_count
from ..config import ModelConfig


def kv_cache_bytes(config: ModelConfig, tokens: int, *, batch: int = 1, bytes_per_value: int = 2) -> int:
    """Count the bytes of the keys and values that attention needs for a text.

    Equation: 2 · L · K · D · min(tokens, W) · batch · bytes_per_value

    A sliding window limits it: keys further back than W are never read again.

    Source: arXiv:2310.06825, section 2 (rolling buffer cache).

    Args:
        config: the shape of the model.
        tokens: tokens so far, prompt included.
        batch: sequences at once.
        bytes_per_value: 2 for bfloat16 and float16, 4 for float32.

    Raises:
        ValueError: a negative amount.

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
    """Count the bytes that a `RollingCache` holds after a prompt in one chunk and further tokens one by one.

    With a window the cache takes 2W slots per layer at the first token: every token is written twice, so that a window
    is always one contiguous piece of memory. Without a window it takes as many slots as the prompt has tokens, and
    grows by half whenever it is full. Slots that hold nothing yet are counted.

    Args:
        config: the shape of the model.
        prompt: tokens of the prompt.
        new: tokens given to the model after the prompt. The last token that `generate` returns is not among them.
        batch: sequences at once.
        bytes_per_value: 2 for bfloat16 and float16, 4 for float32.

    Raises:
        TypeError, ValueError: a prompt below one token, or a negative amount.

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
    """Raise ValueError for an amount below 0."""
    for name, value in amounts.items():
        if value < 0:
            raise ValueError(f"{name} is {value}: expected 0 or more")
