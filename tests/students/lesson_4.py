"""Lesson 4: choosing experts, tokens that touch them, and the balancing loss."""

import math

import numpy as np
import reference
import torch


def tokens_for(num_experts, experts_per_token, share):
    n = 0
    while 1 - (1 - experts_per_token / num_experts) ** n < share:
        n += 1
    return n


RIGHT = [
    ("chosen_experts", reference.route_top_k),
    ("tokens_to_touch", tokens_for),
    (
        "balance_by_layer",
        lambda logits, experts_per_token: np.mean(
            [reference.load_balancing_loss([layer], experts_per_token) for layer in logits]
        ),
    ),
]


def softmax_over_all(logits, experts_per_token):
    weights, indices = logits.softmax(-1).topk(experts_per_token)
    return indices, weights


def softmax_over_tokens(logits, experts_per_token):
    chosen, indices = logits.topk(experts_per_token)
    return indices, chosen.softmax(0)


def always_two(logits, experts_per_token):
    chosen, indices = logits.topk(2)
    return indices, chosen.softmax(-1)


def balance_of(scores, experts_per_token, choices=False):
    chose = scores.topk(experts_per_token).indices.flatten().bincount(minlength=scores.shape[1])
    chose = chose / (chose.sum() if choices else len(scores))
    return scores.shape[1] * (chose * scores.softmax(-1).mean(0)).sum()


WRONG = [
    ("chosen_experts", softmax_over_all, r"add to 0\.\d\d, not to 1: the softmax over all"),
    ("chosen_experts", softmax_over_tokens, "runs over the tokens"),
    ("chosen_experts", lambda logits, A: logits.softmax(-1).topk(A), "results are swapped: indices first"),
    ("chosen_experts", always_two, "has shape|whatever `experts_per_token` is"),
    ("chosen_experts", lambda logits, A: dict(RIGHT)["chosen_experts"](-logits, A), "smallest logits|is wrong"),
    ("tokens_to_touch", lambda E, A, share: math.floor(math.log(1 - share) / math.log(1 - A / E)), "round up"),
    ("tokens_to_touch", lambda E, A, share: math.ceil(share * E / A), "no two tokens share an expert"),
    ("tokens_to_touch", lambda E, A, share: tokens_for(E, 1, share), "one expert per token; here each token reads 2"),
    ("balance_by_layer", lambda logits, A: balance_of(torch.cat(logits), A), "is 2 where.*it pools the layers"),
    (
        "balance_by_layer",
        lambda logits, A: sum(balance_of(x, A, True) for x in logits) / len(logits),
        "share of tokens",
    ),
    ("balance_by_layer", lambda logits, A: sum(balance_of(x, A) for x in logits), "take their mean"),
    (
        "balance_by_layer",
        lambda logits, A: sum(balance_of(x, A) / x.shape[1] for x in logits) / len(logits),
        "factor E",
    ),
]
