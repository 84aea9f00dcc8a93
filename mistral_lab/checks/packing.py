"""Lesson 6: two numbers from one byte, and the bits per weight."""

import math
from collections.abc import Callable

import torch

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
            (torch.tensor([192, 122, 5], dtype=torch.uint8),),
            (torch.arange(248, 256, dtype=torch.uint8),),
        ],
        mistakes=[
            Mistake(
                lambda packed: halves(high, low)(packed) - 8,
                "your numbers have a sign: stored are places in a table, from 0 to 15",
            ),
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
            Mistake(
                halves(high, lambda packed: packed & 7),
                "your low half keeps three bits, as `& 7` does: it has four, and its largest number is 15",
            ),
            Mistake(
                halves(lambda packed: packed // 15, lambda packed: packed % 15),
                "you divide by 15, which is the largest number of a half: it has 16 values, so divide by 16",
            ),
            Mistake(
                lambda packed: torch.stack([high(packed), low(packed)], dim=1),
                "you give a row of two numbers for each byte: put them into one list with `flatten`",
            ),
            Mistake(
                halves(high, lambda packed: packed << 4),
                "your low half is pushed up, and what leaves a byte is lost: keep the lowest four bits where they are",
            ),
            Mistake(
                halves(lambda packed: packed / 16, low),
                "your high half has a fraction, which is the low half: divide without it, `//`, or shift",
            ),
            Mistake(
                halves(lambda packed: packed.view(torch.int8) >> 4, low),
                "you read a byte with a sign: stored are numbers from 0 to 255",
            ),
            Mistake(halves(low, low), "you read the low half twice: the first number is in the high half"),
            Mistake(halves(high, high), "you read the high half twice: the second number is in the low half"),
            Mistake(
                lambda packed: halves(high, low)(packed).flip(0),
                "you give the last byte first: keep the order of the bytes",
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
        cases=[(64, False), (32, False), (64, True), (4096, False), (256, True), (32, True)],
        mistakes=[
            Mistake(
                lambda block_size, double: bits(block_size, double) - 4,
                "you answer {got}, the scales alone: the weight itself takes 4 bits",
            ),
            Mistake(
                lambda block_size, double: bits(block_size, double, absmax=16, nested=16 / 256),
                "you count 16 bits for an absmax, which is float32: it takes 32",
            ),
            Mistake(
                lambda block_size, double: bits(block_size, double) / 8,
                "you answer {got}: are those bytes where bits are asked for?",
            ),
            Mistake(lambda block_size, double: 4.0, "you answer {got}: the scales are missing, one for each block"),
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
                lambda block_size, double: math.floor(bits(block_size, double)),
                "you answer {got}: `//` drops the fraction of a bit that the scales add; divide with `/`",
            ),
            Mistake(
                lambda block_size, double: bits(block_size, double, small=32 + 8),
                "you answer {got} with double quantisation: the 8 bits stand in place of the float32, not beside it",
            ),
            Mistake(
                lambda block_size, double: bits(block_size, double) * block_size,
                "you answer {got}, which is a whole block: divide by its {block_size} weights",
            ),
            Mistake(
                lambda block_size, double: bits(block_size, not double),
                "you answer {got}: double quantisation and none are swapped",
            ),
        ],
    )
