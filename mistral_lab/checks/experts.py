"""Lesson 4: the choice of experts, the tokens that touch a share of them, and a balancing loss for each layer."""

import math
from collections.abc import Callable

import torch

from ..moe import load_balancing_loss, route_top_k
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

    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    over_tokens = (
        "your first token's weights add to {got}: the softmax runs over the tokens, and it must run over the experts "
        "of one token"
    )
    return judge(
        "chosen_experts",
        function,
        answer=answer,
        cases=[(logits, 2), (logits, 3), (logits, 1), (logits.flip(1), 2), (logits[:, :4] * 3, 2)],
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
                lambda logits, experts_per_token: answer(logits, experts_per_token)[::-1],
                "your two results are swapped: indices first, then weights",
            ),
            Mistake(
                lambda logits, experts_per_token: tuple(logits.softmax(-1).topk(experts_per_token)),
                "your two results are swapped: indices first, then weights; and the softmax over all experts is left "
                "as it is",
            ),
            Mistake(lightest_first, "your experts are right, but the lightest come first: give the heaviest first"),
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
        cases=[(8, 2, 0.5), (8, 2, 0.9), (8, 1, 0.9), (64, 2, 0.9), (64, 6, 0.9), (64, 6, 0.5)],
        mistakes=[
            Mistake(
                lambda num_experts, experts_per_token, share: math.floor(
                    tokens(1 - experts_per_token / num_experts, share)
                ),
                "with {got} tokens the share is not reached yet: round up",
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
        ],
    )


def balance_by_layer(function: Callable) -> Callable:
    """Check `function(logits, experts_per_token)`: the balancing loss of each layer (N, E), averaged over layers.

    >>> my_answer = balance_by_layer(lambda logits, experts_per_token: NotImplemented)
    balance_by_layer: not tried yet; the lesson goes on with its own
    """

    def mean(layer_loss):
        return lambda logits, experts_per_token: sum(layer_loss(x, experts_per_token) for x in logits) / len(logits)

    def one(scores, experts_per_token):
        return load_balancing_loss([scores], num_experts_per_tok=experts_per_token).item()

    def answer(logits, experts_per_token):
        return mean(one)(logits, experts_per_token)

    def of_chosen_only(scores, experts_per_token):
        indices, weights = route_top_k(scores, num_experts_per_tok=experts_per_token)
        shares = torch.zeros(scores.shape[1]).index_add(0, indices.flatten(), torch.ones(indices.numel())) / len(scores)
        spread = torch.zeros(scores.shape[1]).index_add(0, indices.flatten(), weights.flatten()) / len(scores)
        return (scores.shape[1] * (shares * spread).sum()).item()

    def counts_twice(scores, experts_per_token):
        indices = scores.topk(experts_per_token).indices
        shares = indices.flatten().bincount(minlength=scores.shape[1]) / len(scores)
        return (scores.shape[1] * (shares * shares).sum()).item()

    generator = torch.Generator().manual_seed(0)
    half = torch.full((4, 8), -9.0)
    for token in range(4):
        half[token, [token, (token + 1) % 4]] = torch.tensor([9.0, 8.0])
    layers = [2 * torch.randn(12, 8, generator=generator) for _ in range(3)]
    return judge(
        "balance_by_layer",
        function,
        answer=answer,
        cases=[([half, half.roll(4, 1)], 2), (layers, 2), (layers, 3), (layers[:2], 2), ([layers[0][:, :4]], 2)],
        mistakes=[
            Mistake(
                lambda logits, experts_per_token: load_balancing_loss(
                    logits, num_experts_per_tok=experts_per_token
                ).item(),
                "your loss is {got} where each layer leaves half its experts idle: it pools the layers, which cancel "
                "out",
            ),
            Mistake(
                lambda logits, experts_per_token: answer(logits, experts_per_token) / experts_per_token,
                "your loss is {got} where {expected} is right: f is the share of tokens that chose an expert, not of "
                "choices",
            ),
            Mistake(
                lambda logits, experts_per_token: answer(logits, experts_per_token) * len(logits),
                "you add the layers up: take their mean",
            ),
            Mistake(
                lambda logits, experts_per_token: answer(logits, experts_per_token) / logits[0].shape[1],
                "your loss is {got}: the factor E is missing",
            ),
            Mistake(
                mean(of_chosen_only), "P is the mean probability over all experts: take the softmax before the choice"
            ),
            Mistake(
                mean(counts_twice), "you multiply f by itself: P is the mean of the softmax, which training can change"
            ),
        ],
    )
