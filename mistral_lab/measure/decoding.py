"""Single steps of decoding at any context, without the minutes that reading so long a prompt would take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..arguments import check_count
from .paging import Paging

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import Cache, PreTrainedModel


@dataclass(frozen=True)
class Step:
    """One token of `generate`.

    Args:
        seconds: since the token before it, or since the call.
        paging: what was brought into memory meanwhile.
    """

    seconds: float
    paging: Paging


def filled(cache: "Cache", model: "PreTrainedModel", tokens: int) -> "Cache":
    """Fill a cache as `generate` would have after a prompt, with random keys and values in place of computed ones.

    Every layer gets them through the cache's own `update`, so dtype, shape and window are those of a cache filled by
    reading, and the next step takes as long. What the model answers with it means nothing.

    Args:
        cache: empty; `loading.loaded.new_cache` makes the one that `generate_text` uses.
        model: of transformers, on one device.
        tokens: of the prompt.

    Returns:
        the same cache.
    """
    check_count("tokens", tokens)
    config = model.config
    random = torch.Generator(model.device).manual_seed(0)
    shape = (1, config.num_key_value_heads, tokens, config.head_dim)
    for layer in range(config.num_hidden_layers):
        keys, values = (
            torch.randn(shape, generator=random, device=model.device, dtype=model.dtype) for _ in ("keys", "values")
        )
        cache.update(keys, values, layer)
    return cache


def random_tokens(model: "PreTrainedModel", count: int, *, seed: int = 0) -> torch.Tensor:
    """Draw token ids evenly from the model's vocabulary: (1, count), on the CPU."""
    return torch.randint(model.config.vocab_size, (1, count), generator=torch.Generator().manual_seed(seed))


def timed_steps(
    model: "PreTrainedModel",
    prompt: torch.Tensor,
    next_tokens: Sequence[int],
    *,
    cache: "Cache | None" = None,
    after: Callable[[int, Step], None] | None = None,
) -> list[Step]:
    """Run `generate` of transformers with the tokens that it is to choose, and time each.

    The work is that of greedy decoding. The tokens are given, because a model with random weights would soon repeat one
    token, and a mixture would then always choose the same experts.

    Args:
        model: of transformers.
        prompt: (1, T) token ids.
        next_tokens: what is chosen, one after the other. As in any `generate`, the last is not read by the model.
        cache: keys and values of the first tokens of the prompt, as `filled` makes it, or none; the rest is read. It
            grows with the steps. None: the whole prompt is read, and transformers makes a cache of its own.
        after: called with the number of each token, from 0, and its step. What it takes counts for no step.

    Returns:
        a step for each token. The first is the reading of the prompt, or of what the cache lacks of it.
    """
    steps = _Steps(list(next_tokens), after)
    prompt = prompt.to(model.device)
    steps.begin()
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        past_key_values=cache,
        do_sample=False,
        max_new_tokens=len(steps.tokens),
        eos_token_id=None,
        pad_token_id=0,
        logits_processor=[steps],
    )
    return steps.taken


class _Steps:
    """A logits processor of transformers that chooses the given tokens, and notes when the model had computed each."""

    def __init__(self, tokens: list[int], after: Callable[[int, Step], None] | None) -> None:
        self.tokens, self.after, self.taken = tokens, after, []

    def begin(self) -> None:
        self.paging, self.moment = Paging.now(), time.perf_counter()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        number = len(self.taken)
        scores.argmax().item()  # what greedy decoding does next, and the moment at which the device is done
        step = Step(time.perf_counter() - self.moment, Paging.now().since(self.paging))
        self.taken.append(step)
        if self.after is not None:
            self.after(number, step)
        chosen = torch.full_like(scores, -torch.inf)
        chosen[:, self.tokens[number]] = 0
        self.begin()
        return chosen
