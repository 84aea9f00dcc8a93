"""N-gram models, the baselines of the model card: what can be predicted from the last few tokens alone."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np


class NGram:
    """An n-gram model with Witten-Bell smoothing, down to a uniform guess over the vocabulary.

    Equation: p(x | h) = (count(h x) + distinct(h) * p(x | h')) / (count(h) + distinct(h)), where h' is h without its
    oldest token, and 1 / V takes the place of p(x | h') where h is empty.
    Source: Witten and Bell, "The zero-frequency problem", IEEE Transactions on Information Theory 37(4), 1991.

    Only histories that occur in `wanted` are counted, so that counting millions of tokens takes little memory.

    >>> model = NGram(1, vocab_size=4, wanted=[[1, 2, 1]])
    >>> model.count([[1, 2, 1]])
    >>> [round(float(p), 3) for p in np.exp(-model.nats([1, 2]))]
    [0.5, 0.3]
    """

    def __init__(self, order: int, *, vocab_size: int, wanted: Iterable[Sequence[int]]) -> None:
        self.order, self.vocab_size, self.tokens_counted = order, vocab_size, 0
        self.followers: dict[tuple[int, ...], Counter] = defaultdict(Counter)
        self.wanted = {
            history for tokens in wanted for i in range(len(tokens)) for history in self._histories(tokens, i, order)
        }

    def _histories(self, tokens: Sequence[int], i: int, order: int) -> list[tuple[int, ...]]:
        """The histories of token i, from the empty one to the longest."""
        return [tuple(tokens[i - n : i]) for n in range(min(order - 1, i) + 1)]

    def count(self, documents: Iterable[Sequence[int]]) -> None:
        """Count what follows each wanted history."""
        for tokens in documents:
            self.tokens_counted += len(tokens)
            for i, token in enumerate(tokens):
                for history in self._histories(tokens, i, self.order):
                    if history in self.wanted:
                        self.followers[history][token] += 1

    def nats(self, tokens: Sequence[int], *, order: int | None = None) -> np.ndarray:
        """Compute the negative log probability of each token, (len(tokens),), by this order or a lower one."""
        losses = np.empty(len(tokens))
        for i, token in enumerate(tokens):
            probability = 1 / self.vocab_size
            for history in self._histories(tokens, i, order or self.order):
                seen = self.followers.get(history)
                if seen is None:  # a longer history was not seen either
                    break
                probability = (seen[token] + len(seen) * probability) / (seen.total() + len(seen))
            losses[i] = -np.log(probability)
        return losses
