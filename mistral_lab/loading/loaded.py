"""A model with its tokenizer, and text from a prompt. This file loads no model, so that others can type with it."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ..config import PREFILL_CHUNK, ModelConfig
from ..sampling import check_sampling
from .printing import Printer

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer, the name it was loaded by, and its shape."""

    model: "PreTrainedModel" = field(repr=False)
    tokenizer: "PreTrainedTokenizerBase" = field(repr=False)
    name: str
    config: ModelConfig

    def generate_text(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 100,
        temperature: float = 0.7,
        top_p: float = 0.9,
        seed: int | None = None,
        stream: bool = False,
    ) -> str:
        """Continue a prompt with `generate` of transformers. With `top_k=0` temperature and top-p alone shape it.

        Args:
            prompt: text; the tokenizer puts its start token in front.
            max_new_tokens: most tokens to add; the model's end token stops earlier.
            temperature: divides the logits; 0 takes the likeliest token each time, and `top_p` then plays no part.
            top_p: the least probability that the candidates must reach together, in (0, 1]; 1 keeps every token.
            seed: the same seed gives the same text, and PyTorch's random state (CPU and CUDA) is put back afterwards.
                None draws from that state.
            stream: print the text as it comes; a character of several tokens is printed when it is whole.

        Returns:
            the prompt and its continuation, without special tokens. It is what is streamed, without the last line
            break. Where `max_new_tokens` cuts a character in two, the text ends in U+FFFD, as that of `generate` does.

        Raises:
            TypeError, ValueError: an argument outside its range.

        Differs: left to itself, `generate` also cuts to the 50 likeliest tokens.

        >>> from mistral_lab import load
        >>> load("tiny-mistral").generate_text("My favourite condiment is", max_new_tokens=1, seed=0)[:25]
        'My favourite condiment is'
        """
        _check_prompt(prompt)
        check_sampling(max_new_tokens, temperature, top_p, seed)
        inputs = self.tokenizer(prompt, return_tensors="pt").to(self.model.device)
        choice = {"do_sample": False}
        if temperature > 0:
            choice = {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p), "top_k": 0}
        with nullcontext() if seed is None else torch.random.fork_rng(range(torch.cuda.device_count())):
            if seed is not None:
                torch.manual_seed(seed)
            tokens = self.model.generate(
                inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=max_new_tokens,
                past_key_values=new_cache(self.model),
                pad_token_id=self.tokenizer.pad_token_id,
                prefill_chunk_size=PREFILL_CHUNK if inputs["input_ids"].shape[1] > PREFILL_CHUNK else None,
                streamer=Printer(self.tokenizer) if stream else None,
                **choice,
            )
        return self.tokenizer.decode(tokens[0], skip_special_tokens=True)


def new_cache(model: "PreTrainedModel") -> "Cache":
    """Return the empty cache that `generate_text` gives to `generate` of transformers.

    On a CPU it is a `RollingCache`, which copies no keys: transformers' own copies all of them for every token.

    Args:
        model: of transformers.
    """
    from transformers import DynamicCache

    from ..cache import RollingCache

    return RollingCache(model.config) if model.device.type == "cpu" else DynamicCache(config=model.config)


def _check_prompt(prompt) -> None:
    """Raise TypeError or ValueError for what is no text to continue."""
    if not isinstance(prompt, str):
        raise TypeError(f"prompt is a {type(prompt).__name__}: expected one text")
    if not prompt:
        raise ValueError("the prompt is empty: give the model at least one character to continue")
