"""Lesson 6: two numbers from one byte, the bits per weight, and a matrix quantised and dequantised."""

from collections.abc import Callable

import torch

from .. import nf4
from .judging import Mistake, judge


def unpacked_numbers(function: Callable) -> Callable:
    """Check `function(packed (n,) uint8) -> (2n,)`: the numbers 0 to 15 in the order in which they were stored.

    >>> my_answer = unpacked_numbers(lambda packed: NotImplemented)
    unpacked_numbers: not tried yet; the lesson goes on with its own
    """

    def halves(first, second):
        return lambda packed: torch.stack([first(packed), second(packed)], dim=1).flatten()

    def high(packed):
        return packed >> 4

    def low(packed):
        return packed & 15

    return judge(
        "unpacked_numbers",
        function,
        answer=halves(high, low),
        cases=[
            (torch.tensor([0x1F], dtype=torch.uint8),),
            (torch.tensor([192, 122], dtype=torch.uint8),),
            (torch.arange(250, 256, dtype=torch.uint8),),
        ],
        mistakes=[
            Mistake(halves(low, high), "you read the low half first: the first number is in the high half"),
            Mistake(
                lambda packed: torch.cat([high(packed), low(packed)]),
                "you give all high halves, then all low ones: the two numbers of a byte stay together",
            ),
            Mistake(
                lambda packed: torch.cat([low(packed), high(packed)]),
                "you give all low halves, then all high ones: the two numbers of a byte stay together, the high half "
                "first",
            ),
            Mistake(
                halves(lambda packed: packed & 0xF0, low),
                "your high half is still 16 times too large: shift it down by four bits",
            ),
            Mistake(
                halves(high, lambda packed: packed),
                "your low half still holds the high one: keep the lowest four bits only",
            ),
        ],
    )


def bits_per_weight(function: Callable) -> Callable:
    """Check `function(block_size, double)`: the bits that one weight takes in NF4, its share of all scales included.

    >>> my_answer = bits_per_weight(lambda block_size, double: NotImplemented)
    bits_per_weight: not tried yet; the lesson goes on with its own
    """

    def bits(block_size, double, *, absmax=32, small=8, nested=32 / 256):
        return 4 + (small + nested if double else absmax) / block_size

    return judge(
        "bits_per_weight",
        function,
        answer=lambda block_size, double: bits(block_size, double),
        cases=[(64, False), (32, False), (64, True), (4096, False), (256, True)],
        mistakes=[
            Mistake(
                lambda block_size, double: bits(block_size, double) / 8,
                "you answer {got}: are those bytes where bits are asked for?",
            ),
            Mistake(
                lambda block_size, double: 4.0,
                "you answer {got}: the scales are missing, one for each block",
            ),
            Mistake(
                lambda block_size, double: bits(block_size, double, absmax=4, small=1, nested=4 / 256),
                "you answer {got}: a float32 has 4 bytes, but bits are asked for",
            ),
            Mistake(
                lambda block_size, double: bits(block_size, double, absmax=16),
                "you answer {got}: that counts 16 bits for an absmax, which is a float32",
            ),
            Mistake(
                lambda block_size, double: bits(block_size, double, nested=0),
                "you answer {got} with double quantisation: 256 scales of 8 bits share one more float32",
            ),
            Mistake(
                lambda block_size, double: bits(block_size, double, nested=32),
                "you answer {got} with double quantisation: the second float32 is shared by 256 blocks",
            ),
            Mistake(
                lambda block_size, double: bits(block_size, double, nested=32 * block_size / 256),
                "you answer {got} with double quantisation: 256 blocks share the second float32, not 256 weights",
            ),
            Mistake(
                lambda block_size, double: bits(block_size, not double),
                "you answer {got}: double quantisation and none are swapped",
            ),
        ],
    )


def round_trip(function: Callable) -> Callable:
    """Check `function(w, block_size, codebook (16,))`: w quantised to four bits and back, in blocks along its rows.

    >>> my_answer = round_trip(lambda w, block_size, codebook: NotImplemented)
    round_trip: not tried yet; the lesson goes on with its own
    """

    def answer(w, block_size, codebook):
        return nf4.dequantize(nf4.quantize(w, block_size=block_size, codebook=codebook))

    def nearest(scaled, codebook):
        return codebook[(scaled[..., None] - codebook).abs().argmin(-1)]

    def below(scaled, codebook):
        values = codebook.sort().values
        return values[(torch.searchsorted(values, scaled.contiguous(), right=True) - 1).clamp(min=0)]

    def rounded(w, block_size, codebook, *, scale=lambda blocks: blocks.abs().amax(1, True), take=nearest, undo=True):
        blocks = w.reshape(-1, block_size)
        values = take(blocks / scale(blocks), codebook)
        return (values * scale(blocks) if undo else values).reshape(w.shape)

    w = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [2.0], [0.1], [0.5]])
    return judge(
        "round_trip",
        function,
        answer=answer,
        cases=[
            (w, 64, nf4.CODEBOOK),
            (w, 32, nf4.CODEBOOK),
            (w, 64, nf4.FP4_CODEBOOK),
            (-w, 64, nf4.CODEBOOK),
            (w[:, :32].contiguous(), 64, nf4.CODEBOOK),
        ],
        mistakes=[
            Mistake(
                lambda w, block_size, codebook: rounded(w, block_size, codebook, scale=lambda blocks: w.abs().max()),
                "rows of small weights come back too coarse: is your absmax that of the whole tensor, not of a block?",
            ),
            Mistake(
                lambda w, block_size, codebook: rounded(
                    w, block_size, codebook, scale=lambda blocks: blocks.amax(1, True)
                ),
                "your scale is the largest value of a block: it must be the largest absolute value",
            ),
            Mistake(
                lambda w, block_size, codebook: rounded(w.T, block_size, codebook).T,
                "your blocks run down the columns: they run along the rows, as the weights lie in memory",
            ),
            Mistake(
                lambda w, block_size, codebook: rounded(w, block_size, codebook, undo=False),
                "your weights come back between -1 and 1: multiply by the absmax again",
            ),
            Mistake(
                lambda w, block_size, codebook: rounded(w, block_size, codebook, take=below),
                "your weights are rounded down: take the nearest value",
            ),
            Mistake(
                lambda w, block_size, codebook: w.clone(),
                "your weights come back unchanged: is anything rounded?",
            ),
        ],
    )
