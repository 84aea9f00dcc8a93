"""Lesson 8: the bytes of training an adapter."""

from collections.abc import Callable

from .judging import Mistake, judge


def adapter_bytes(function: Callable) -> Callable:
    """Check `function(rank, shapes)`: bytes of adapter, gradients and AdamW, for matrices of these shapes (out, in).

    >>> my_answer = adapter_bytes(lambda rank, shapes: NotImplemented)
    adapter_bytes: not tried yet; the lesson goes on with its own
    """

    def counted(each, bytes_each=16):
        return lambda rank, shapes: bytes_each * sum(each(rank, *shape) for shape in shapes)

    def parameters(rank, rows, columns):
        return rank * (rows + columns)

    return judge(
        "adapter_bytes",
        function,
        answer=counted(parameters),
        cases=[
            (8, [(256, 128)]),
            (8, [(256, 128), (64, 512), (96, 32)]),
            (2, [(256, 128), (64, 512), (96, 32)]),
            (16, [(48, 80), (48, 80), (96, 32), (24, 40), (72, 40)]),
        ],
        mistakes=[
            Mistake(
                counted(lambda rank, rows, columns: rank * rows * columns),
                "you multiply outputs and inputs: A is {rank} by inputs and B is outputs by {rank}, so add them",
            ),
            Mistake(
                counted(lambda rank, rows, columns: rows * columns),
                "you count the matrix itself, which is frozen: only A and B are trained",
            ),
            Mistake(
                counted(lambda rank, rows, columns: rows * columns + rank * (rows + columns)),
                "you count the matrix too, which is frozen: only A and B are trained",
            ),
            Mistake(
                lambda rank, shapes: (
                    4 * sum(parameters(rank, *shape) for shape in shapes)
                    + 12 * sum(rows * columns for rows, columns in shapes)
                ),
                "you get {got}: you count a gradient and AdamW's numbers for the matrix itself, which is frozen; only "
                "A and B have them",
            ),
            Mistake(
                counted(lambda rank, rows, columns: rank * max(rows, columns)),
                "you get {got}: you count the larger of A and B alone; both are trained",
            ),
            *(
                Mistake(
                    counted(each),
                    f"you get {{got}}: the rank is left out of {matrix}, which has {{rank}} numbers for each {side}",
                )
                for each, matrix, side in (
                    (lambda rank, rows, columns: rank * columns + rows, "B", "output"),
                    (lambda rank, rows, columns: rank * rows + columns, "A", "input"),
                )
            ),
            Mistake(
                counted(lambda rank, rows, columns: rows + columns),
                "is the rank left out? A and B have {rank} numbers for each input and each output",
            ),
            Mistake(
                lambda rank, shapes: 16 * rank * len(shapes),
                "you count {got}: `len(shapes)` is how many matrices there are; add up outputs and inputs of each",
            ),
            Mistake(
                lambda rank, shapes: len(shapes) * counted(parameters)(rank, shapes),
                "you get {got}: the sum over `shapes` holds every matrix already; `len(shapes)` counts them again",
            ),
            Mistake(
                lambda rank, shapes: counted(parameters)(rank, shapes) / len(shapes),
                "you get {got}, the mean of the matrices: the bytes of all together are asked for",
            ),
            Mistake(
                lambda rank, shapes: len(shapes) * counted(parameters)(rank, shapes[:1]),
                "you get {got}, as if every matrix had the shape of the first",
            ),
            Mistake(
                counted(lambda rank, rows, columns: rank * columns),
                "you count A and leave out B, which has {rank} numbers for each output",
            ),
            Mistake(
                counted(lambda rank, rows, columns: rank * rows),
                "you count B and leave out A, which has {rank} numbers for each input",
            ),
            Mistake(counted(parameters, 1), "you get {got}, which is the number of parameters: bytes are asked for"),
            Mistake(
                counted(parameters, 2),
                "you take 2 bytes per parameter, an adapter in 16 bits and nothing else: it is float32, and training "
                "keeps more",
            ),
            Mistake(
                counted(parameters, 4),
                "you take 4 per parameter: that is the adapter alone in bytes, or, with all that training keeps, a "
                "count of numbers",
            ),
            Mistake(
                counted(parameters, 8),
                "you take 8 bytes per parameter: is the optimiser left out, or are numbers of 16 bits counted? All "
                "are float32",
            ),
            Mistake(
                counted(parameters, 12),
                "you take 12 bytes per parameter, 4 too few: it has a value, a gradient and two numbers of AdamW",
            ),
            Mistake(
                counted(parameters, 14),
                "you take 14 bytes per parameter: the adapter is float32, not 16 bits as the model's arithmetic",
            ),
            Mistake(counted(parameters, 128), "you get {got}, which is bits: bytes are asked for"),
            Mistake(
                lambda rank, shapes: 16 * parameters(rank, *shapes[0]),
                "you count the first matrix alone: each matrix has an adapter of its own",
            ),
            Mistake(
                lambda rank, shapes: sum(16 * parameters(rank, *shape) + 8 for shape in shapes),
                "you get {got}, with AdamW's count of steps, as the lab does: leave that out here, to get {expected}",
            ),
        ],
    )
