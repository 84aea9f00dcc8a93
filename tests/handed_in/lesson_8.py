"""Lesson 8: an adapter's bytes, labels, and the merge."""

import numpy as np


def adapter_by_numbers(rank, shapes):
    nbytes = 0
    for outputs, inputs in shapes:
        A, B = np.zeros((rank, inputs), "float32"), np.zeros((outputs, rank), "float32")
        nbytes += sum(matrix.nbytes for matrix in (A, B) for _ in ("itself", "gradient", "mean", "mean square"))
    return nbytes


def labels_one_by_one(prompt, answer, end):
    ids, labels = [], []
    for tokens, counts in ((prompt, False), (answer, True), ([end], True)):
        for token in tokens:
            ids.append(token)
            labels.append(token if counts else -100)
    return ids, labels


def merged_by_columns(W, A, B, alpha):
    W, A, B = (np.asarray(matrix) for matrix in (W, A, B))
    eye = np.eye(W.shape[1])  # what the layer and its adapter make of each input alone
    return np.stack([W @ x + alpha / len(A) * (B @ (A @ x)) for x in eye], axis=1)


RIGHT = [
    ("adapter_bytes", adapter_by_numbers),
    ("answer_labels", labels_one_by_one),
    ("merged_weight", merged_by_columns),
]


def in_place(W, A, B, alpha):
    W += alpha / len(A) * B @ A
    return W


WRONG = [
    ("adapter_bytes", lambda r, shapes: sum(16 * r * o * i for o, i in shapes), "multiply outputs and inputs: A is 8"),
    ("adapter_bytes", lambda r, shapes: sum(4 * r * (o + i) for o, i in shapes), "that is the adapter alone"),
    ("adapter_bytes", lambda r, shapes: sum(8 * r * (o + i) for o, i in shapes), "is the optimiser left out.*16 bits"),
    ("adapter_bytes", lambda r, shapes: sum(16 * r * i for o, i in shapes), "leave out B, which has 8"),
    ("adapter_bytes", lambda r, shapes: sum(16 * r * o for o, i in shapes), "leave out A, which has 8"),
    ("adapter_bytes", lambda r, shapes: sum(16 * (o + i) for o, i in shapes), "rank left out"),
    ("adapter_bytes", lambda r, shapes: sum(8 * 16 * (o + i) for o, i in shapes), "whatever `rank` is"),
    ("adapter_bytes", lambda r, shapes: sum((2 + 4 + 8) * r * (o + i) for o, i in shapes), "not 16 bits"),
    ("adapter_bytes", lambda r, shapes: 16 * r * sum(shapes[0]), "the first matrix alone"),
    ("adapter_bytes", lambda r, shapes: sum(16 * r * (o + i) + 8 for o, i in shapes), "count of steps.*to get 49,152"),
    ("answer_labels", lambda p, a, end: (p + a + [end], p + a + [end]), "your prompt counts too"),
    ("answer_labels", lambda p, a, end: (p + a, [-100] * len(p) + a), "end token is missing"),
    ("answer_labels", lambda p, a, end: (p + a + [end], [-100] * len(p) + a + [-100]), "end token does not count"),
    ("answer_labels", lambda p, a, end: (p + a + [2], [-100] * len(p) + a + [2]), "whatever `end` is"),
    ("answer_labels", lambda p, a, end: (p + a + [end], [0] * len(p) + a + [end]), "label 0, which is a token"),
    (
        "answer_labels",
        lambda p, a, end: (p + a + [end], ([-100] * len(p) + a + [end, -100])[1:]),
        "too far to the left: .*the model shifts",
    ),
    ("answer_labels", lambda p, a, end: ((p + a + [end])[:-1], ([-100] * len(p) + a + [end])[1:]), "to the left"),
    ("answer_labels", lambda p, a, end: (p + a + [end], [-100] + [-100] * len(p) + a), "to the right"),
    (
        "answer_labels",
        lambda p, a, end: (p + a + [end], [-100] * (len(p) + 1) + a[1:] + [end]),
        "first token of your answer",
    ),
    ("answer_labels", lambda p, a, end: (p + a + [end], a + [end]), "each token of the prompt needs one too"),
    (
        "answer_labels",
        lambda p, a, end: (p + a + [end], [-100 if t in p else t for t in p + a + [end]]),
        "go by position, not by token",
    ),
    ("answer_labels", lambda p, a, end: labels_one_by_one(p, a, end)[::-1], "swapped: input ids come first"),
    ("merged_weight", lambda W, A, B, alpha: W + alpha * B @ A, "alpha is divided by the rank"),
    ("merged_weight", lambda W, A, B, alpha: W + alpha / A.shape[1] * B @ A, "rank is the number of rows of A"),
    ("merged_weight", lambda W, A, B, alpha: W + alpha / len(B) * B @ A, "rank is the number of rows of A"),
    ("merged_weight", lambda W, A, B, alpha: W + alpha / len(A) * A.T @ B.T, "is transposed"),
    ("merged_weight", lambda W, A, B, alpha: W + (alpha / len(A)) ** 2 * B @ A, "scaled twice"),
    ("merged_weight", lambda W, A, B, alpha: alpha / len(A) * B @ A, "the change alone: it is added to W"),
    ("merged_weight", lambda W, A, B, alpha: W + B @ A, "scale alpha / r is missing"),
    ("merged_weight", lambda W, A, B, alpha: alpha / len(A) * (W + B @ A), "you scale W too"),
    ("merged_weight", lambda W, A, B, alpha: W + alpha / 3 * B @ A, "you divide alpha by 3, whatever the rank is"),
    ("merged_weight", in_place, "changes its argument `W`: work on a copy"),
    ("merged_weight", lambda W, A, B, alpha: W + alpha / len(A) * A @ B, "raises RuntimeError: .*the line `.*A @ B"),
]
