"""Lesson 1: the probabilities that a token is drawn with."""

from collections.abc import Callable

import torch

from ..sampling import kept_by_top_p, token_probabilities
from .judging import Mistake, judge
from .values import read_answer


def draw_probabilities(function: Callable) -> Callable:
    """Check `function(logits (V,), temperature, top_p) -> (V,)`: the probabilities that a token is drawn with.

    >>> my_answer = draw_probabilities(lambda logits, temperature, top_p: NotImplemented)
    draw_probabilities: not tried yet; the lesson goes on with its own
    """

    def answer(logits, temperature, top_p):
        return token_probabilities(logits, temperature=temperature, top_p=top_p)

    def tempered(logits, temperature):
        return (logits / temperature).softmax(0)

    def scaled(p):
        return p / p.sum()

    def multiplied(logits, temperature, top_p):
        return answer(logits * temperature**2, temperature, top_p)

    def kept(p, stays):
        descending, order = p.sort(descending=True)
        return torch.zeros_like(p).scatter(0, order, stays(descending).to(p))

    def cut(stays):
        def wrong(logits, temperature, top_p):
            p = tempered(logits, temperature)
            return scaled(p * kept(p, lambda descending: stays(descending, top_p)))

        return wrong

    def without_softmax(chances):
        def wrong(logits, temperature, top_p):
            p = chances(logits / temperature)
            return scaled(p * kept(p, lambda descending: descending.cumsum(0) - descending < top_p))

        return wrong

    def by_bare_exp(logits, temperature, top_p):
        powers = (logits / temperature).exp()
        p = powers / powers.sum()
        return scaled(p * kept(p, lambda descending: descending.cumsum(0) - descending < top_p))

    def likelier_may_reach(p, top_p):
        return p.cumsum(0) - p <= top_p

    def top_k_first(logits, temperature, top_p, k):
        few = logits.argsort(descending=True)[:k]
        return torch.zeros_like(logits).scatter(0, few, answer(logits[few], temperature, top_p).to(logits))

    def top_k_too(p, top_p, k):
        return (p.cumsum(0) - p < top_p) & (torch.arange(len(p)) < k)

    def likeliest_out(p, top_p):
        return p.cumsum(0) - p >= 1 - top_p

    def nucleus_out(p, top_p):
        return p.cumsum(0) - p >= top_p

    def divided_before_the_cut(logits, temperature, top_p):
        p = logits.softmax(0) / temperature
        return scaled(p * kept(p, lambda descending: descending.cumsum(0) - descending < top_p))

    def crossing_dropped(p, top_p):
        return p.cumsum(0) < top_p

    def crossing_dropped_but_one(p, top_p):
        return crossing_dropped(p, top_p) | (torch.arange(len(p)) == 0)

    def likeliest_first(p, top_p):
        return torch.arange(len(p)) < max(1, round(top_p * len(p)))

    def least_likely_first(logits, temperature, top_p):
        p = tempered(logits, temperature)
        rising, order = p.sort()
        return scaled(p * torch.zeros_like(p).scatter(0, order, (rising.cumsum(0) - rising < top_p).to(p)))

    def softened(logits, temperature, top_p):
        p = tempered(logits, temperature)
        return (p * kept_by_top_p(logits / temperature, top_p)).softmax(0)

    def hidden_by_zero(logits, temperature, top_p):
        return (logits / temperature * kept_by_top_p(logits / temperature, top_p)).softmax(0)

    def not_scaled(logits, temperature, top_p):
        return tempered(logits, temperature) * kept_by_top_p(logits / temperature, top_p)

    def cut_first(logits, temperature, top_p):
        return scaled(tempered(logits, temperature) * kept_by_top_p(logits, top_p))

    def threshold(least, *, at_least_one=False):
        def wrong(logits, temperature, top_p):
            p = tempered(logits, temperature)
            return scaled(p * (p >= (min(least(top_p), p.max()) if at_least_one else least(top_p))))

        return wrong

    logits = torch.tensor([0.10, 0.45, 0.05, 0.25, 0.15]).log() + 1.5  # logits need not be logarithms of probabilities
    exact = torch.tensor([0.25, 0.5, 0.125, 0.125]).log()  # the likeliest reaches one half, and no more is needed
    many = torch.linspace(0, 1, 100)
    peaked = torch.tensor([0.01, 0.02, 0.9, 0.03, 0.015, 0.02, 0.005]).log() - 2  # one token is more than top-p alone
    return judge(
        "draw_probabilities",
        function,
        answer=answer,
        cases=[(logits, 1.0, 0.97), (logits, 1.0, 0.6), (logits, 0.5, 0.97), (logits, 0.5, 0.6), (logits, 2.0, 0.6)]
        + [(logits.flip(0) * 2, 2.0, 0.6), (logits, 2.0, 0.2), (logits, 2.0, 1.0), (peaked, 1.0, 0.8)]
        + [(exact, 1.0, 0.5), (many, 1.0, 0.97), (many.flip(0), 1.0, 0.97), (logits + 1000, 1.0, 0.6)],
        mistakes=[
            Mistake(multiplied, "a temperature below 1 must sharpen, and yours flattens: do you multiply by it?"),
            Mistake(cut(crossing_dropped), "you drop the token that crosses the line: it stays"),
            Mistake(cut(crossing_dropped_but_one), "you drop the token that crosses the line: it stays"),
            Mistake(
                lambda logits, temperature, top_p: answer(logits, 1.0, top_p),
                "the temperature changes nothing: divide the logits by it, before the softmax",
            ),
            Mistake(
                lambda logits, temperature, top_p: tempered(logits, temperature),
                "top-p changes nothing: the least likely tokens must have a probability of 0",
            ),
            Mistake(
                lambda logits, temperature, top_p: answer(logits, 1.0, 1.0),
                "you return the softmax alone: the temperature and top-p change nothing",
            ),
            Mistake(
                without_softmax(lambda scaled_logits: scaled_logits),
                "you leave out the softmax: logits are no probabilities",
            ),
            *(
                Mistake(
                    threshold(least, at_least_one=at_least_one),
                    "top-p is no threshold for one token: add up, from the likeliest on",
                )
                for least in (lambda top_p: 1 - top_p, lambda top_p: top_p)
                for at_least_one in (False, True)
            ),
            Mistake(
                without_softmax(torch.exp),
                "the exponentials alone are no probabilities: divide by their sum before top-p cuts",
            ),
            Mistake(
                by_bare_exp,
                "the exponential of a logit near 1,000 is infinite: take `softmax`, or subtract the largest first",
            ),
            Mistake(
                cut(likelier_may_reach),
                "where the likelier tokens reach top_p exactly, they are enough: a token stays while they have less",
            ),
            *(
                Mistake(wrong, f"you keep {k} tokens at most, which is top-k: keep as many as top-p asks for")
                for k in (50, 40, 20, 10, 5)
                for wrong in (
                    lambda logits, temperature, top_p, k=k: top_k_first(logits, temperature, top_p, k),
                    cut(lambda p, top_p, k=k: top_k_too(p, top_p, k)),
                )
            ),
            *(
                Mistake(
                    wrong,
                    "you divide probabilities by the temperature: divide the logits by it, before the softmax",
                )
                for wrong in (
                    lambda logits, temperature, top_p: answer(logits, 1.0, top_p) / temperature,
                    divided_before_the_cut,
                )
            ),
            *(
                Mistake(
                    cut(stays), "you take out the likeliest tokens and keep the others: it is the least likely that go"
                )
                for stays in (likeliest_out, nucleus_out)
            ),
            Mistake(not_scaled, "your probabilities add to {got}, not to 1: scale up what stays"),
            Mistake(
                cut_first, "you cut before the temperature: in transformers the temperature comes first, then top-p"
            ),
            Mistake(
                cut(likeliest_first),
                "you keep a share of the tokens: top-p is a share of the probability, however many tokens that takes",
            ),
            Mistake(least_likely_first, "you add up from the least likely token: begin with the likeliest"),
            Mistake(softened, "you take a second softmax to scale up: divide by the sum of what stays"),
            Mistake(
                hidden_by_zero,
                "a logit of 0 still gets probability, because exp(0) is 1: take out tokens after the softmax, or make "
                "their logits minus infinity",
            ),
            Mistake(
                lambda logits, temperature, top_p: answer(logits, temperature, top_p).log(),
                "you return logarithms: take the probabilities themselves",
            ),
            Mistake(
                lambda logits, temperature, top_p: answer(logits, temperature, top_p).sort(descending=True).values,
                "your probabilities are sorted: give them in the order of the vocabulary",
            ),
        ],
        show=lambda p: f"{p.sum():.2f}",
        also=_keeps_one_of_two,
    )


def _keeps_one_of_two(function: Callable) -> str | None:
    """Whether of two equal tokens at the line one stays: which one is left open."""
    logits = torch.tensor([0.5, 0.25, 0.25]).log()
    stays = read_answer(function(logits, 1.0, 0.6), logits) > 0
    return None if stays.sum() == 2 else "of two equally likely tokens at the line you keep both: one is enough"
