"""Lesson 6: packed numbers, bits per weight, and the round trip."""

import numpy as np
import reference
import torch

from mistral_lab import nf4


def rounded(w, block_size, codebook):
    numbers, absmax, margins = reference.round_blocks(w, codebook, block_size)
    assert margins.min() > 1e-5  # no weight lies where float32 decides
    return (np.asarray(codebook)[numbers] * absmax.repeat(block_size)).reshape(w.shape)


RIGHT = [
    (
        "unpacked_numbers",
        lambda packed: np.array([int(digit, 16) for byte in packed.tolist() for digit in f"{byte:02x}"]),
    ),
    ("bits_per_weight", lambda block_size, double: 4 + ((8 + 32 / 256) if double else 32) / block_size),
    ("round_trip", rounded),
]


def quantised(w, block_size, codebook, scale):
    blocks = w.reshape(-1, block_size)
    top = scale(blocks)
    return (codebook[((blocks / top)[..., None] - codebook).abs().argmin(-1)] * top).reshape(w.shape)


WRONG = [
    ("unpacked_numbers", lambda b: torch.stack([b % 16, b // 16], 1).flatten(), "low half first"),
    ("unpacked_numbers", lambda b: torch.cat([b // 16, b % 16]), "all high halves"),
    ("unpacked_numbers", lambda b: torch.stack([b - b % 16, b % 16], 1).flatten(), "16 times too large"),
    ("bits_per_weight", lambda B, double: 0.5 + 4 / B if not double else 0.5 + (1 + 4 / 256) / B, "are those bytes"),
    ("bits_per_weight", lambda B, double: 4, "scales are missing"),
    ("bits_per_weight", lambda B, double: 4 + (8 if double else 32) / B, "share one more float32"),
    ("bits_per_weight", lambda B, double: 4 + 32 / B, "whatever `double` is"),
    ("round_trip", lambda w, B, c: quantised(w, B, c, lambda x: w.abs().max()), "absmax that of the whole tensor"),
    (
        "round_trip",
        lambda w, B, c: quantised(w, B, c, lambda x: x.max(1, keepdim=True).values),
        "largest absolute value",
    ),
    ("round_trip", lambda w, B, c: quantised(w.T, B, c, lambda x: x.abs().amax(1, True)).T, "down the columns"),
    ("round_trip", lambda w, B, c: nf4.dequantize(nf4.quantize(w, block_size=B)), "calls `quantize` of the package"),
]
