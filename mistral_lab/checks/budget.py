"""Lesson 7: what `load_in_4bit=True` leaves in 16 bits, the share in four bits, and sets of experts that are kept."""

from collections.abc import Callable

import torch

from .judging import Mistake, judge


def plain_call_bytes(function: Callable) -> Callable:
    """Check `function(linear, other)`: bytes after `load_in_4bit=True`, from parameters in nn.Linear and all others.

    >>> my_answer = plain_call_bytes(lambda linear, other: NotImplemented)
    plain_call_bytes: not tried yet; the lesson goes on with its own
    """
    per_weight = 0.5 + 4 / 64  # bytes: four bits, and a share of a float32 absmax
    return judge(
        "plain_call_bytes",
        function,
        answer=lambda linear, other: linear * per_weight + other * 2,
        cases=[(640_000, 64_000), (640_000, 6_400_000), (64_000, 64_000)],
        mistakes=[
            Mistake(
                lambda linear, other: (linear + other) * per_weight,
                "you put everything in four bits: what is in no nn.Linear stays in 16 bits",
            ),
            Mistake(
                lambda linear, other: (linear + other) * 0.5,
                "you put everything in four bits, and without scales: what is in no nn.Linear stays in 16 bits",
            ),
            Mistake(
                lambda linear, other: linear * 0.5 + other * 2,
                "the scales are missing: every 64 weights share a scale of 4 bytes",
            ),
            Mistake(
                lambda linear, other: linear * per_weight + other * 4,
                "you count 4 bytes for what stays, which is float32: a parameter in bfloat16 takes 2",
            ),
            Mistake(
                lambda linear, other: linear * 2 + other * per_weight,
                "it is the other way round: the parameters in nn.Linear become four-bit",
            ),
            Mistake(
                lambda linear, other: linear * 4 + other * 16,
                "you count bits: bytes are asked for",
            ),
            Mistake(
                lambda linear, other: linear * (0.5 + 4) + other * 2,
                "you count a scale for each weight: 64 of them share one",
            ),
        ],
    )


def share_in_four_bits(function: Callable) -> Callable:
    """Check `function(tensors)`: the share of all parameters that is in four bits, from pairs (elements, dtype name).

    >>> my_answer = share_in_four_bits(lambda tensors: NotImplemented)
    share_in_four_bits: not tried yet; the lesson goes on with its own
    """
    sizes = {"uint8": 1, "bfloat16": 2, "float32": 4}

    def share(weigh):
        def of(tensors):
            packed = sum(weigh(count, dtype) for count, dtype in tensors if dtype == "uint8")
            return packed / sum(weigh(count, dtype) for count, dtype in tensors)

        return of

    answer = share(lambda count, dtype: 2 * count if dtype == "uint8" else count)
    return judge(
        "share_in_four_bits",
        function,
        answer=answer,
        cases=[
            ([(100, "uint8"), (300, "bfloat16")],),
            ([(300, "uint8"), (50, "float32"), (10, "uint8"), (30, "bfloat16")],),
            ([(40, "bfloat16")],),
        ],
        mistakes=[
            Mistake(
                share(lambda count, dtype: count),
                "you get {got} where {expected} is right: an element of uint8 holds two weights",
            ),
            Mistake(
                share(lambda count, dtype: sizes[dtype] * count),
                "you get {got}, which is the share of bytes: count parameters",
            ),
            Mistake(share(lambda count, dtype: 1), "you get {got}, which is the share of tensors: count parameters"),
            Mistake(
                share(lambda count, dtype: count / 2 if dtype == "uint8" else count),
                "you get {got}: a packed tensor has half as many elements as weights, so double them",
            ),
            Mistake(lambda tensors: 100 * answer(tensors), "you get {got}: give a share between 0 and 1, not per cent"),
            Mistake(lambda tensors: 1 - answer(tensors), "you get {got}, which is the share that is not in four bits"),
        ],
    )


def kept_sets(function: Callable) -> Callable:
    """Check `function(before (N, A), after (N, A))`: the share of tokens that go to the same set of experts.

    >>> my_answer = kept_sets(lambda before, after: NotImplemented)
    kept_sets: not tried yet; the lesson goes on with its own
    """

    def ordered(indices):
        return indices.sort(dim=1).values

    def share(same):
        return same.double().mean().item()

    before = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7], [1, 2]])
    after = torch.tensor([[0, 1], [3, 2], [4, 6], [0, 1], [3, 1]])
    three = torch.tensor([[0, 1, 2], [3, 4, 5], [5, 4, 3], [6, 7, 0]])
    single_choices = "you get {got}: you count single choices; a token counts once, if all of its experts are the same"
    return judge(
        "kept_sets",
        function,
        answer=lambda before, after: share((ordered(before) == ordered(after)).all(1)),
        cases=[
            (before, before),
            (before, after),
            (after, before.flip(0)),
            (three, three.roll(1, 1)),
            (three, three.roll(1, 0)),
        ],
        mistakes=[
            Mistake(
                lambda before, after: share((before == after).all(1)),
                "you get {got}: a token that goes to the same two experts in another order counts as kept",
            ),
            Mistake(
                lambda before, after: share(before[:, 0] == after[:, 0]),
                "you get {got}: that is the share of first choices; compare whole sets",
            ),
            Mistake(
                lambda before, after: share(before == after),
                single_choices,
            ),
            Mistake(
                lambda before, after: share(ordered(before) == ordered(after)),
                single_choices,
            ),
            Mistake(
                lambda before, after: share((before[:, :, None] == after[:, None]).any(2).any(1)),
                "you get {got}: one shared expert is not enough; all of a token's experts must be the same",
            ),
            Mistake(
                lambda before, after: share((before[:, :, None] == after[:, None]).any(2)),
                single_choices,
            ),
            Mistake(
                lambda before, after: share((before.sort(0).values == after.sort(0).values).all(1)),
                "you get {got}: you sort along the tokens; sort each token's own experts",
            ),
            Mistake(
                lambda before, after: len(before) * share((ordered(before) == ordered(after)).all(1)),
                "you get {got}: that is a count; divide it by the number of tokens",
            ),
            Mistake(
                lambda before, after: 1 - share((ordered(before) == ordered(after)).all(1)),
                "you get {got}, which is the share that changed",
            ),
        ],
    )
