"""Lessons 6 and 7 again: more styles of right answers, and further slips."""

from fractions import Fraction

import numpy as np
import torch

from mistral_lab import nf4


def by_loop(packed):
    numbers = []
    for byte in packed:
        numbers += [byte // 16, byte % 16]
    return torch.stack(numbers)


def by_slices(packed):
    numbers = torch.empty(2 * len(packed), dtype=torch.int64)
    numbers[0::2], numbers[1::2] = packed >> 4, packed & 0xF
    return numbers


def by_numpy(packed):
    return np.stack(np.divmod(packed.numpy(), 16), axis=1).reshape(-1)


def by_list(packed):
    return [number for byte in packed.tolist() for number in divmod(byte, 16)]


def bits_of_a_group(block_size, double):
    weights = 256 * block_size
    return (4 * weights + (256 * 8 + 32 if double else 256 * 32)) / weights


def with_sort(w, block_size, codebook):
    ascending = codebook.sort().values
    flat = w.reshape(-1, block_size)
    top = flat.abs().max(1, keepdim=True).values
    numbers = torch.bucketize(flat / top, (ascending[1:] + ascending[:-1]) / 2)
    return (ascending[numbers] * top).view_as(w)


def block_by_block(w, block_size, codebook):
    return torch.cat(
        [
            codebook[((block / block.abs().max())[:, None] - codebook).square().argmin(1)] * block.abs().max()
            for block in w.flatten().split(block_size)
        ]
    ).reshape(w.shape)


def in_float64(w, block_size, codebook):
    return block_by_block(w.double(), block_size, codebook.double())


def in_numpy(w, block_size, codebook):
    blocks, values = w.numpy().reshape(-1, block_size), codebook.numpy()
    top = np.abs(blocks).max(axis=1, keepdims=True)
    return (values[np.abs((blocks / top)[..., None] - values).argmin(-1)] * top).reshape(w.shape)


def share_by_totals(tensors):
    totals = {}
    for elements, dtype in tensors:
        totals[dtype] = totals.get(dtype, 0) + elements
    packed = 2 * totals.pop("uint8", 0)
    return packed / (packed + sum(totals.values()))


def share_in_numpy(tensors):
    weights = np.array([n for n, _ in tensors]) * np.array([2 if d == "uint8" else 1 for _, d in tensors])
    return weights[[d == "uint8" for _, d in tensors]].sum() / weights.sum()


def share_in_tensors(tensors):
    packed = torch.tensor([2.0 * n for n, d in tensors if d == "uint8"]).sum()
    return packed / (packed + sum(n for n, d in tensors if d != "uint8"))


def share_as_fraction(tensors):
    weights = [(2 * n, True) if d == "uint8" else (n, False) for n, d in tensors]
    return float(Fraction(sum(n for n, four in weights if four), sum(n for n, _ in weights)))


RIGHT = [
    *(("unpacked_numbers", function) for function in (by_loop, by_slices, by_numpy, by_list)),
    ("bits_per_weight", bits_of_a_group),
    ("bits_per_weight", lambda block_size, double: 4 + (8.125 if double else 32) / block_size),
    ("bits_per_weight", lambda B, double: torch.tensor(4 + (8 + 1 / 8) / B if double else 4 + 32 / B)),
    ("bits_per_weight", lambda B, double: np.float32(4 + [32, 8.125][int(double)] / B)),
    *(("round_trip", function) for function in (with_sort, block_by_block, in_float64, in_numpy)),
    ("plain_call_bytes", lambda linear, other: linear // 2 + linear // 64 * 4 + 2 * other),
    ("plain_call_bytes", lambda linear, other: (linear * 4 + linear / 64 * 32 + other * 16) / 8),
    ("plain_call_bytes", lambda linear, other: 0.5625 * linear + 2 * other),
    ("plain_call_bytes", lambda linear, other: torch.tensor([linear, other]).float() @ torch.tensor([0.5625, 2.0])),
    *(
        ("share_in_four_bits", function)
        for function in (share_by_totals, share_in_numpy, share_in_tensors, share_as_fraction)
    ),
    ("kept_sets", lambda a, b: (a.sort(1).values == b.sort(1).values).all(1).float().mean()),
    ("kept_sets", lambda a, b: (a[:, :, None] == b[:, None]).any(2).all(1).double().mean().item()),
    ("kept_sets", lambda a, b: float((np.sort(a, 1) == np.sort(b, 1)).all(1).mean())),
    (
        "kept_sets",
        lambda a, b: sum(sorted(x) == sorted(y) for x, y in zip(a.tolist(), b.tolist(), strict=True)) / len(a),
    ),
    ("kept_sets", lambda a, b: ((2**a).sum(1) == (2**b).sum(1)).float().mean()),
]


def back_and_forth(w, block_size, codebook, scale=lambda x: x.abs().amax(1, True), pick=None):
    blocks = w.reshape(-1, block_size)
    away = (blocks / scale(blocks))[..., None] - codebook
    return (codebook[(pick or (lambda x: x.abs().argmin(-1)))(away)] * scale(blocks)).reshape(w.shape)


def own_codes_and_the_package(w, block_size, codebook):
    stored = nf4.quantize(w, block_size=block_size, codebook=codebook)
    return nf4.dequantize(stored)


def kept_if(same):
    return lambda a, b: same(a, b).double().mean()


def sets_of_tensors(a, b):
    return sum(set(x) == set(y) for x, y in zip(a, b, strict=True)) / len(a)


WRONG = [
    ("unpacked_numbers", lambda b: torch.stack([b & 15, b & 15], 1).flatten(), "read the low half twice"),
    ("unpacked_numbers", lambda b: torch.stack([b / 16, b % 16], 1).flatten(), "high half has a fraction"),
    ("unpacked_numbers", lambda b: torch.stack([b.to(torch.int8) >> 4, b & 15], 1).flatten(), "byte with a sign"),
    ("unpacked_numbers", lambda b: torch.stack([b >> 4, b], 1).flatten(), "low half still holds the high one"),
    ("unpacked_numbers", lambda b: torch.stack([b >> 4, b & 15], 1), "a row of two numbers for each byte"),
    ("bits_per_weight", lambda B, double: 4 + (8 if double else 32) // B, "`//` drops the fraction"),
    ("bits_per_weight", lambda B, double: 4 + (8 / B + 32 / 256 if double else 32 / B), "not 256 weights"),
    ("bits_per_weight", lambda B, double: 4 + (32 + (8 + 32 / 256) * double) / B, "in place of the float32"),
    ("bits_per_weight", lambda B, double: 4 * B + (8 + 32 / 256 if double else 32), "a whole block: divide by its 64"),
    ("round_trip", lambda w, B, c: back_and_forth(w, B, c / c.abs().max()), "you stretch the codebook"),
    ("round_trip", own_codes_and_the_package, "calls `quantize` of the package"),
    ("round_trip", lambda w, B, c: back_and_forth(w, w.shape[1], c), "that of a row"),
    ("round_trip", lambda w, B, c: back_and_forth(w, B, c, pick=lambda x: x.argmin(-1)), "take absolute values"),
    (
        "round_trip",
        lambda w, B, c: back_and_forth(w, B, c, scale=lambda x: x.abs().mean(1, keepdim=True)),
        "mean absolute value",
    ),
    ("round_trip", lambda w, B, c: back_and_forth(w, B, c, pick=lambda x: x.abs().argmax(-1)), "the farthest value"),
    ("plain_call_bytes", lambda linear, other: linear * 0.5625, "leave out the 64,000 parameters"),
    ("plain_call_bytes", lambda linear, other: (linear + other) * 2, "everything in 16 bits"),
    ("plain_call_bytes", lambda linear, other: linear * 0.5 + linear / 64 * 2 + other * 2, "a scale, which is float32"),
    ("plain_call_bytes", lambda linear, other: linear * (4 + 32 / 64) + other * 16, "you count bits"),
    ("plain_call_bytes", lambda linear, other: linear * 2 + other * 0.5625, "other way round"),
    (
        "share_in_four_bits",
        lambda tensors: sum(2 * n for n, d in tensors if d == "uint8") / sum(n for n, _ in tensors),
        "below the line too",
    ),
    (
        "share_in_four_bits",
        lambda tensors: (2 * (t := {d: n for n, d in tensors}).get("uint8", 0)) / (sum(t.values()) + t.get("uint8", 0)),
        "several tensors have the same dtype",
    ),
    (
        "share_in_four_bits",
        lambda tensors: (
            sum(n for n, d in tensors if d == "uint8")
            / sum(n * {"uint8": 1, "float32": 4}.get(d, 2) for n, d in tensors)
        ),
        "share of bytes",
    ),
    ("share_in_four_bits", lambda tensors: 1 - share_by_totals(tensors), "that is not in four bits"),
    ("kept_sets", kept_if(lambda a, b: a.amax(1) == b.amax(1)), "the largest number of each set alone"),
    ("kept_sets", kept_if(lambda a, b: a.sum(1) == b.sum(1)), "you compare sums, "),
    ("kept_sets", kept_if(lambda a, b: a.prod(1) == b.prod(1)), "you compare products"),
    ("kept_sets", kept_if(lambda a, b: (a * a).sum(1) == (b * b).sum(1)), "sums of squares"),
    ("kept_sets", kept_if(lambda a, b: torch.isin(a, b).all(1)), "among those of all tokens"),
    ("kept_sets", kept_if(lambda a, b: (a.sort(1).indices == b.sort(1).indices).all(1)), r"\(indices\), not the exp"),
    ("kept_sets", sets_of_tensors, "`tolist\\(\\)` first"),
]
