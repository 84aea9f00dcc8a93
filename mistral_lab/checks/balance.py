"""Lesson 4: a balancing loss for each layer."""

from collections.abc import Callable

import torch

from ..moe import load_balancing_loss, route_top_k
from .judging import Mistake, judge


def balance_by_layer(function: Callable) -> Callable:
    """Check `function(logits, experts_per_token)`: the balancing loss of each layer (N, E), averaged over layers.

    >>> my_answer = balance_by_layer(lambda logits, experts_per_token: NotImplemented)
    balance_by_layer: not tried yet; the lesson goes on with its own
    """

    def mean(layer_loss):
        return lambda logits, experts_per_token: sum(layer_loss(x, experts_per_token) for x in logits) / len(logits)

    def one(scores, experts_per_token):
        return load_balancing_loss([scores], num_experts_per_tok=experts_per_token)

    def answer(logits, experts_per_token):
        return mean(one)(logits, experts_per_token)

    def chosen_shares(scores, experts_per_token):
        return scores.topk(experts_per_token).indices.flatten().bincount(minlength=scores.shape[1]) / len(scores)

    def of_chosen_only(scores, experts_per_token):
        indices, weights = route_top_k(scores, num_experts_per_tok=experts_per_token)
        spread = torch.zeros(scores.shape[1]).index_add(0, indices.flatten(), weights.flatten()) / len(scores)
        return scores.shape[1] * (chosen_shares(scores, experts_per_token) * spread).sum()

    def counts_twice(scores, experts_per_token):
        return scores.shape[1] * chosen_shares(scores, experts_per_token).square().sum()

    def probabilities_twice(scores, experts_per_token):
        return scores.shape[1] * scores.softmax(1).mean(0).square().sum()

    def over_tokens(scores, experts_per_token):
        return scores.shape[1] * (chosen_shares(scores, experts_per_token) * scores.softmax(0).mean(0)).sum()

    def first_choices(scores, experts_per_token):
        return scores.shape[1] * (chosen_shares(scores, 1) * scores.softmax(1).mean(0)).sum()

    def summed(scores, experts_per_token):
        return len(scores) * one(scores, experts_per_token)

    def gradient_flows(function):
        trained = [x.clone().requires_grad_() for x in layers]
        try:
            function(trained, 2).backward()
        except Exception:
            gradients = [None]
        else:
            gradients = [x.grad for x in trained]
        if not any(gradient is None or not gradient.any() for gradient in gradients):
            return None
        return (
            "the value is right, but no gradient reaches the logits, so the loss cannot train a router: keep the "
            "softmax and the sum as tensors, without item(), float(), detach() or NumPy"
        )

    generator = torch.Generator().manual_seed(0)
    half = torch.full((4, 8), -9.0)
    for token in range(4):
        half[token, [token, (token + 1) % 4]] = torch.tensor([9.0, 8.0])
    layers = list(2 * torch.randn(3, 12, 8, generator=generator))
    others = list(torch.randn(2, 5, 6, generator=generator))
    return judge(
        "balance_by_layer",
        function,
        answer=answer,
        cases=[([half, half.roll(4, 1)], 2), (layers, 2), (layers, 3), (layers[:2], 2), ([layers[0][:, :4]], 2)]
        + [(others, 1), (others, 6), ([layers[1], others[0]], 2)],
        mistakes=[
            Mistake(
                lambda logits, experts_per_token: load_balancing_loss(logits, num_experts_per_tok=experts_per_token),
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
            Mistake(
                mean(probabilities_twice),
                "you multiply P by itself: f is the share of tokens that chose each expert, counted",
            ),
            Mistake(mean(over_tokens), "your softmax runs over the tokens: for P it must run over the experts"),
            Mistake(
                mean(first_choices),
                "your f counts first choices alone: a token chooses {experts_per_token} experts, and each counts",
            ),
            Mistake(mean(summed), "your f is a count: divide it by the number of tokens"),
            Mistake(
                lambda logits, experts_per_token: one(logits[0], experts_per_token),
                "you return the loss of the first layer: take the mean over layers",
            ),
            Mistake(
                lambda logits, experts_per_token: one(logits[-1], experts_per_token),
                "you return the loss of the last layer: take the mean over layers",
            ),
        ],
        also=gradient_flows,
        show=lambda loss: f"{loss:.3g}",
    )
