"""Lesson 6: a matrix quantised and dequantised."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .. import nf4
from .judging import Mistake, judge
from .values import Refusal


@contextmanager
def without_the_package() -> Iterator[None]:
    """Refuse what calls a function of `nf4`, which the reader is to build.

    Raises:
        Refusal: on leaving, if one was called.
    """
    called = []

    def note(frame, event, _):
        if event == "call" and frame.f_globals is vars(nf4):
            called.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)
    if called:
        raise Refusal(f"your function calls `{called[0]}` of the package: build these steps yourself, without `nf4`")


def round_trip(function: Callable) -> Callable:
    """Check `function(w, block_size, codebook (16,))`: w quantised to four bits and back, in blocks along its rows.

    >>> my_answer = round_trip(lambda w, block_size, codebook: NotImplemented)
    round_trip: not tried yet; the lesson goes on with its own
    """

    def largest(blocks):
        return blocks.abs().amax(1, True)

    def number(scaled, codebook):
        return (scaled[..., None] - codebook).abs().argmin(-1)

    def closest(scaled, codebook):
        return codebook[number(scaled, codebook)]

    def chosen(choose):
        """Take the value whose number `choose` gives for the differences."""
        return lambda scaled, codebook: codebook[choose(scaled[..., None] - codebook)]

    def below(scaled, codebook):
        values = codebook.sort().values
        return values[(torch.searchsorted(values, scaled.contiguous(), right=True) - 1).clamp(min=0)]

    def as_if_ascending(scaled, codebook):
        return codebook[torch.searchsorted((codebook[1:] + codebook[:-1]) / 2, scaled.contiguous())]

    def left(values, scale):
        return values

    def rounded(w, block_size, codebook, *, scale=largest, take=closest, back=torch.mul):
        blocks = w.reshape(-1, block_size)
        return back(take(blocks / scale(blocks), codebook), scale(blocks)).reshape(w.shape)

    def wrong(**parts):
        return lambda w, block_size, codebook: rounded(w, block_size, codebook, **parts)

    def a_scale_per_row(w, block_size, codebook):
        return rounded(w, w.shape[1], codebook)

    def a_scale_for_all(w, block_size, codebook):
        return rounded(w, w.numel(), codebook)

    w = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [2.0], [0.1], [0.5]])
    even_steps = torch.arange(-8, 8) / 10  # no value is 1, and the largest is -0.8
    return judge(
        "round_trip",
        function,
        answer=lambda w, block_size, codebook: rounded(w, block_size, codebook),
        cases=[
            (w, 64, nf4.CODEBOOK),
            (w, 32, nf4.CODEBOOK),
            (w, 64, nf4.FP4_CODEBOOK),
            (w, 64, even_steps),
            (-w, 64, nf4.CODEBOOK),
            (w[:, :32].contiguous(), 64, nf4.CODEBOOK),
            (w[2:, :48].reshape(1, 96), 32, nf4.CODEBOOK),
        ],
        mistakes=[
            Mistake(
                a_scale_for_all,
                "rows of small weights come back too coarse: is your absmax that of the whole tensor, not of a block?",
            ),
            Mistake(
                a_scale_per_row,
                "your absmax is that of a row: here a row of {w.shape[1]} weights and a block of {block_size} differ",
            ),
            Mistake(
                wrong(scale=lambda blocks: blocks.amax(1, True)),
                "your scale is the largest value of a block: it must be the largest absolute value",
            ),
            Mistake(
                wrong(scale=lambda blocks: blocks.abs().mean(1, True)),
                "your scale is the mean absolute value of a block: it must be the largest",
            ),
            Mistake(
                wrong(scale=lambda blocks: blocks.std(1, keepdim=True)),
                "your scale is the standard deviation of a block: it must be the largest absolute value",
            ),
            Mistake(
                wrong(scale=lambda blocks: blocks.norm(dim=1, keepdim=True)),
                "your scale is the norm of a block, the root of the sum of its squares: it must be the largest "
                "absolute value",
            ),
            Mistake(
                lambda w, block_size, codebook: rounded(w, block_size, codebook[codebook != 0]),
                "no weight of yours comes back as 0: the codebook holds 0 too, and it is a value like the others",
            ),
            Mistake(
                lambda w, block_size, codebook: rounded(w.T, block_size, codebook).T,
                "your blocks run down the columns: they run along the rows, as the weights lie in memory",
            ),
            Mistake(wrong(back=left), "your weights come back as values of the codebook: multiply by the absmax again"),
            Mistake(
                wrong(back=torch.div), "your weights come back divided by the absmax twice: the second time, multiply"
            ),
            Mistake(
                wrong(scale=lambda blocks: torch.ones(len(blocks), 1)),
                "you round the weights as they are: divide each block by its absmax first",
            ),
            *(
                Mistake(
                    wrong(take=lambda scaled, codebook, top=top: closest(scaled, codebook / top(codebook))),
                    "you stretch the codebook until its largest value is 1: take its values as they are",
                )
                for top in (lambda codebook: codebook.abs().max(), torch.max)
            ),
            Mistake(
                wrong(take=as_if_ascending),
                "your search needs a codebook in ascending order, which FP4's is not: compare with all sixteen values",
            ),
            Mistake(wrong(take=below), "your weights are rounded down: take the nearest value"),
            *(
                Mistake(wrong(take=chosen(choose)), "you compare differences with their signs: take absolute values")
                for choose in (lambda away: away.argmin(-1), lambda away: away.argmax(-1))
            ),
            Mistake(
                wrong(take=chosen(lambda away: away.abs().argmax(-1))),
                "you take the farthest value of the codebook: take the nearest",
            ),
            Mistake(
                wrong(take=number, back=left),
                "you return numbers: look up the value of each in the codebook, and multiply by the absmax",
            ),
            Mistake(
                lambda w, block_size, codebook: w.clone(), "your weights come back unchanged: is anything rounded?"
            ),
        ],
        watch=without_the_package,
    )
