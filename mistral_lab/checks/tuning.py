"""Lesson 8: the labels of an example, and an adapter added to its matrix."""

from collections.abc import Callable

import torch

from .judging import Mistake, judge


def answer_labels(function: Callable) -> Callable:
    """Check `function(prompt, answer, end)`: the input ids and the labels of an example, as two lists of tokens.

    >>> my_answer = answer_labels(lambda prompt, answer, end: NotImplemented)
    answer_labels: not tried yet; the lesson goes on with its own
    """
    ignored = -100  # by PyTorch's cross-entropy

    def labelled(labels, ids=lambda prompt, answer, end: [*prompt, *answer, end]):
        return lambda *example: (ids(*example), labels(*example))

    def right(prompt, answer, end):
        return [ignored] * len(prompt) + [*answer, end]

    def without_end(prompt, answer, end):
        return [*prompt, *answer]

    too_far = "your labels are one place too far to the {}: each belongs where its token is; the model shifts them"
    all_count = "your prompt counts too: the model would learn to write prompts"
    return judge(
        "answer_labels",
        function,
        answer=lambda prompt, answer, end: labelled(right)(prompt, answer, end),
        cases=[
            ([11, 12, 13], [21, 22], 2),
            ([11, 12, 13], [21, 22], 3),
            ([11, 12, 13], [31, 32, 33], 2),
            ([14], [31, 32, 33], 2),
            ([11, 12, 13, 14], [13, 21, 11], 2),  # an answer that repeats tokens of its prompt
            ([1, 11, 2, 12], [21], 2),  # a prompt of two turns: the first ended too
        ],
        mistakes=[
            Mistake(
                labelled(lambda prompt, answer, end: [ignored] * len(answer) + [*answer, end]),
                "you give -100 as often as the answer is long: it is the prompt that does not count",
            ),
            Mistake(
                labelled(lambda prompt, answer, end: [ignored] * (len(prompt) - 1) + [prompt[-1], *answer, end]),
                "the last token of your prompt counts: is there one -100 too few?",
            ),
            Mistake(labelled(lambda prompt, answer, end: [*prompt, *answer, end]), all_count),
            Mistake(labelled(without_end, without_end), all_count + "; and the end token is missing"),
            Mistake(
                labelled(lambda prompt, answer, end: [ignored] * len(prompt) + answer, without_end),
                "the end token is missing: without it the model never learns to stop",
            ),
            Mistake(
                labelled(lambda prompt, answer, end: [ignored] * len(prompt) + [*answer, ignored]),
                "your end token does not count: then the model never learns to stop",
            ),
            Mistake(labelled(right, without_end), "the end token has a label, but is missing from the input ids"),
            Mistake(
                labelled(lambda prompt, answer, end: [ignored] * len(prompt) + answer),
                "the end token has no label: each input id needs one",
            ),
            Mistake(
                labelled(lambda prompt, answer, end: [0] * len(prompt) + [*answer, end]),
                "your prompt has the label 0, which is a token like any other: PyTorch ignores -100",
            ),
            Mistake(
                labelled(lambda prompt, answer, end: [100] * len(prompt) + [*answer, end]),
                "your prompt has the label 100, without its minus, which is a token like any other: PyTorch ignores "
                "-100",
            ),
            *(
                Mistake(
                    labelled(labels, lambda prompt, answer, end: [*prompt, end, *answer]),
                    "your end token stands between the prompt and the answer: it ends the answer",
                )
                for labels in (
                    lambda prompt, answer, end: [ignored] * len(prompt) + [end, *answer],
                    lambda prompt, answer, end: [ignored] * (len(prompt) + 1) + answer,
                    right,
                )
            ),
            Mistake(
                labelled(lambda prompt, answer, end: [-1] * len(prompt) + [*answer, end]),
                "your prompt has the label -1: PyTorch ignores -100",
            ),
            Mistake(
                labelled(lambda prompt, answer, end: [*right(prompt, answer, end)[1:], ignored]), too_far.format("left")
            ),
            Mistake(
                labelled(lambda prompt, answer, end: right(prompt, answer, end)[1:], without_end),
                too_far.format("left"),
            ),
            Mistake(
                labelled(lambda prompt, answer, end: [ignored, *right(prompt, answer, end)[:-1]]),
                too_far.format("right"),
            ),
            Mistake(
                labelled(lambda prompt, answer, end: [ignored] * (len(prompt) + 1) + [*answer[1:], end]),
                "the first token of your answer does not count: is there one -100 too many?",
            ),
            Mistake(
                labelled(lambda prompt, answer, end: right(prompt, answer, end)[1:]),
                "you give one label fewer than input ids: each id needs one, and the model shifts them",
            ),
            Mistake(
                labelled(lambda prompt, answer, end: [*answer, end]),
                "you give fewer labels than input ids: each token of the prompt needs one too, -100",
            ),
            Mistake(
                labelled(lambda prompt, answer, end: prompt + [ignored] * (len(answer) + 1)),
                "it is the other way round: the prompt does not count, the answer does",
            ),
            Mistake(
                labelled(lambda prompt, answer, end: [ignored if t in prompt else t for t in [*prompt, *answer, end]]),
                "your labels hide a token of the answer that the prompt also holds: go by position, not by token",
            ),
            Mistake(
                lambda prompt, answer, end: (right(prompt, answer, end), [*prompt, *answer, end]),
                "your two results are swapped: input ids come first",
            ),
        ],
    )


def merged_weight(function: Callable) -> Callable:
    """Check `function(W (out, in), A (r, in), B (out, r), alpha) -> (out, in)`: the weight with its adapter added.

    >>> my_answer = merged_weight(lambda W, A, B, alpha: NotImplemented)
    merged_weight: not tried yet; the lesson goes on with its own
    """

    def added(scale):
        return lambda W, A, B, alpha: W + scale(A, alpha) * B @ A

    # The first W is square, so that a transposed change can be added, and is named.
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    A = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    B = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    transposed = "your change is transposed: it is B times A, outputs by inputs"
    return judge(
        "merged_weight",
        function,
        answer=added(lambda A, alpha: alpha / len(A)),
        cases=[
            (W, A, B, 5),
            (W, A, B, 1),
            (W.flip(0), A, B, 5),
            (W, A.flip(1), B, 5),
            (W, A, B.flip(0), 5),
            (W, A[:2], B[:, :2], 7),
            (W, A[2:], B[:, 2:], 16),
            (W[:4], A, B[:4], 8),
            (W[:, 1:], A[:2, 1:], B[:, 1:], 0.5),
        ],
        mistakes=[
            Mistake(
                added(lambda A, alpha: alpha),
                "your change is too large: alpha is divided by the rank, so that it means the same at every rank",
            ),
            Mistake(
                added(lambda A, alpha: alpha / A.shape[1]),
                "you divide alpha by the number of inputs: the rank is the number of rows of A",
            ),
            Mistake(
                added(lambda A, alpha: alpha / len(A) ** 0.5),
                "you divide alpha by the square root of the rank, as another method does (rsLoRA): divide by the rank",
            ),
            Mistake(
                added(lambda A, alpha: 2),
                "your change is always scaled by 2: alpha / r is 2 only where alpha is twice the rank",
            ),
            Mistake(
                added(lambda A, alpha: 2 * alpha / len(A)),
                "your change is twice too large: alpha / r, without another factor",
            ),
            Mistake(
                added(lambda A, alpha: 1 / len(A)), "you divide by the rank and leave out alpha: the scale is alpha / r"
            ),
            Mistake(
                added(lambda A, alpha: alpha / 3),
                "you divide alpha by 3, whatever the rank is: it is the number of rows of A",
            ),
            Mistake(
                added(lambda A, alpha: alpha // len(A)),
                "your scale is rounded down by `//`: alpha / r need not be a whole number",
            ),
            Mistake(
                added(lambda A, alpha: (alpha / len(A)) ** 2), "your change is scaled twice: alpha / r once is enough"
            ),
            Mistake(added(lambda A, alpha: len(A) / alpha), "your scale is upside down: alpha / r"),
            Mistake(added(lambda A, alpha: alpha * len(A)), "you multiply alpha by the rank: divide"),
            Mistake(added(lambda A, alpha: 1), "the scale alpha / r is missing"),
            Mistake(added(lambda A, alpha: -alpha / len(A)), "you subtract the change: add it"),
            Mistake(lambda W, A, B, alpha: W + alpha / len(A) * (B @ A).T, transposed),
            Mistake(lambda W, A, B, alpha: W + alpha * (B @ A).T, transposed + "; and alpha is divided by the rank"),
            Mistake(
                lambda W, A, B, alpha: alpha / len(A) * B @ A,
                "you return the change alone: it is added to W and does not replace it",
            ),
            Mistake(
                lambda W, A, B, alpha: alpha / len(A) * (W + B @ A),
                "you scale W too: alpha / r scales the change alone",
            ),
            Mistake(lambda W, A, B, alpha: W.clone(), "you return W as it was: the change is added to it"),
            Mistake(lambda W, A, B, alpha: W @ (alpha / len(A) * B @ A), "you multiply W and the change: add them"),
        ],
    )
