"""An endless corpus in six kinds: document i of a split is the same on every machine, for every i."""

from dataclasses import dataclass

from .kinds import KINDS
from .scribe import HELD_OUT, TRAIN, Scribe

__all__ = ["HELD_OUT", "KINDS", "TRAIN", "Document", "document"]


SEED = 0


@dataclass(frozen=True)
class Document:
    """A text, its kind, and the name that comes back in it."""

    kind: str
    text: str
    name: str


def document(index: int, *, split: str = TRAIN, kind: str | None = None, spread: float = 1.0) -> Document:
    """Write document number `index` of a split. Without a kind, the six kinds take turns.

    Args:
        index: any integer from 0 on; there is no last document.
        split: "train", or "held_out", whose pairs of words never occur in training.
        kind: one of `KINDS`, to write only that kind.
        spread: 1 for the corpus as it is; the closer to 0, the sooner names come back.

    Raises:
        ValueError: an unknown kind or split.

    >>> document(7).kind, document(7) == document(7)
    ('french', True)
    """
    kinds = list(KINDS)
    if kind is None:
        kind = kinds[index % len(kinds)]
    elif kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: expected one of {', '.join(kinds)}")
    text, name = KINDS[kind](Scribe(f"{SEED}/{split}/{kind}/{index}", split, spread))
    return Document(kind, text, name)
