"""Checks of what a caller hands to a `Transformer`: tokens, a cache, an end token, a mask of padding.

B batch, T tokens, V vocabulary, W window, K key and value heads, D head_dim.
"""

import torch

from ..cache import RollingCache
from ..config import ModelConfig


def check_tokens(tokens, embedding: torch.Tensor, *, max_positions: int, before: int = 0, after: int = 0) -> None:
    """Refuse what is not a batch of tokens for an embedding (V, d), or exceeds the positions of the model.

    Args:
        tokens: expected to be (B, T) whole numbers below V, on the device of the embedding.
        embedding: the model's.
        max_positions: positions that the model has.
        before: tokens that its cache holds.
        after: tokens that are to be generated.

    Raises:
        TypeError, ValueError: any of this does not hold.
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
    if before + tokens.shape[1] + after > max_positions:
        raise ValueError(
            f"{before} tokens in the cache, {tokens.shape[1]} given and {after} to come: "
            f"expected at most {max_positions} together, the positions of the model"
        )


def check_cache(cache, config: ModelConfig) -> None:
    """Refuse a cache that was not made for this model, or whose last pass broke off.

    Raises:
        TypeError: not a `RollingCache`.
        ValueError: layers of another number or size, or layers that hold different numbers of tokens.
    """
    if not isinstance(cache, RollingCache):
        raise TypeError(f"cache is a {type(cache).__name__}: expected what new_cache() returns")
    found = [(layer.window, layer.n_kv_heads, layer.head_dim) for layer in cache.layers]
    expected = [(config.sliding_window, config.n_kv_heads, config.head_dim)] * config.n_layers
    if found != expected:
        what = f"{len(found)} layers, the first of (W, K, D) = {found[0]}"
        raise ValueError(f"cache has {what}: expected {len(expected)} of {expected[0]}, from new_cache() of this model")
    cache.check_layers_agree()


def check_end_token(eos_token_id, config: ModelConfig) -> None:
    """Raise ValueError for an end token that is neither None nor in the vocabulary."""
    if eos_token_id is not None and eos_token_id not in range(config.vocab_size):
        raise ValueError(f"eos_token_id is {eos_token_id!r}: expected None or a token of the vocabulary")


def count_pads(pad_mask, tokens: torch.Tensor) -> torch.Tensor:
    """Count the padding of each sequence.

    Args:
        pad_mask: expected to be (B, T) bool, True where a token is real, with the padding on the left.
        tokens: (B, T).

    Returns:
        (B,) int64, how many tokens of each sequence are padding.

    Raises:
        TypeError: pad_mask is not a tensor of bool on the device of the tokens.
        ValueError: another shape, padding after a real token, or a row without a real token.
    """
    if not isinstance(pad_mask, torch.Tensor) or pad_mask.dtype != torch.bool or pad_mask.device != tokens.device:
        kind = f"{pad_mask.dtype} on {pad_mask.device}" if isinstance(pad_mask, torch.Tensor) else repr(pad_mask)
        raise TypeError(f"pad_mask is {kind}: expected a tensor of bool on {tokens.device}, where tokens are")
    if pad_mask.shape != tokens.shape:
        raise ValueError(f"pad_mask is {tuple(pad_mask.shape)}: expected {tuple(tokens.shape)}, the shape of tokens")
    if not pad_mask[:, -1].all() or (pad_mask[:, :-1] & ~pad_mask[:, 1:]).any():
        raise ValueError("pad_mask has padding behind a real token, or a row without one: expected padding on the left")
    return (~pad_mask).sum(dim=1)
