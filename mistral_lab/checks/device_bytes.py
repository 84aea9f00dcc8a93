"""Lesson 9: the bytes of an all-reduce, and the fullest device."""

import math
from collections.abc import Callable

from .judging import Mistake, judge


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
        cases=[(840, 4), (840, 2), (840, 7), (1680, 4), (840, 3), (840, 1)],  # whole parts; one rank sends nothing
        mistakes=[
            Mistake(
                lambda nbytes, ranks: math.ceil(math.log2(ranks)) * nbytes,
                "you get {got}, as whole tensors in a tree are: a ring sends parts of 1/{ranks}",
            ),
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
                lambda nbytes, ranks: nbytes / ranks,
                "you get {got}, one part: how many parts does a rank receive in the two rounds together?",
            ),
            Mistake(
                lambda nbytes, ranks: 2 * (ranks + 1) * nbytes / ranks,
                "you get {got}, {ranks} + 1 parts per round: a rank receives {ranks} - 1, because one is its own",
            ),
            Mistake(
                lambda nbytes, ranks: 2 * (ranks - 1) * (nbytes // (ranks + 1)),
                "you get {got}, with the tensor in {ranks} + 1 parts: it has as many parts as there are ranks",
            ),
            Mistake(
                lambda nbytes, ranks: ranks * nbytes,
                "you get {got}, {ranks} whole tensors: a ring sends parts of 1/{ranks}, and none to its own rank",
            ),
            Mistake(
                lambda nbytes, ranks: 2 * (ranks - 1),
                "you get {got}, the number of parts: each has 1/{ranks} of {nbytes:,} bytes",
            ),
            Mistake(
                lambda nbytes, ranks: 2 * math.log2(ranks) * nbytes,
                "you get {got}, as whole tensors in a tree are: a ring sends parts of 1/{ranks}",
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
            (1000, 13, 30, 3),
            (1000, 16, 30, 3),
            (1000, 8, 70, 3),
            (400, 8, 30, 3),
            (1000, 10, 30, 4),
            (1000, 8, 30, 1),
            (550, 9, 20, 7),
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
            *(
                Mistake(
                    held(nearest),
                    "you get {got} for {num_experts} experts on {ranks} devices: round up, not to the nearest",
                )
                for nearest in (
                    lambda count, ranks: round(count / ranks),
                    lambda count, ranks: int(count / ranks + 0.5),
                )
            ),
            Mistake(
                held(lambda count, ranks: count // ranks + 1),
                "you get {got}: {num_experts} experts are divided evenly among {ranks} devices, so none has one more",
            ),
            Mistake(
                held(lambda count, ranks: count // ranks + count % ranks),
                "you get {got}, with everything left over on one device: dealt out evenly, no device has two more",
            ),
            Mistake(
                held(lambda count, ranks: ranks),
                "you get {got}, an expert for each of {ranks} devices: the fullest holds its share of {num_experts}",
            ),
            Mistake(
                held(lambda count, ranks: 1),
                "you get {got}, with one expert on a device: {num_experts} are spread over {ranks}",
            ),
            Mistake(
                lambda shared, count, each, ranks: math.ceil(count / ranks) * (shared + each),
                "you get {got}: the shared bytes are once on a device, not once for each expert",
            ),
            Mistake(
                held(lambda count, ranks: count - count // ranks),
                "you get {got}, with {num_experts} - {num_experts} // {ranks} experts: that is about what all other "
                "devices hold together, and the fullest holds {num_experts} / {ranks}, rounded up",
            ),
            Mistake(
                held(lambda count, ranks: count),
                "you get {got}, all {num_experts} experts on one device: they are spread over {ranks}",
            ),
            Mistake(
                lambda shared, count, each, ranks: shared / ranks + math.ceil(count / ranks) * each,
                "you divide the shared bytes: they are on every device in full",
            ),
            *(
                Mistake(
                    wrong,
                    "you get {got}, everything divided evenly: every device holds all shared bytes, and whole experts",
                )
                for wrong in (
                    lambda shared, count, each, ranks: (shared + count * each) / ranks,
                    lambda shared, count, each, ranks: math.ceil((shared + count * each) / ranks),
                    lambda shared, count, each, ranks: (shared + count * each) // ranks,
                )
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
