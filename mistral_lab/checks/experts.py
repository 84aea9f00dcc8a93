"""Lesson 4: the choice of experts, and the tokens that touch a share of them."""

import math
from collections.abc import Callable

import torch

from ..moe import route_top_k
from .judging import Mistake, judge


def chosen_experts(function: Callable) -> Callable:
    """Check `function(logits (N, E), experts_per_token) -> indices (N, A), weights (N, A)`, the heaviest first.

    >>> my_answer = chosen_experts(lambda logits, experts_per_token: NotImplemented)
    chosen_experts: not tried yet; the lesson goes on with its own
    """

    def answer(logits, experts_per_token):
        return tuple(route_top_k(logits, num_experts_per_tok=experts_per_token))

    def weighed(weigh, largest=True):
        def wrong(logits, experts_per_token):
            indices = logits.topk(experts_per_token, largest=largest).indices
            return indices, weigh(logits, indices)

        return wrong

    def lightest_first(logits, experts_per_token):
        return tuple(x.flip(1) for x in answer(logits, experts_per_token))

    def of_chosen(logits, indices):
        return logits.gather(1, indices)

    def by_number(logits, experts_per_token):
        indices, weights = answer(logits, experts_per_token)
        order = indices.argsort(1)
        return indices.gather(1, order), weights.gather(1, order)

    logits, others = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    over_tokens = (
        "your first token's weights add to {got}: the softmax runs over the tokens, and it must run over the experts "
        "of one token"
    )
    return judge(
        "chosen_experts",
        function,
        answer=answer,
        cases=[(logits, 2), (logits, 3), (logits, 1), (others, 2), (logits[:, :4] * 3, 2), (others[:1], 2)]
        + [(others[:3, :4], 4), (logits[:2, 1:4], 1)],
        mistakes=[
            Mistake(
                weighed(lambda logits, indices: logits.softmax(-1).gather(1, indices)),
                "your first token's weights add to {got}, not to 1: the softmax over all experts is left as it is; "
                "divide by the sum of the chosen weights",
            ),
            Mistake(
                weighed(lambda logits, indices: of_chosen(logits, indices).softmax(0)),
                over_tokens,
            ),
            Mistake(
                weighed(lambda logits, indices: logits.softmax(0).gather(1, indices)),
                over_tokens,
            ),
            Mistake(
                weighed(lambda logits, indices: of_chosen(logits, indices) / of_chosen(logits, indices).sum(1, True)),
                "you divide the logits themselves by their sum: take the softmax of the chosen ones",
            ),
            Mistake(
                weighed(lambda logits, indices: of_chosen(logits, indices)),
                "your weights are the logits: take the softmax of the chosen ones",
            ),
            Mistake(
                weighed(lambda logits, indices: of_chosen(logits, indices).sigmoid()),
                "your weights are sigmoids, which do not add to 1: Mixtral takes a softmax",
            ),
            Mistake(
                weighed(lambda logits, indices: of_chosen(logits, indices).softmax(-1), largest=False),
                "you choose the experts with the smallest logits: choose the largest",
            ),
            Mistake(
                lambda logits, experts_per_token: answer(-logits, experts_per_token),
                "you choose the experts with the smallest logits: choose the largest",
            ),
            Mistake(
                lambda logits, experts_per_token: answer(logits, experts_per_token)[::-1],
                "your two results are swapped: indices first, then weights",
            ),
            Mistake(
                lambda logits, experts_per_token: tuple(logits.softmax(-1).topk(experts_per_token)),
                "your two results are swapped: indices first, then weights; and the softmax over all experts is left "
                "as it is",
            ),
            Mistake(lightest_first, "your experts are right, but the lightest come first: give the heaviest first"),
            Mistake(
                lambda logits, experts_per_token: (
                    answer(logits, experts_per_token)[0].sort(1).values,
                    answer(logits, experts_per_token)[1],
                ),
                "your experts are sorted by number and your weights by size: each weight must stand where its expert "
                "stands, the heaviest first",
            ),
            Mistake(by_number, "your experts are right, but in the order of their numbers: give the heaviest first"),
            Mistake(
                lambda logits, experts_per_token: answer(logits, 2),
                "you choose 2 experts whatever `experts_per_token` is: here it is {experts_per_token}",
            ),
            Mistake(
                lambda logits, experts_per_token: answer(logits, 1),
                "you choose one expert whatever `experts_per_token` is: here it is {experts_per_token}",
            ),
            Mistake(
                weighed(lambda logits, indices: torch.full(indices.shape, 1 / indices.shape[1])),
                "your weights are all equal: take the softmax of the chosen logits",
            ),
            Mistake(
                weighed(lambda logits, indices: of_chosen(logits, indices).log_softmax(-1)),
                "your weights are logarithms, below 0: take the softmax itself",
            ),
            Mistake(
                weighed(lambda logits, indices: of_chosen(logits.softmax(-1), indices).softmax(-1)),
                "you take the softmax twice: once is enough, over the chosen logits",
            ),
        ],
        show=lambda found: f"{found[1][0].sum():.2f}",
    )


def tokens_to_touch(function: Callable) -> Callable:
    """Check `function(num_experts, experts_per_token, share)`: the fewest tokens expected to touch that share.

    >>> my_answer = tokens_to_touch(lambda num_experts, experts_per_token, share: NotImplemented)
    tokens_to_touch: not tried yet; the lesson goes on with its own
    """

    def tokens(missed, share):
        return math.log(1 - share) / math.log(missed)

    def answer(num_experts, experts_per_token, share):
        return math.ceil(tokens(1 - experts_per_token / num_experts, share))

    return judge(
        "tokens_to_touch",
        function,
        answer=answer,
        cases=[(8, 2, 0.5), (8, 2, 0.9), (8, 1, 0.9), (64, 2, 0.9), (64, 6, 0.9), (64, 6, 0.5)]
        + [(8, 4, 0.5), (2, 1, 0.75), (12, 6, 0.875)],  # reached exactly, by 1, 2 and 3 tokens
        mistakes=[
            Mistake(
                lambda num_experts, experts_per_token, share: (
                    math.floor(tokens(1 - experts_per_token / num_experts, share)) + 1
                ),
                "you answer {got}, but at {expected} the share of {share:g} is reached exactly, which is enough: is it "
                "a strict comparison, or a floor and 1 more?",
            ),
            Mistake(
                lambda num_experts, experts_per_token, share: round(tokens(1 - experts_per_token / num_experts, share)),
                "you answer {got}, where the share is not reached yet: round up, not to the nearest",
            ),
            Mistake(
                lambda num_experts, experts_per_token, share: math.ceil(tokens(experts_per_token / num_experts, share)),
                "you answer {got}: is the base of your power the share that a token reads? It must be the share "
                "that it misses, 1 - A / E",
            ),
            Mistake(
                lambda num_experts, experts_per_token, share: math.ceil(
                    tokens((1 - 1 / num_experts) ** experts_per_token, share)
                ),
                "you answer {got}: you let a token choose the same expert twice; its {experts_per_token} experts "
                "differ, so it misses an expert with probability 1 - A / E",
            ),
            Mistake(
                lambda num_experts, experts_per_token, share: math.floor(
                    tokens(1 - experts_per_token / num_experts, share)
                ),
                "you answer {got}, where the share is not reached yet: round up",
            ),
            Mistake(
                lambda num_experts, experts_per_token, share: tokens(1 - experts_per_token / num_experts, share),
                "you answer {got}: there is no part of a token, so round up",
            ),
            Mistake(
                lambda num_experts, experts_per_token, share: math.ceil(tokens(1 - 1 / num_experts, share)),
                "you answer {got}: that is for one expert per token; here each token reads {experts_per_token}",
            ),
            Mistake(
                lambda num_experts, experts_per_token, share: math.ceil(share * num_experts / experts_per_token),
                "you answer {got}, which holds if no two tokens share an expert; by chance they often do",
            ),
            Mistake(
                lambda num_experts, experts_per_token, share: math.ceil(
                    math.log(share) / math.log(1 - experts_per_token / num_experts)
                ),
                "you answer {got}: is that the share that is missed, not the share that is read?",
            ),
            Mistake(
                lambda num_experts, experts_per_token, share: math.ceil(share * num_experts),
                "you answer {got}, which is a number of experts: tokens are asked for",
            ),
            Mistake(
                lambda num_experts, experts_per_token, share: math.ceil(
                    math.log(1 / num_experts) / math.log(1 - experts_per_token / num_experts)
                ),
                "you answer {got}, which is for all experts but one: the share that is asked for is {share:g}",
            ),
        ],
    )
