"""Text that appears while the model writes it."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase


class Printer:
    """A transformers streamer that prints text token by token, the prompt first.

    All tokens so far are decoded together. A piece of a character decodes to U+FFFD at the end of the text, until the
    other pieces have come. So what ends in U+FFFD is held back:

        tokens  ... E6        E6 9C      E6 9C AA
        text    ... \\ufffd    \\ufffd     未
        printed                          未
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
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
