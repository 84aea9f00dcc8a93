"""Tokens one by one: a prompt in chunks, then each token chosen and fed."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..sampling import choose_token

if TYPE_CHECKING:
    from .decoder import Transformer

# Prompt tokens a pass of `generate`. With fewer than some 128, reading the weights weighs on every token; more gain
# nothing, and hold more: for Mistral 7B PROMPT_CHUNK · 14,336 values inside a layer, PROMPT_CHUNK · S in the mask.
PROMPT_CHUNK = 512


def continue_tokens(
    model: "Transformer",
    tokens: torch.Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    eos_token_id: int | None,
    pad_mask: torch.Tensor | None,
    on_token: Callable[[torch.Tensor], object] | None,
) -> torch.Tensor:
    """`Transformer.generate`, once the tokens are known to fit the model."""
    if eos_token_id is not None and eos_token_id not in range(model.config.vocab_size):
        raise ValueError(f"eos_token_id is {eos_token_id!r}: expected None or a token of the vocabulary")
    (B, T), device = tokens.shape, tokens.device
    pads = None if pad_mask is None else count_pads(pad_mask, tokens)
    random = None if seed is None else torch.Generator(device).manual_seed(seed)
    # Made outside of inference mode, whose tensors could not serve in training afterwards.
    out = torch.cat((tokens.long(), tokens.new_zeros(B, max_new_tokens)), dim=1)
    with torch.inference_mode():
        columns = torch.arange(out.shape[1], device=device)[None]
        cos, sin = model.angles(columns if pads is None else (columns - pads[:, None]).clamp(min=0))
        cache, fed, ended = model.new_cache(B), 0, torch.zeros(B, dtype=torch.bool, device=device)
        for length in range(T, out.shape[1]):
            for chunk in out[:, fed:length].split(PROMPT_CHUNK, dim=1):  # first the prompt, then the token just chosen
                here = slice(fed, fed + chunk.shape[1])
                hidden = model.hidden_states(chunk, cos[:, here], sin[:, here], cache, pads)
                fed = here.stop
            chosen = choose_token(model.output(hidden[:, -1]), temperature, top_p, random)
            if eos_token_id is not None:
                chosen = torch.where(ended, eos_token_id, chosen)
                ended = chosen == eos_token_id
            out[:, length] = chosen
            if on_token is not None:
                on_token(out[:, length])
            if eos_token_id is not None and ended.all():
                break
    return out[:, : length + 1]


def count_pads(pad_mask, tokens: torch.Tensor) -> torch.Tensor:
    """How many tokens of each sequence are padding, (B,), by a mask (B, T) bool, True where a token is real."""
    if not isinstance(pad_mask, torch.Tensor) or pad_mask.dtype != torch.bool or pad_mask.device != tokens.device:
        kind = f"{pad_mask.dtype} on {pad_mask.device}" if isinstance(pad_mask, torch.Tensor) else repr(pad_mask)
        raise TypeError(f"pad_mask is {kind}: expected a tensor of bool on {tokens.device}, where tokens are")
    if pad_mask.shape != tokens.shape:
        raise ValueError(f"pad_mask is {tuple(pad_mask.shape)}: expected {tuple(tokens.shape)}, the shape of tokens")
    if not pad_mask[:, -1].all() or (pad_mask[:, :-1] & ~pad_mask[:, 1:]).any():
        raise ValueError("pad_mask has padding behind a real token, or a row without one: expected padding on the left")
    return (~pad_mask).sum(dim=1)
