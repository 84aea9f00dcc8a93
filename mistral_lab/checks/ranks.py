"""Lesson 9: one rank's part of a feed-forward network, from the weights of that rank alone."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import silu
from torch.overrides import TorchFunctionMode

from ..moe import Expert, expert_forward
from .judging import Mistake, judge
from .layers import WRONG_SWITCHES
from .values import Refusal

ALL_COMPUTED = (
    "you compute the hidden values of all ranks and drop the others': the sum is right, but a rank would hold all "
    "weights; cut gate, up and down first"
)


class Products(TorchFunctionMode):
    """Whether every product was finite: none is, if its weights are infinite where another rank holds them."""

    names = frozenset("matmul mm bmm addmm baddbmm mv dot inner tensordot einsum linear mul multiply".split())

    def __init__(self) -> None:
        super().__init__()
        self.all_finite = True

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "").strip("_") in self.names:
            self.all_finite &= bool(torch.isfinite(result).all())
        return result


@contextmanager
def own_weights_alone() -> Iterator[None]:
    """Refuse what multiplies by infinite weights, even if it drops the result. Products in NumPy are not seen.

    Raises:
        Refusal: on leaving, if it was done.
    """
    with Products() as products:
        yield
    if not products.all_finite:
        raise Refusal(ALL_COMPUTED)


def partial_output(function: Callable) -> Callable:
    """Check `function(x (T, d), gate (f, d), up (f, d), down (d, f), rank, ranks) -> (T, d)`: a rank's part of SwiGLU.

    >>> my_answer = partial_output(lambda x, gate, up, down, rank, ranks: NotImplemented)
    partial_output: not tried yet; the lesson goes on with its own
    """

    def of(hidden, switch=None):
        """The output from the hidden values that `hidden(f, rank, ranks)` gives as a slice."""

        def part(x, gate, up, down, rank, ranks):
            mine = hidden(len(gate), rank, ranks)
            if switch is None:
                return expert_forward(x, Expert(gate[mine], up[mine], down[:, mine]))
            return switch(x @ gate[mine].T, x @ up[mine].T) @ down[:, mine].T

        return part

    def run(f, rank, ranks):
        return slice(rank * f // ranks, (rank + 1) * f // ranks)

    def whole(f, rank, ranks):
        return slice(None)

    def inputs_cut(x, gate, up, down, rank, ranks):
        mine = run(x.shape[1], rank, ranks)
        return silu(x[:, mine] @ gate[:, mine].T) * (x[:, mine] @ up[:, mine].T) @ down.T

    def outputs_cut(x, gate, up, down, rank, ranks):
        return of(whole)(x, gate, up, down, rank, ranks)[:, run(len(down), rank, ranks)]

    def tokens_cut(x, gate, up, down, rank, ranks):
        mine = run(len(x), rank, ranks)
        return torch.zeros_like(x).index_copy(0, torch.arange(len(x))[mine], of(whole)(x[mine], gate, up, down, 0, 1))

    def masked(x, gate, up, down, rank, ranks):
        mine = torch.zeros(len(gate), dtype=x.dtype)
        mine[run(len(gate), rank, ranks)] = 1
        return (silu(x @ gate.T) * (x @ up.T) * mine) @ down.T

    def held_by(rank, ranks):
        """The weights, infinite where another rank holds them."""
        others = torch.ones(len(gate), dtype=torch.bool)
        others[run(len(gate), rank, ranks)] = False
        return (
            gate.masked_fill(others[:, None], math.inf),
            up.masked_fill(others[:, None], math.inf),
            down.masked_fill(others, math.inf),
        )

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
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
            (x[:1], gate[:8], up[:8], down[:, :8], 2, 4),
            (x, *held_by(1, 2), 1, 2),
            (x[:3], *held_by(2, 4), 2, 4),
        ],
        mistakes=[
            Mistake(
                of(lambda f, rank, ranks: run(f, ranks - 1 - rank, ranks)),
                "your ranks go from the last to the first: rank 0 holds the first rows of gate and up",
            ),
            Mistake(
                lambda x, gate, up, down, rank, ranks: ranks * of(run)(x, gate, up, down, rank, ranks),
                "you multiply your part by the number of ranks: the parts are added up as they are",
            ),
            Mistake(masked, ALL_COMPUTED),
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
                of(lambda f, rank, ranks: slice(rank, None, ranks)),
                "you assign hidden values in turn: the sum is right, but the part of a rank is a run of neighbours",
            ),
            Mistake(
                of(lambda f, rank, ranks: run(f, rank - 1, ranks) if rank else slice(0)),
                "your slice is that of rank - 1: ranks are counted from 0",
            ),
            Mistake(
                of(lambda f, rank, ranks: run(f, (rank - 1) % ranks, ranks)),
                "your slice is that of rank - 1: ranks are counted from 0",
            ),
            Mistake(
                of(lambda f, rank, ranks: run(f, rank + 1, ranks)),
                "your slice is that of rank + 1: rank 0 takes the first",
            ),
            Mistake(
                of(lambda f, rank, ranks: run(f, (rank + 1) % ranks, ranks)),
                "your slice is that of rank + 1: rank 0 takes the first",
            ),
            Mistake(
                of(lambda f, rank, ranks: slice(rank * f // ranks, None)),
                "your slice has no end: rank {rank} takes a run of 1/{ranks} of the hidden values",
            ),
            Mistake(
                of(lambda f, rank, ranks: slice((rank + 1) * f // ranks)),
                "your slice starts at 0 whatever the rank: rank {rank} takes a run of 1/{ranks} of the hidden values",
            ),
            Mistake(of(run, lambda gate, up: silu(up) * gate), "are gate and up swapped? The switch goes on gate"),
            *(Mistake(of(run, switch), hint) for switch, hint in WRONG_SWITCHES),
        ],
        watch=own_weights_alone,
    )
