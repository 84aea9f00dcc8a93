"""Lesson 9: the bytes of an all-reduce, the fullest device, and one rank's part of a feed-forward network."""

import math
from collections.abc import Callable

import torch
from torch.nn.functional import silu

from ..moe import Expert, expert_forward
from .judging import Mistake, judge
from .layers import WRONG_SWITCHES


def all_reduce_bytes(function: Callable) -> Callable:
    """Check `function(nbytes, ranks)`: bytes that one rank receives while a ring of ranks adds up tensors of nbytes.

    >>> my_answer = all_reduce_bytes(lambda nbytes, ranks: NotImplemented)
    all_reduce_bytes: not tried yet; the lesson goes on with its own
    """

    def answer(nbytes, ranks):
        return 2 * (ranks - 1) * nbytes / ranks

    return judge(
        "all_reduce_bytes",
        function,
        answer=answer,
        cases=[(840, 4), (840, 2), (840, 7), (1680, 4), (840, 1)],  # whole parts; with one rank nothing is sent
        mistakes=[
            Mistake(
                lambda nbytes, ranks: (ranks - 1) * nbytes,
                "you get {got}, {ranks} - 1 whole tensors: a ring sends parts of 1/{ranks}, added up on the way",
            ),
            Mistake(
                lambda nbytes, ranks: (ranks - 1) * nbytes / ranks,
                "you get {got}, one round, after which each rank has one part of the sum: the sums must go round too",
            ),
            Mistake(
                lambda nbytes, ranks: 2 * (ranks - 1) * nbytes,
                "you get {got}, which is what all ranks receive together: the bytes of one rank are asked for",
            ),
            Mistake(
                lambda nbytes, ranks: 2 * nbytes,
                "you get {got}: per round a rank receives {ranks} - 1 parts, not {ranks}, because one is its own",
            ),
            Mistake(
                lambda nbytes, ranks: 2 * nbytes / ranks,
                "you get {got}, one part per round: how many parts does a rank receive in a round?",
            ),
            Mistake(
                lambda nbytes, ranks: nbytes,
                "you get {got}, as if the sum came at once: first it has to be computed, part by part",
            ),
            Mistake(
                lambda nbytes, ranks: 8 * answer(nbytes, ranks), "you get {got}, which is bits: bytes are asked for"
            ),
            Mistake(
                lambda nbytes, ranks: answer(nbytes, ranks) if ranks > 1 else nbytes,
                "you get {got} for one rank: there is no other rank to receive from, so 0",
            ),
            Mistake(
                lambda nbytes, ranks: answer(nbytes, ranks) if ranks > 1 else 2 * nbytes,
                "you get {got} for one rank: there is no other rank to receive from, so 0",
            ),
        ],
    )


def fullest_device(function: Callable) -> Callable:
    """Check `function(shared_bytes, num_experts, expert_bytes, ranks)`: bytes of weights on the fullest device.

    >>> my_answer = fullest_device(lambda shared_bytes, num_experts, expert_bytes, ranks: NotImplemented)
    fullest_device: not tried yet; the lesson goes on with its own
    """

    def held(experts):
        return lambda shared, count, each, ranks: shared + experts(count, ranks) * each

    return judge(
        "fullest_device",
        function,
        answer=lambda shared_bytes, num_experts, expert_bytes, ranks: (
            shared_bytes + math.ceil(num_experts / ranks) * expert_bytes
        ),
        cases=[
            (1000, 8, 30, 3),
            (1000, 8, 30, 2),
            (1000, 8, 30, 6),
            (1000, 10, 30, 3),
            (1000, 8, 70, 3),
            (400, 8, 30, 3),
            (1000, 10, 30, 4),
            (1000, 8, 30, 1),
        ],
        mistakes=[
            Mistake(
                held(lambda count, ranks: count // ranks),
                "you get {got}: {num_experts} experts cannot be divided evenly among {ranks} devices, and the fullest "
                "has one more: round up",
            ),
            Mistake(
                held(lambda count, ranks: count / ranks),
                "you get {got}, the mean over devices: experts are whole, so one of {ranks} devices holds more",
            ),
            Mistake(
                held(lambda count, ranks: round(count / ranks)),
                "you get {got} for {num_experts} experts on {ranks} devices: round up, not to the nearest",
            ),
            Mistake(
                held(lambda count, ranks: count // ranks + 1),
                "you get {got}: {num_experts} experts are divided evenly among {ranks} devices, so none has one more",
            ),
            Mistake(
                held(lambda count, ranks: count),
                "you get {got}, all {num_experts} experts on one device: they are spread over {ranks}",
            ),
            Mistake(
                lambda shared, count, each, ranks: shared / ranks + math.ceil(count / ranks) * each,
                "you divide the shared bytes: they are on every device in full",
            ),
            Mistake(
                lambda shared, count, each, ranks: (shared + count * each) / ranks,
                "you get {got}, everything divided evenly: every device holds all shared bytes, and whole experts",
            ),
            Mistake(
                lambda shared, count, each, ranks: math.ceil(count / ranks) * each,
                "you count experts alone: every device holds the shared bytes too",
            ),
            Mistake(
                lambda shared, count, each, ranks: ranks * shared + count * each,
                "you get {got}, which all {ranks} devices hold together: the bytes on the fullest are asked for",
            ),
            Mistake(
                lambda shared, count, each, ranks: shared + math.ceil(count / ranks) * each / count,
                "is the size of an expert divided once more? {expert_bytes} bytes are one expert, not all",
            ),
        ],
    )


def partial_output(function: Callable) -> Callable:
    """Check `function(x (T, d), gate (h, d), up (h, d), down (d, h), rank, ranks) -> (T, d)`: a rank's part of SwiGLU.

    >>> my_answer = partial_output(lambda x, gate, up, down, rank, ranks: NotImplemented)
    partial_output: not tried yet; the lesson goes on with its own
    """

    def of(hidden, switch=None):
        """The output from the hidden values that `hidden(h, rank, ranks)` gives as a slice."""

        def part(x, gate, up, down, rank, ranks):
            mine = hidden(len(gate), rank, ranks)
            if switch is None:
                return expert_forward(x, Expert(gate[mine], up[mine], down[:, mine]))
            return switch(x @ gate[mine].T, x @ up[mine].T) @ down[:, mine].T

        return part

    def run(h, rank, ranks):
        return slice(rank * h // ranks, (rank + 1) * h // ranks)

    def whole(h, rank, ranks):
        return slice(None)

    def inputs_cut(x, gate, up, down, rank, ranks):
        mine = run(x.shape[1], rank, ranks)
        return silu(x[:, mine] @ gate[:, mine].T) * (x[:, mine] @ up[:, mine].T) @ down.T

    def outputs_cut(x, gate, up, down, rank, ranks):
        return of(whole)(x, gate, up, down, rank, ranks)[:, run(len(down), rank, ranks)]

    def tokens_cut(x, gate, up, down, rank, ranks):
        mine = run(len(x), rank, ranks)
        return torch.zeros_like(x).index_copy(0, torch.arange(len(x))[mine], of(whole)(x[mine], gate, up, down, 0, 1))

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    gate, up = torch.randn(2, 12, 4, generator=generator, dtype=torch.float64)
    down = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    return judge(
        "partial_output",
        function,
        answer=lambda x, gate, up, down, rank, ranks: of(run)(x, gate, up, down, rank, ranks),
        cases=[
            (x, gate, up, down, 0, 2),
            (x, gate, up, down, 1, 2),
            (x, gate, up, down, 0, 1),
            (x, gate, up, down, 1, 4),
            (x, gate, up, down, 3, 4),
            (x.flip(0), gate, up, down, 0, 2),
            (x, gate.flip(0), up, down, 0, 2),
            (x, gate, up.flip(0), down, 0, 2),
            (x, gate, up, down.flip(0), 0, 2),
        ],
        mistakes=[
            Mistake(of(whole), "you compute the whole on each rank: the sum of all would be {ranks} times too large"),
            Mistake(
                lambda x, gate, up, down, rank, ranks: of(whole)(x, gate, up, down, rank, ranks) / ranks,
                "you compute the whole and divide it: the sum is right, but each rank would hold all weights",
            ),
            Mistake(
                lambda x, gate, up, down, rank, ranks: of(run)(x, gate, up, down, rank, ranks) / ranks,
                "you divide your part by the number of ranks: parts are added as they are",
            ),
            Mistake(
                inputs_cut,
                "you cut the inputs of gate and up: silu then sees parts of sums, which do not add up; cut their rows",
            ),
            Mistake(
                outputs_cut,
                "you give some outputs, from all hidden values: give all, from some; cut `down` along its columns",
            ),
            Mistake(
                tokens_cut,
                "you split the tokens, all weights on each rank: a rank takes all tokens and a part of the weights",
            ),
            Mistake(
                of(lambda h, rank, ranks: slice(rank, None, ranks)),
                "you assign hidden values in turn: the sum is right, but the part of a rank is a run of neighbours",
            ),
            Mistake(
                of(lambda h, rank, ranks: run(h, rank - 1, ranks) if rank else slice(0)),
                "your slice is that of rank - 1: ranks are counted from 0",
            ),
            Mistake(
                of(lambda h, rank, ranks: run(h, (rank - 1) % ranks, ranks)),
                "your slice is that of rank - 1: ranks are counted from 0",
            ),
            Mistake(
                of(lambda h, rank, ranks: run(h, rank + 1, ranks)),
                "your slice is that of rank + 1: rank 0 takes the first",
            ),
            Mistake(
                of(lambda h, rank, ranks: run(h, (rank + 1) % ranks, ranks)),
                "your slice is that of rank + 1: rank 0 takes the first",
            ),
            Mistake(
                of(lambda h, rank, ranks: slice(rank * h // ranks, None)),
                "your slice has no end: rank {rank} takes a run of 1/{ranks} of the hidden values",
            ),
            Mistake(
                of(lambda h, rank, ranks: slice((rank + 1) * h // ranks)),
                "your slice starts at 0 whatever the rank: rank {rank} takes a run of 1/{ranks} of the hidden values",
            ),
            Mistake(of(run, lambda gate, up: silu(up) * gate), "are gate and up swapped? The switch goes on gate"),
            *(Mistake(of(run, switch), hint) for switch, hint in WRONG_SWITCHES),
        ],
    )
