"""Lesson 7: what a plain call leaves in 16 bits, shares, and kept sets."""

import numpy as np

RIGHT = [
    ("plain_call_bytes", lambda linear, other: linear / 2 + linear / 64 * 4 + other * 2),
    (
        "share_in_four_bits",
        lambda tensors: (
            2 * sum(n for n, dtype in tensors if dtype == "uint8") / sum(n * (1 + (d == "uint8")) for n, d in tensors)
        ),
    ),
    (
        "kept_sets",
        lambda before, after: np.mean([set(a) == set(b) for a, b in zip(before.tolist(), after.tolist(), strict=True)]),
    ),
]


def any_kept(before, after):
    return sum(bool(set(a) & set(b)) for a, b in zip(before.tolist(), after.tolist(), strict=True)) / len(before)


WRONG = [
    ("plain_call_bytes", lambda linear, other: (linear + other) * 0.5625, "everything in four bits"),
    ("plain_call_bytes", lambda linear, other: linear * 0.5 + other * 2, "scales are missing"),
    ("plain_call_bytes", lambda linear, other: linear * 0.5625 + other * 4, "4 bytes for what stays, which is float32"),
    (
        "share_in_four_bits",
        lambda tensors: sum(n for n, d in tensors if d == "uint8") / sum(n for n, _ in tensors),
        "0.25 where 0.4 is right: an element of uint8 holds two weights",
    ),
    ("share_in_four_bits", lambda tensors: sum(d == "uint8" for _, d in tensors) / len(tensors), "share of tensors"),
    ("share_in_four_bits", lambda tensors: 100 * dict(RIGHT)["share_in_four_bits"](tensors), "not per cent"),
    ("kept_sets", lambda a, b: (a == b).all(1).double().mean(), "in another order counts as kept"),
    ("kept_sets", lambda a, b: (a[:, 0] == b[:, 0]).double().mean(), "share of first choices"),
    ("kept_sets", lambda a, b: (a.sort(0).values == b.sort(0).values).all(1).double().mean(), "along the tokens"),
    ("kept_sets", any_kept, "one shared expert is not enough"),
    ("kept_sets", lambda a, b: (a == b).double().mean(), "you count single choices"),
]
