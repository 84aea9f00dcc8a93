"""The loop of generation: the prompt in chunks, then one token after another, each chosen and fed back."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..config import PREFILL_CHUNK

if TYPE_CHECKING:
    from .decoder import Transformer


def continue_tokens(
    model: "Transformer",
    tokens: torch.Tensor,
    *,
    max_new_tokens: int,
    choose: Callable[[torch.Tensor], torch.Tensor],
    eos_token_id: int | None,
    pads: torch.Tensor | None,
    on_token: Callable[[torch.Tensor], object] | None,
) -> torch.Tensor:
    """Continue every sequence of a batch: `Transformer.generate`, which has checked the arguments.

    Args:
        model: gives hidden states, logits and a cache.
        tokens: (B, T) prompts.
        max_new_tokens: tokens to add.
        choose: takes the logits (B, V) that follow the last token, and returns the next token (B,).
        eos_token_id: a sequence that has produced it repeats it; all stop when the last one has. None never stops.
        pads: (B,), how many tokens of each prompt are padding on its left; None where there is no padding.
        on_token: called with the (B,) tokens of each step.

    Returns:
        (B, T + new) int64, prompts included.
    """
    (B, T), device = tokens.shape, tokens.device
    # Made outside of inference mode, whose tensors could not serve in training afterwards.
    out = torch.cat((tokens.long(), tokens.new_zeros(B, max_new_tokens)), dim=1)
    with torch.inference_mode():
        columns = torch.arange(out.shape[1], device=device)[None]
        cos, sin = model.cos_and_sin(columns if pads is None else (columns - pads[:, None]).clamp(min=0))
        cache, fed, ended = model.new_cache(B), 0, torch.zeros(B, dtype=torch.bool, device=device)
        for length in range(T, out.shape[1]):
            while fed < length:  # the prompt in chunks; afterwards the one token that was just chosen
                chunk = slice(fed, min(fed + PREFILL_CHUNK, length))
                hidden = model.hidden_states(out[:, chunk], cos[:, chunk], sin[:, chunk], cache, pads)
                fed = chunk.stop
            chosen = choose(model.output(hidden[:, -1]))
            if eos_token_id is not None:
                chosen = torch.where(ended, eos_token_id, chosen)
                ended = chosen == eos_token_id
            out[:, length] = chosen
            if on_token is not None:
                on_token(out[:, length])
            if eos_token_id is not None and ended.all():
                break
    return out[:, : length + 1]
