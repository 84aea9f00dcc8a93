"""Lesson 1: the bytes of which each token of a text is made."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")  # how Mistral's tokenizer writes a token that is a single byte
SPACE = "▁"  # how it writes a space


def bytes_of_tokens(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[bytes]:
    """Return the UTF-8 bytes that each token stands for; joined they are the text, special tokens included.

    Two ways of writing a piece are known. A byte-level vocabulary, as GPT-2's and the bundled model's, has a printable
    letter for each byte. Mistral 7B's has characters, a sign for the space, and one token for every single byte.

    Args:
        tokenizer: the model's.
        ids: numbers of tokens.

    >>> from mistral_lab import load
    >>> lab = load("tiny-mistral")
    >>> bytes_of_tokens(lab.tokenizer, lab.tokenizer("a ☃", add_special_tokens=False)["input_ids"])[-1]
    b'\\x83'
    """
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    special = set(tokenizer.all_special_ids)
    by_character = "<0x00>" in tokenizer.get_vocab()
    found = []
    for number, piece in zip(ids, pieces, strict=True):
        if number in special:
            found.append(piece.encode())
        elif by_character:
            byte = BYTE_PIECE.fullmatch(piece)
            found.append(bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode())
        else:
            found.append(bytes(_byte_of_letter()[letter] for letter in piece))
    return found


@lru_cache(1)
def _byte_of_letter() -> dict[str, int]:
    """The byte for which each letter of a byte-level vocabulary stands.

    Printable letters of Latin-1 stand for themselves; the other bytes, in order, for the letters from 256 on.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
