"""Lesson 5: the norm."""

from collections.abc import Callable

import torch

from .judging import Mistake, judge


def rms_normed(function: Callable) -> Callable:
    """Check `function(x (T, d), weight (d,), eps) -> (T, d)`: RMSNorm.

    >>> my_answer = rms_normed(lambda x, weight, eps: NotImplemented)
    rms_normed: not tried yet; the lesson goes on with its own
    """

    def answer(x, weight, eps):
        return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, 4, 6, generator=generator) * torch.tensor([[3.0], [1.0], [0.3], [0.1]]) + 0.2
    weight, other_weight = torch.rand(2, 6, generator=generator) + 0.5
    wide, small = torch.randn(1, 10, generator=generator), 1e-3 * torch.randn(7, 3, generator=generator)
    return judge(
        "rms_normed",
        function,
        answer=answer,
        cases=[(x, weight, 1e-5), (x, weight, 0.1), (x, other_weight, 1e-5), (other, weight, 0.1)]
        + [(wide, torch.linspace(-1, 2, 10), 1e-5), (small, torch.tensor([0.5, 2.0, 1.0]), 1e-6)],
        mistakes=[
            Mistake(
                lambda x, weight, eps: weight * x / (x.square().mean(-1, keepdim=True).sqrt() + eps),
                "with eps = {eps:g} your values are off: is your epsilon inside the square root?",
            ),
            Mistake(
                lambda x, weight, eps: weight * x / (x.square().sum(-1, keepdim=True) + eps).sqrt(),
                "you divide by the length of the vector: the mean of the squares is meant, not their sum",
            ),
            Mistake(
                lambda x, weight, eps: weight * x / (x.norm(dim=-1, keepdim=True) + eps),
                "you divide by the length of the vector: the mean of the squares is meant, not their sum",
            ),
            *(
                Mistake(
                    lambda x, weight, eps, scale=scale, n=n: (
                        weight * scale(x) / (x.var(-1, correction=n, keepdim=True) + eps).sqrt()
                    ),
                    hint,
                )
                for n in (0, 1)
                for scale, hint in (
                    (
                        lambda x: x,
                        "you divide by the standard deviation, which subtracts the mean: take the mean of the squares",
                    ),
                    (
                        lambda x: x - x.mean(-1, keepdim=True),
                        "you subtract the mean first: that is LayerNorm; RMSNorm does not",
                    ),
                )
            ),
            Mistake(
                lambda x, weight, eps: weight * x / (x.abs().mean(-1, keepdim=True) + eps),
                "you divide by the mean of the absolute values: take the root of the mean of the squares",
            ),
            Mistake(
                lambda x, weight, eps: weight * x * (x.square().mean(-1, keepdim=True) + eps).sqrt(),
                "you multiply by the root of the mean of the squares: divide",
            ),
            Mistake(
                lambda x, weight, eps: weight * x / (x.square().mean(-1, keepdim=True) + eps**2).sqrt(),
                "your epsilon is squared: it is added to the mean of the squares as it is",
            ),
            Mistake(
                lambda x, weight, eps: weight * x / x.square().mean(-1, keepdim=True).sqrt(),
                "your epsilon is missing: it is added to the mean of the squares, under the root",
            ),
            Mistake(
                lambda x, weight, eps: weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt(),
                "you add 1e-5 whatever `eps` is: here it is {eps:g}",
            ),
            Mistake(
                lambda x, weight, eps: answer(x, 1, eps),
                "your answer is not multiplied by the weight: is that argument used?",
            ),
            Mistake(
                lambda x, weight, eps: answer(x, 1, eps) / weight,
                "you divide by the weight: each value is multiplied by it",
            ),
            Mistake(
                lambda x, weight, eps: weight * x / (x.square().mean(0, keepdim=True) + eps).sqrt(),
                "your mean runs over the tokens: each token is normalised by itself, over its own values",
            ),
            Mistake(
                lambda x, weight, eps: weight * x / (x.square().mean() + eps).sqrt(),
                "your mean runs over all tokens at once: each token is normalised by itself",
            ),
            Mistake(
                lambda x, weight, eps: weight * x / (x.square().mean(-1, keepdim=True) + eps),
                "is the square root missing?",
            ),
            Mistake(
                lambda x, weight, eps: answer(x, 1 + weight, eps),
                "you multiply by 1 + weight, as Gemma does: here the weight is the factor",
            ),
            Mistake(
                lambda x, weight, eps: answer(x, 1, eps) + weight,
                "you add the weight: each value is multiplied by it",
            ),
        ],
    )
