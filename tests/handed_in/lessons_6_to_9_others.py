"""Lessons 6 to 9 again: slips by someone who did not write these checks."""

import math

import torch


def back(w, block_size, codebook, scale=lambda blocks: blocks.abs().amax(1, keepdim=True), undo=None, rows=None):
    blocks = (w if rows is None else rows(w)).reshape(-1, block_size)
    absmax = scale(blocks)
    numbers = (blocks / absmax).unsqueeze(-1).sub(codebook).abs().argmin(-1)
    return (codebook[numbers] * (absmax if undo is None else undo(blocks))).reshape(w.shape)


def without_zero(w, block_size, codebook):
    return back(w, block_size, codebook[codebook != 0])


def part(x, gate, up, down, mine, switch=torch.nn.functional.silu):
    return (switch(x @ gate[mine].T) * (x @ up[mine].T)) @ down[:, mine].T


def block_of(rank, ranks, h):
    return slice(rank * (h // ranks), (rank + 1) * (h // ranks))


def labels_of(prompt, answer, end, ignored=-100):
    return [*prompt, *answer, end], [ignored] * len(prompt) + [*answer, end]


WRONG = [
    ("unpacked_numbers", lambda b: torch.stack([b >> 4, b & 7], 1).flatten(), "three bits, as `& 7` does"),
    ("unpacked_numbers", lambda b: torch.stack([b // 15, b % 15], 1).flatten(), "you divide by 15"),
    ("unpacked_numbers", lambda b: torch.stack([b >> 4, b >> 4], 1).flatten(), "read the high half twice"),
    ("unpacked_numbers", lambda b: torch.stack([b // 16 - 8, b % 16 - 8], 1).flatten(), "numbers have a sign"),
    ("bits_per_weight", lambda B, double: 4 + (8 + 32 if double else 32) / B, "second float32 is shared by 256"),
    ("bits_per_weight", lambda B, double: 4 + (16 if not double else 8 + 16 / 256) / B, "16 bits for an absmax"),
    ("bits_per_weight", lambda B, double: 4 * (1 + 1 / B), "whatever `double` is"),
    ("bits_per_weight", lambda B, double: (32 if not double else 8 + 32 / 256) / B, "the scales alone"),
    (
        "round_trip",
        lambda w, B, c: back(w, B, c, scale=lambda x: x.norm(dim=1, keepdim=True)),
        "scale is the norm of a block",
    ),
    (
        "round_trip",
        lambda w, B, c: back(w, B, c, scale=lambda x: x.std(dim=1, keepdim=True)),
        "scale is the standard deviation",
    ),
    ("round_trip", lambda w, B, c: back(w, B, c, undo=lambda x: 1), "multiply by the absmax again"),
    ("round_trip", without_zero, "no weight of yours comes back as 0"),
    (
        "plain_call_bytes",
        lambda linear, other: linear * 0.5 + other * 0.5,
        "everything in four bits, and without scales",
    ),
    ("plain_call_bytes", lambda linear, other: linear * 0.5625 + other, "1 byte for what stays in 16 bits"),
    ("plain_call_bytes", lambda linear, other: (linear + other) * 2 * 0.5625, "by 0.5625, which is no share"),
    ("plain_call_bytes", lambda linear, other: linear * (0.5 + 8 / 64) + other * 2, "you count 8 bytes for a scale"),
    (
        "share_in_four_bits",
        lambda t: sum(n for n, d in t if d == "uint8") / sum(n for n, d in t if d != "uint8"),
        "get 0.333333, which is elements of uint8 to all others",
    ),
    (
        "share_in_four_bits",
        lambda t: t[0][0] * 2 / (t[0][0] * 2 + sum(n for n, _ in t[1:])),
        "get 0.789474, with the first tensor alone",
    ),
    (
        "share_in_four_bits",
        lambda t: 2 * sum(n for n, d in t if d == "uint8") / sum(n for n, _ in t),
        "below the line too",
    ),
    (
        "share_in_four_bits",
        lambda t: 2 * sum(n for n, d in t if d == "uint8"),
        "get 200, which is the number of four-bit param",
    ),
    ("kept_sets", lambda a, b: (a.sort(1).values == b.sort(1).values).float().mean(), "you count single choices"),
    (
        "kept_sets",
        lambda a, b: torch.tensor([set(x) == set(y) for x, y in zip(a, b, strict=True)]).float().mean(),
        "sets of tensors",
    ),
    ("kept_sets", lambda a, b: (a.sort(1).values == b.sort(1).values).all(1).sum(), "that is a count"),
    ("kept_sets", lambda a, b: float(torch.equal(a.sort(1).values, b.sort(1).values)), "1 if every token is kept"),
    (
        "adapter_bytes",
        lambda r, shapes: sum(4 * r * (o + i) * 2 for o, i in shapes),
        "8 bytes per parameter: is the optimiser",
    ),
    (
        "adapter_bytes",
        lambda r, shapes: sum(4 * r * (o + i) + 12 * o * i for o, i in shapes),
        "get 405,504: you count a gradient .* for the matrix itself",
    ),
    ("adapter_bytes", lambda r, shapes: sum(r * (o + i) for o, i in shapes), "the number of parameters: bytes"),
    ("adapter_bytes", lambda r, shapes: sum(16 * r * max(o, i) for o, i in shapes), "the larger of A and B alone"),
    ("adapter_bytes", lambda r, shapes: sum(16 * (r * i + o) for o, i in shapes), "rank is left out of B, which has 8"),
    ("answer_labels", lambda p, a, end: labels_of(p, a, end, 100), "label 100, without its minus"),
    ("answer_labels", lambda p, a, end: labels_of(p[:-1], p[-1:] + a, end), "last token of your prompt counts"),
    ("answer_labels", lambda p, a, end: (p + [end] + a, [-100] * len(p) + [end] + a), "stands between"),
    ("answer_labels", lambda p, a, end: (p + a + [end], [-100] * len(a) + a + [end]), "as often as the answer is long"),
    ("merged_weight", lambda W, A, B, alpha: W + len(A) / alpha * B @ A, "upside down"),
    ("merged_weight", lambda W, A, B, alpha: W + (A.T @ B.T) * alpha / len(A), "change is transposed"),
    ("merged_weight", lambda W, A, B, alpha: (W + B @ A) * alpha / len(A), "you scale W too"),
    ("merged_weight", lambda W, A, B, alpha: W + alpha / math.sqrt(len(A)) * B @ A, "rsLoRA"),
    ("all_reduce_bytes", lambda n, ranks: 2 * (ranks - 1) / ranks * n / 1024, "1,024 times too small: is it a unit"),
    ("all_reduce_bytes", lambda n, ranks: n * math.ceil(math.log2(ranks)), "whole tensors in a tree"),
    ("all_reduce_bytes", lambda n, ranks: 2 * n * (ranks + 1) / ranks, r"get 2,100, 4 \+ 1 parts per round"),
    ("all_reduce_bytes", lambda n, ranks: 2 * (ranks - 1) * (n // (ranks + 1)), r"the tensor in 4 \+ 1 parts"),
    (
        "fullest_device",
        lambda shared, E, each, ranks: shared + (E // ranks + E % ranks) * each,
        "everything left over on one device",
    ),
    (
        "fullest_device",
        lambda shared, E, each, ranks: shared + (E - E // ranks) * each,
        "all other devices hold together",
    ),
    (
        "fullest_device",
        lambda shared, E, each, ranks: math.ceil((shared + E * each) / ranks),
        "get 414, everything divided evenly",
    ),
    ("fullest_device", lambda shared, E, each, ranks: shared + each, "one expert on a device"),
    (
        "partial_output",
        lambda x, g, u, d, r, R: part(x, g, u, d, block_of(r, R, len(g)), torch.nn.functional.gelu),
        "switch is GELU",
    ),
    (
        "partial_output",
        lambda x, g, u, d, r, R: part(x, g, u, d, block_of(R - 1 - r, R, len(g))),
        "from the last to the first",
    ),
    (
        "partial_output",
        lambda x, g, u, d, r, R: R * part(x, g, u, d, block_of(r, R, len(g))),
        "multiply your part by the number of ranks",
    ),
    (
        "partial_output",
        lambda x, g, u, d, r, R: part(x, g, u, d, block_of(r, R, len(g)), lambda z: z),
        "switch is missing",
    ),
]
