"""Lesson 7: what `load_in_4bit=True` leaves in 16 bits, the share in four bits, and sets of experts that are kept."""

import math
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
                lambda linear, other: linear * per_weight + other,
                "you count 1 byte for what stays in 16 bits: a parameter of 16 bits takes 2",
            ),
            Mistake(
                lambda linear, other: (linear + other) * 2 * per_weight,
                "you multiply the bytes in 16 bits by 0.5625, which is no share: 0.5625 bytes are a four-bit weight "
                "with its scale, and what is in no nn.Linear keeps its 2 bytes",
            ),
            *(
                Mistake(wrong, "you count bits: bytes are asked for")
                for wrong in (
                    lambda linear, other: linear * 4 + other * 16,
                    lambda linear, other: 8 * (linear * per_weight + other * 2),
                )
            ),
            Mistake(
                lambda linear, other: linear * (0.5 + 4) + other * 2,
                "you count a scale for each weight: 64 of them share one",
            ),
            *(
                Mistake(
                    lambda linear, other, scale=scale: linear * (0.5 + scale / 64) + other * 2,
                    f"you count {scale} bytes for a scale, which is float32: it takes 4",
                )
                for scale in (2, 8)
            ),
            Mistake(
                lambda linear, other: linear * (0.5 + 32 / 64) + other * 2,
                "you count 32 bytes for a scale: it has 32 bits, which are 4 bytes",
            ),
            Mistake(
                lambda linear, other: linear * 0.5 + (linear + other) * 4 / 64 + other * 2,
                "you count scales for what stays in 16 bits: only four-bit weights have them",
            ),
            Mistake(
                lambda linear, other: (linear + other) * 2,
                "you get {got}, everything in 16 bits: the parameters in nn.Linear become four-bit",
            ),
            Mistake(
                lambda linear, other: linear * per_weight,
                "you leave out the {other:,} parameters that are in no nn.Linear: they take 2 bytes each",
            ),
        ],
    )


def share_in_four_bits(function: Callable) -> Callable:
    """Check `function(tensors)`: the share of all parameters that is in four bits, from pairs (elements, dtype name).

    >>> my_answer = share_in_four_bits(lambda tensors: NotImplemented)
    share_in_four_bits: not tried yet; the lesson goes on with its own
    """
    sizes = {"uint8": 1, "bfloat16": 2, "float16": 2, "float32": 4}

    def share(weigh):
        def of(tensors):
            packed = sum(weigh(count, dtype) for count, dtype in tensors if dtype == "uint8")
            return packed / sum(weigh(count, dtype) for count, dtype in tensors)

        return of

    def parameters(count, dtype):
        return 2 * count if dtype == "uint8" else count

    def doubled_above_alone(tensors):
        return 2 * share(lambda count, dtype: count)(tensors)

    def one_of_each_dtype(choose):
        """As if a dictionary held one tensor for each dtype: the first or the last."""

        def of(tensors):
            return share(parameters)([(count, dtype) for dtype, count in dict(map(reversed, choose(tensors))).items()])

        return of

    def to_the_rest(tensors):
        packed = share(parameters)(tensors)
        return packed / (1 - packed) if packed < 1 else math.inf

    def elements_to_the_rest(tensors):
        packed = share(lambda count, dtype: count)(tensors)
        return packed / (1 - packed) if packed < 1 else math.inf

    def first_alone(tensors):
        first = 2 * tensors[0][0]
        return first / (first + sum(count for count, _ in tensors[1:]))

    answer = share(parameters)
    return judge(
        "share_in_four_bits",
        function,
        answer=answer,
        cases=[
            ([(100, "uint8"), (300, "bfloat16")],),
            ([(300, "uint8"), (50, "float32"), (10, "uint8"), (30, "bfloat16"), (70, "float32")],),
            ([(40, "bfloat16")],),
            ([(20, "float16"), (60, "uint8"), (5, "float16"), (60, "uint8")],),
        ],
        mistakes=[
            Mistake(
                share(lambda count, dtype: count),
                "you get {got} where {expected} is right: an element of uint8 holds two weights",
            ),
            Mistake(
                doubled_above_alone,
                "you get {got}: packed weights are two for an element below the line too, where all are counted",
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
            Mistake(
                elements_to_the_rest,
                "you get {got}, which is elements of uint8 to all others: an element of uint8 holds two weights, and "
                "the share is of all parameters",
            ),
            Mistake(
                first_alone,
                "you get {got}, with the first tensor alone as four-bit: go by dtype, and count each tensor of uint8",
            ),
            Mistake(
                lambda tensors: sum(2 * count for count, dtype in tensors if dtype == "uint8"),
                "you get {got}, which is the number of four-bit parameters: divide by that of all parameters",
            ),
            Mistake(to_the_rest, "you get {got}, which is four-bit parameters to the others: divide by all of them"),
            *(
                Mistake(
                    one_of_each_dtype(choose),
                    "you get {got}: several tensors have the same dtype, and each counts",
                )
                for choose in (list, reversed)
            ),
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

    def where(compare):
        """The share of what `compare` says of the experts, put in order."""
        return lambda before, after: share(compare(ordered(before), ordered(after)))

    def equal(summary):
        return lambda before, after: share(summary(before) == summary(after))

    def pairs(before, after):
        return before[:, :, None] == after[:, None]

    answer = where(lambda before, after: (before == after).all(1))
    # Some of these differ, and are alike in all but one respect: one expert, their sum, their product, their squares.
    before = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7], [1, 2], [5, 0], [3, 6]])
    after = torch.tensor([[0, 1], [3, 2], [4, 6], [0, 1], [3, 1], [0, 5], [6, 3]])
    sums, same_sums = torch.tensor([[0, 3], [1, 6], [7, 2]]), torch.tensor([[2, 1], [5, 2], [7, 2]])
    products, same_products = torch.tensor([[2, 6], [1, 6], [0, 4]]), torch.tensor([[4, 3], [3, 2], [7, 0]])
    three = torch.tensor([[0, 4, 5], [3, 4, 5], [0, 6, 2], [6, 7, 0], [1, 3, 7]])
    other = torch.tensor([[6, 1, 2], [5, 3, 4], [0, 6, 3], [1, 7, 6], [7, 5, 1]])
    single_choices = "you get {got}: you count single choices; a token counts once, if all of its experts are the same"
    return judge(
        "kept_sets",
        function,
        answer=answer,
        cases=[
            (before, before),
            (before, after),
            (after, before.flip(0)),
            (three, other),
            (three, three.roll(1, 0)),
            (sums, same_sums),
            (products, same_products),
            (torch.tensor([[7], [3], [5], [5]]), torch.tensor([[3], [7], [5], [6]])),
        ],
        mistakes=[
            Mistake(
                equal(lambda chosen: chosen.max(1).values),
                "you get {got}: you compare the largest number of each set alone",
            ),
            Mistake(
                equal(lambda chosen: chosen.min(1).values),
                "you get {got}: you compare the smallest number of each set alone",
            ),
            Mistake(
                equal(lambda chosen: chosen.sum(1)),
                "you get {got}: you compare sums, and different sets can have the same, as 0 + 3 and 1 + 2",
            ),
            Mistake(
                equal(lambda chosen: chosen.prod(1)),
                "you get {got}: you compare products, and different sets can have the same, as 1 · 6 and 2 · 3",
            ),
            Mistake(
                equal(lambda chosen: chosen.square().sum(1)),
                "you get {got}: you compare sums of squares, and different sets can have the same, as 0, 4, 5 and "
                "1, 2, 6",
            ),
            Mistake(
                lambda before, after: share((before == after).all(1)),
                "you get {got}: a token that goes to the same experts in another order counts as kept",
            ),
            Mistake(
                lambda before, after: share(torch.isin(before, after).all(1)),
                "you get {got}: you look for a token's experts among those of all tokens; look at its own",
            ),
            Mistake(
                lambda before, after: share((before.argsort(1) == after.argsort(1)).all(1)),
                "you get {got}: you compare the places to which sorting moves (indices), not the experts (values)",
            ),
            Mistake(
                lambda before, after: share(before[:, 0] == after[:, 0]),
                "you get {got}: that is the share of first choices; compare whole sets",
            ),
            Mistake(lambda before, after: share(before == after), single_choices),
            Mistake(where(lambda before, after: before == after), single_choices),
            Mistake(lambda before, after: share(pairs(before, after).any(2)), single_choices),
            Mistake(lambda before, after: share(torch.isin(before, after)), single_choices),
            Mistake(
                lambda before, after: share(pairs(before, after).any(2).any(1)),
                "you get {got}: one shared expert is not enough; all of a token's experts must be the same",
            ),
            Mistake(
                lambda before, after: share((before.sort(0).values == after.sort(0).values).all(1)),
                "you get {got}: you sort along the tokens; sort each token's own experts",
            ),
            Mistake(
                lambda before, after: float((ordered(before) == ordered(after)).all()),
                "you get {got}, 1 if every token is kept and else 0: ask token by token, `all(dim=1)`",
            ),
            Mistake(
                lambda before, after: 0.0,
                "you get {got} every time: are those sets of tensors? They are compared as objects: `tolist()` first",
            ),
            Mistake(
                lambda before, after: len(before) * answer(before, after),
                "you get {got}: that is a count; divide it by the number of tokens",
            ),
            Mistake(lambda before, after: 1 - answer(before, after), "you get {got}, which is the share that changed"),
            Mistake(
                lambda before, after: 100 * answer(before, after),
                "you get {got}: give a share between 0 and 1, not per cent",
            ),
        ],
    )
