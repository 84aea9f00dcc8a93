"""Lessons 8 and 9 again: more styles of right answers, and further slips."""

import math

import numpy as np
import torch
from torch.nn.functional import linear, silu


def labels_as_tensors(prompt, answer, end):
    ids = torch.tensor([*prompt, *answer, end])
    labels = ids.clone()
    labels[: len(prompt)] = -100
    return ids, labels


def labels_as_arrays(prompt, answer, end):
    ids = np.array(prompt + answer + [end])
    return ids, np.where(np.arange(len(ids)) < len(prompt), -100, ids)


def rank_of(A):
    return A.shape[0]


def part_by_chunks(x, gate, up, down, rank, ranks):
    gate, up, down = gate.chunk(ranks)[rank], up.chunk(ranks)[rank], down.chunk(ranks, dim=1)[rank]
    return linear(silu(linear(x, gate)) * linear(x, up), down)


def part_by_views(x, gate, up, down, rank, ranks):
    gate, up = (matrix.view(ranks, -1, matrix.shape[1])[rank] for matrix in (gate, up))
    return torch.einsum("th,dh->td", silu(x @ gate.T) * (x @ up.T), down.view(len(down), ranks, -1)[:, rank])


def part_one_by_one(x, gate, up, down, rank, ranks):
    size, total = len(gate) // ranks, torch.zeros(len(x), len(down), dtype=x.dtype)
    for h in range(rank * size, (rank + 1) * size):
        total += (silu(x @ gate[h]) * (x @ up[h]))[:, None] * down[:, h]
    return total


def part_in_float32(x, gate, up, down, rank, ranks):
    x, gate, up, down = (matrix.float() for matrix in (x, gate, up, down))
    mine = torch.arange(len(gate)).reshape(ranks, -1)[rank]
    return silu(x @ gate[mine].T).mul(x @ up[mine].T) @ down[:, mine].T


RIGHT = [
    ("adapter_bytes", lambda rank, shapes: 16 * rank * sum(map(sum, shapes))),
    ("adapter_bytes", lambda rank, shapes: sum(4 * 4 * (rank * i + o * rank) for o, i in shapes)),
    ("adapter_bytes", lambda rank, shapes: 16 * rank * np.array(shapes).sum()),
    ("adapter_bytes", lambda rank, shapes: torch.tensor(shapes).sum() * rank * 4 * 4),
    ("answer_labels", labels_as_tensors),
    ("answer_labels", labels_as_arrays),
    ("answer_labels", lambda p, a, end: (p + a + [end], len(p) * [-100] + a + [end])),
    ("answer_labels", lambda p, a, end: [(*p, *a, end), (*(-100 for _ in p), *a, end)]),
    ("merged_weight", lambda W, A, B, alpha: W + (B @ A) * (alpha / rank_of(A))),
    ("merged_weight", lambda W, A, B, alpha: torch.addmm(W, B, A, alpha=alpha / B.shape[1])),
    ("merged_weight", lambda W, A, B, alpha: W.float() + alpha / len(A) * B.float() @ A.float()),
    (
        "merged_weight",
        lambda W, A, B, alpha: W + sum(alpha / len(A) * torch.outer(B[:, r], a) for r, a in enumerate(A)),
    ),
    ("all_reduce_bytes", lambda nbytes, ranks: 2 * (nbytes - nbytes // ranks)),
    ("all_reduce_bytes", lambda nbytes, ranks: sum(nbytes / ranks for _ in range(2) for _ in range(ranks - 1))),
    ("all_reduce_bytes", lambda nbytes, ranks: 2 * nbytes * (1 - 1 / ranks)),
    ("all_reduce_bytes", lambda nbytes, ranks: torch.tensor(2 * (ranks - 1) * nbytes) / ranks),
    ("fullest_device", lambda shared, E, each, R: shared + -(-E // R) * each),
    ("fullest_device", lambda shared, E, each, R: shared + (E + R - 1) // R * each),
    ("fullest_device", lambda shared, E, each, R: shared + each * max(len(range(r, E, R)) for r in range(R))),
    ("fullest_device", lambda shared, E, each, R: shared + np.ceil(E / R) * each),
    ("partial_output", part_by_chunks),
    ("partial_output", part_by_views),
    ("partial_output", part_one_by_one),
    ("partial_output", part_in_float32),
]


def all_then_masked(x, gate, up, down, rank, ranks):
    mine = torch.arange(len(gate)) * ranks // len(gate) == rank
    return (silu(x @ gate.T) * (x @ up.T) * mine) @ down.T


def all_then_where(x, gate, up, down, rank, ranks):
    mine = torch.arange(len(gate)) * ranks // len(gate) == rank
    hidden = torch.where(mine, silu(x @ gate.T) * (x @ up.T), 0.0)
    return hidden @ torch.where(mine, down, 0.0).T


def all_then_cut(x, gate, up, down, rank, ranks):
    hidden = silu(linear(x, gate)) * linear(x, up)
    return hidden.chunk(ranks, dim=1)[rank] @ down.chunk(ranks, dim=1)[rank].T


def masked_in_numpy(x, gate, up, down, rank, ranks):
    x, gate, up, down = (np.asarray(matrix) for matrix in (x, gate, up, down))
    mine = np.arange(len(gate)) * ranks // len(gate) == rank
    with np.errstate(all="ignore"):
        scores = x @ gate.T
        return (scores / (1 + np.exp(-scores)) * (x @ up.T) * mine) @ down.T


WRONG = [
    ("adapter_bytes", lambda r, shapes: 16 * r * len(shapes), "`len\\(shapes\\)` is how many matrices"),
    ("adapter_bytes", lambda r, shapes: 16 * r * sum(map(sum, shapes)) * len(shapes), "counts them again"),
    ("adapter_bytes", lambda r, shapes: 16 * r * sum(map(sum, shapes)) / len(shapes), "the mean of the matrices"),
    ("adapter_bytes", lambda r, shapes: 16 * r * sum(shapes[0]) * len(shapes), "the shape of the first"),
    ("adapter_bytes", lambda r, shapes: 12 * r * sum(map(sum, shapes)), "12 bytes per parameter, 4 too few"),
    ("answer_labels", lambda p, a, end: (p + a + [end], [-1] * len(p) + a + [end]), "label -1: PyTorch ignores -100"),
    ("answer_labels", lambda p, a, end: (p + a + [end], [-100] * len(p) + a), "end token has no label"),
    ("answer_labels", lambda p, a, end: (p + a, [-100] * len(p) + a + [end]), "missing from the input ids"),
    ("answer_labels", lambda p, a, end: (p + a + [end], p + [-100] * (len(a) + 1)), "other way round"),
    ("merged_weight", lambda W, A, B, alpha: W + 2 * B @ A, "always scaled by 2"),
    ("merged_weight", lambda W, A, B, alpha: W + 2 * alpha / len(A) * B @ A, "twice too large"),
    ("merged_weight", lambda W, A, B, alpha: W + alpha // len(A) * B @ A, "rounded down by `//`"),
    ("merged_weight", lambda W, A, B, alpha: W - alpha / len(A) * B @ A, "you subtract the change"),
    ("merged_weight", lambda W, A, B, alpha: W + alpha / len(A) * (B @ A).T, "change is transposed"),
    ("all_reduce_bytes", lambda n, R: R * n, "4 whole tensors"),
    ("all_reduce_bytes", lambda n, R: 2 * (R - 1), "the number of parts"),
    ("all_reduce_bytes", lambda n, R: n, "as if the sum came at once"),
    ("all_reduce_bytes", lambda n, R: n / R, "one part: how many parts"),
    (
        "fullest_device",
        lambda shared, E, each, R: shared + (E // R + E % R) * each,
        "everything left over on one device",
    ),
    ("fullest_device", lambda shared, E, each, R: R * shared + E * each, "hold together"),
    ("fullest_device", lambda shared, E, each, R: shared + math.ceil(E / R) * each / E, "divided once more"),
    ("fullest_device", lambda shared, E, each, R: math.ceil(E / R) * (shared + each), "once for each expert"),
    ("fullest_device", lambda shared, E, each, R: shared + int(E / R + 0.5) * each, "not to the nearest"),
    *(
        ("partial_output", function, "all ranks and drop the others'")
        for function in (all_then_masked, all_then_where, all_then_cut, masked_in_numpy)
    ),
]
