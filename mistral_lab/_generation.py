"""What `Loaded.generate_text` asks of its arguments, and how it prints while the model writes."""

import math
import numbers

import torch
from transformers import PreTrainedTokenizerBase

COLDEST = 1e-6  # logits divided by less could leave the range of float32


def check_prompt(prompt) -> None:
    """Raise one line for what is no text to continue."""
    if not isinstance(prompt, str):
        raise TypeError(f"prompt is a {type(prompt).__name__}: expected one text")
    if not prompt:
        raise ValueError("the prompt is empty: give the model at least one character to continue")


def check_sampling(max_new_tokens, temperature, top_p, seed) -> None:
    """Raise one line for the first argument, of those that say how to choose tokens, that is outside its range."""
    for name, value, kind in (
        ("max_new_tokens", max_new_tokens, numbers.Integral),
        ("seed", 0 if seed is None else seed, numbers.Integral),
        ("temperature", temperature, numbers.Real),
        ("top_p", top_p, numbers.Real),
    ):
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = "a whole number" if kind is numbers.Integral else "a number"
            raise TypeError(f"{name} is {value!r}: expected {expected}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: expected at least 1")
    if not (temperature == 0 or COLDEST <= temperature < math.inf):
        raise ValueError(f"temperature is {temperature}: expected 0 (greedy) or a number from {COLDEST} on")
    if seed is not None and not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed is {seed}: expected a number of 64 bits")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: expected a number above 0 and up to 1")


class Printer:
    """A transformers streamer that prints text token by token, the prompt first.

    The tokens so far are decoded together. A piece of a character decodes to U+FFFD at the end of the text, and stays
    until the other pieces have come, so what ends in U+FFFD waits:

        tokens  ... E6        E6 9C      E6 9C AA
        text    ... \\ufffd    \\ufffd     未
        printed                          未
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.printed = 0

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then one token after the other."""
        self.tokens += value.flatten().tolist()
        self._print(self._text().rstrip("\ufffd"))

    def end(self) -> None:
        """Print what is held back and close the line."""
        self._print(self._text())
        print(flush=True)

    def _text(self) -> str:
        return self.tokenizer.decode(self.tokens, skip_special_tokens=True)

    def _print(self, text: str) -> None:
        print(text[self.printed :], end="", flush=True)
        self.printed = max(self.printed, len(text))
