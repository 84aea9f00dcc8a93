"""What all kinds of text share: seeded choices, reserved pairs of words, and names that come back after a gap."""

import random
import re
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

DOCUMENT_TOKENS, MENTION_TOKENS = 260, 10  # approximate lengths of a document, and of a sentence with the name
TRAIN, HELD_OUT = "train", "held_out"

# 64 x 64 people. Each word becomes one token, so a name is two tokens, and an unseen name is an unseen pair of tokens.
GIVEN = (
    "Ada Alma Amir Anton Arlo Bela Bruno Carla Cleo Dara Dario Edna Elsa Emil Enzo Esther Felix Fiona Gita Greta "
    "Hana Hugo Ida Igor Ines Iris Ivan Jana Jonas Karl Kira Lara Leon Lena Luca Mara Milo Mina Nadia Nils Nora "
    "Olga Omar Oscar Otto Paula Petra Rana Remi Rosa Ruben Sami Sara Selma Silas Sofia Tara Theo Tilda Ugo Vera "
    "Viktor Yara Zoe"
).split()
FAMILY = (
    "Abbott Arden Bauer Bell Blum Bosch Brandt Castro Cole Costa Cruz Dahl Diaz Doyle Drake Duval Engel Falk "
    "Farrow Fischer Flores Fontana Frost Garcia Gomez Grant Haas Hale Hansen Holt Horvat Ivanov Jansen Kaur "
    "Keller Klein Kovac Lang Larsen Lopez Marsh Meyer Moreau Moss Nagy Nash Novak Okoye Olsen Ortiz Patel Perrin "
    "Quist Ramos Reyes Rossi Santos Silva Stone Tanaka Vance Vega Weiss Zimmer"
).split()


def is_reserved(topic: str, first: str, second: str) -> bool:
    """Whether this pair is kept out of training: about one pair in eight, chosen by a checksum and so always the same.

    >>> is_reserved("name", "Ada", "Bell") == is_reserved("name", "Ada", "Bell")
    True
    """
    return zlib.crc32(f"{topic}|{first}|{second}".encode()) % 8 == 0


def rough_tokens(text: str) -> int:
    """Estimate the tokens of a text without a tokenizer: a word, a digit or another sign counts as one.

    >>> rough_tokens("Ada has 12 pears.")
    6
    """
    return len(re.findall(r"[^\W\d_\u4e00-\u9fff]+|\d|[^\s\w]|_|[\u4e00-\u9fff]", text))


class Scribe:
    """Seeded choices for one document of one split.

    A training document never holds a reserved pair; a held-out document takes all its pairs from the reserved ones. All
    single words occur in both, so held-out text tests unseen combinations of known words. With a `spread` below 1 the
    name comes back sooner and more often, as at the start of a training run.
    """

    def __init__(self, seed: str, split: str, spread: float = 1.0) -> None:
        if split not in (TRAIN, HELD_OUT):
            raise ValueError(f"split must be {TRAIN!r} or {HELD_OUT!r}, got {split!r}")
        self.random = random.Random(seed)
        self.split = split
        self.spread = spread

    def pick(self, options: Sequence[T]) -> T:
        """Choose one of the options, all equally likely."""
        return self.random.choice(options)

    def number(self, low: int, high: int) -> int:
        """Choose an integer from low to high, both included."""
        return self.random.randint(low, high)

    def chance(self, share: float) -> bool:
        """Return True in this share of the calls."""
        return self.random.random() < share

    def pair(self, topic: str, firsts: Sequence, seconds: Sequence) -> tuple:
        """Choose a pair that belongs to this document's split. The lists must be long enough to hold reserved pairs."""
        while True:
            first, second = self.pick(firsts), self.pick(seconds)
            if is_reserved(topic, str(first), str(second)) == (self.split == HELD_OUT):
                return first, second

    def name(self) -> str:
        """Choose a given name and a family name."""
        return " ".join(self.pair("name", GIVEN, FAMILY))

    def gaps(self) -> list[int]:
        """Choose how many tokens (roughly) pass before the document's name comes back, each time.

        The window of `tiny-mistral` shows 64 tokens, so fewer than half of the gaps lie inside it. Across the others
        one or several tokens in between must pass the name on.
        """
        gaps, length = [], 0
        while length < DOCUMENT_TOKENS:
            low, high = self.random.choices(((4, 56), (64, 120), (120, 230)), weights=(4, 3, 3))[0]
            gaps.append(round(self.number(low, high) * self.spread))
            length += gaps[-1] + MENTION_TOKENS
        return gaps


def compose(
    scribe: Scribe, opening: str, filler: Callable[[], str], mention: Callable[[], str], separator: str = " "
) -> str:
    """Write an opening with a name, then stretches of filler without it, each followed by a sentence with the name."""
    parts = [opening]
    for gap in scribe.gaps():
        written = 0
        while written < gap:
            parts.append(filler())
            written += rough_tokens(parts[-1])
        parts.append(mention())
    return separator.join(parts)
