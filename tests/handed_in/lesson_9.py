"""Lesson 9: an all-reduce, the fullest device, and one rank's part."""

import numpy as np
import reference
import torch


def ring(nbytes, ranks):
    """Bytes that rank 0 receives, part by part, until every rank has every part of every rank."""
    held = [[{rank} for _ in range(ranks)] for rank in range(ranks)]  # [rank][part]: whose numbers it holds
    received = 0
    for step in range(2 * (ranks - 1)):
        sent = [(rank, (rank - step) % ranks, held[rank][(rank - step) % ranks]) for rank in range(ranks)]
        for rank, part, numbers in sent:
            held[(rank + 1) % ranks][part] = held[(rank + 1) % ranks][part] | numbers
        received += nbytes // ranks
    assert all(part == set(range(ranks)) for parts in held for part in parts)
    return received


def fullest_by_dealing(shared_bytes, num_experts, expert_bytes, ranks):
    devices = [shared_bytes] * ranks
    for expert in range(num_experts):
        devices[expert % ranks] += expert_bytes
    return max(devices)


def part_by_hand(x, gate, up, down, rank, ranks):
    gate, up, down = (np.asarray(matrix) for matrix in (gate, up, down))
    mine = np.split(np.arange(len(gate)), ranks)[rank]
    every = np.zeros((len(x), 1), dtype=int), np.ones((len(x), 1))
    return reference.experts(x, *every, gate[None, mine], up[None, mine], down[None][:, :, mine])


RIGHT = [
    ("all_reduce_bytes", ring),
    ("fullest_device", fullest_by_dealing),
    ("partial_output", part_by_hand),
]


def swiglu(x, gate, up, down):
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def my_slice(rank, ranks, h):
    return slice(rank * h // ranks, (rank + 1) * h // ranks)


def part_of(x, gate, up, down, mine):
    return swiglu(x, gate[mine], up[mine], down[:, mine])


def inputs_cut(x, gate, up, down, rank, ranks):
    x, gate, up = (matrix.chunk(ranks, dim=1)[rank] for matrix in (x, gate, up))
    return swiglu(x, gate, up, down)


WRONG = [
    ("all_reduce_bytes", lambda n, R: (R - 1) * n, "get 2,520, 4 - 1 whole tensors: a ring sends parts of 1/4"),
    ("all_reduce_bytes", lambda n, R: (R - 1) * n / R, "get 630, one round.*the sums must go round too"),
    ("all_reduce_bytes", lambda n, R: 2 * (R - 1) * n, "all ranks receive together"),
    ("all_reduce_bytes", lambda n, R: 2 * n, "a rank receives 4 - 1 parts, not 4"),
    ("all_reduce_bytes", lambda n, R: 2 * n // R, "how many parts does a rank receive in a round"),
    ("all_reduce_bytes", lambda n, R: ring(n, R) or n, "for one rank: there is no other rank to receive from, so 0"),
    ("all_reduce_bytes", lambda n, R: 1.5 * n, "whatever `ranks` is"),
    ("fullest_device", lambda shared, E, each, R: shared + E // R * each, "get 1,060: 8 experts .* among 3 .*round up"),
    ("fullest_device", lambda shared, E, each, R: shared + E * each / R, "mean over devices: experts are whole"),
    ("fullest_device", lambda shared, E, each, R: shared + (E // R + 1) * each, "are divided evenly"),
    ("fullest_device", lambda shared, E, each, R: shared + round(E / R) * each, "not to the nearest"),
    ("fullest_device", lambda shared, E, each, R: shared / R + -(-E // R) * each, "divide the shared bytes"),
    ("fullest_device", lambda shared, E, each, R: (shared + E * each) / R, "everything divided evenly"),
    ("fullest_device", lambda shared, E, each, R: shared + E * each, "all 8 experts on one device"),
    ("fullest_device", lambda shared, E, each, R: -(-E // R) * each, "count experts alone"),
    ("partial_output", lambda x, gate, up, down, r, R: swiglu(x, gate, up, down), "whole on each rank.*2 times too l"),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: swiglu(x, gate, up, down) / R,
        "each rank would hold all weights",
    ),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: part_of(x, gate, up, down, my_slice(r, R, len(gate))) / R,
        "divide your part by the number of ranks",
    ),
    ("partial_output", inputs_cut, "silu then sees parts of sums"),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: swiglu(x, gate, up, down.chunk(R)[r]),
        "some outputs, from all hidden values",
    ),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: part_of(x, gate, up, down, slice(r, None, R)),
        "in turn: the sum is right",
    ),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: part_of(x, gate, up, down, my_slice((r - 1) % R, R, len(gate))),
        "that of rank - 1: ranks are counted from 0",
    ),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: part_of(x, gate, up, down, my_slice(r + 1, R, len(gate))),
        "that of rank [+] 1",
    ),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: part_of(x, gate, up, down, slice(0, len(gate) // R)),
        "whatever `rank` is",
    ),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: part_of(x, up, gate, down, my_slice(r, R, len(gate))),
        "gate and up swapped",
    ),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: swiglu(x, gate[my_slice(r, R, len(gate))], up[my_slice(r, R, len(gate))], down),
        "raises RuntimeError",
    ),
]
