"""Keys and values that come from memory and not from the processor's cache, and how fast memory delivers them."""

import math
import time
from functools import cache

import torch

RING_BYTES = 2**28  # that are read in turn: several times a processor's own cache
PIECE_BYTES = 2**25  # read at a time to find the speed of memory: a millisecond, in which few are interrupted
PASSES = 8  # over as many bytes as the ring has, to find that speed


class Ring:
    """Memory that is cut into keys and values one layer after another, and from its start again at its end.

    A layer's place is read again only after all the others, so that it has left the processor's cache.

    Args:
        dtype: of the numbers.
        n_kv_heads, tokens: the most heads that a layer will have, and S; two such layers fit in, however large.
        head_dim: D.
    """

    def __init__(self, dtype: torch.dtype, n_kv_heads: int, tokens: int, head_dim: int = 128) -> None:
        self.tokens, self.head_dim, self.place = tokens, head_dim, 0
        count = max(RING_BYTES // dtype.itemsize, 4 * n_kv_heads * tokens * head_dim)
        block = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).to(dtype)
        self.numbers = block.repeat(math.ceil(count / len(block)))

    def layer(self, n_kv_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut the next keys and values (1, K, S, D)."""
        count = 2 * n_kv_heads * self.tokens * self.head_dim
        if self.place + count > len(self.numbers):
            self.place = 0
        part = self.numbers[self.place : self.place + count]
        self.place += count
        return part.view(2, 1, n_kv_heads, self.tokens, self.head_dim).unbind()


@cache
def memory_speed(threads: int) -> float:
    """Measure the most bytes per second that memory delivers to this CPU with so many threads, once in a process.

    Every floor of the lesson is computed with it, so that the floors agree. Numbers are added up, the fastest reading
    that PyTorch has, in pieces of a buffer that is too large for the processor's cache. The fastest piece counts,
    because what other programs take of the machine only adds to a time.
    """
    pieces = torch.ones(RING_BYTES // 4).split(PIECE_BYTES // 4)
    fastest_s = float("inf")
    for piece in PASSES * pieces:
        start = time.perf_counter()
        piece.sum()
        fastest_s = min(fastest_s, time.perf_counter() - start)
    return PIECE_BYTES / fastest_s
