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


def balance_of(scores, experts_per_token, choices=False):
    chose = scores.topk(experts_per_token).indices.flatten().bincount(minlength=scores.shape[1])
    chose = chose / (chose.sum() if choices else len(scores))
    return scores.shape[1] * (chose * scores.softmax(-1).mean(0)).sum()


def chosen_by_loops(logits, experts_per_token):
    indices, weights = [], []
    for row in logits.tolist():
        order = sorted(range(len(row)), key=lambda expert: -row[expert])[:experts_per_token]
        powers = [math.exp(row[expert]) for expert in order]
        indices.append(order)
        weights.append([power / sum(powers) for power in powers])
    return torch.tensor(indices), torch.tensor(weights)


def chosen_by_topk(logits, experts_per_token):
    chosen, indices = logits.topk(experts_per_token, dim=-1)
    return indices, chosen.softmax(dim=-1)


def scaled_up(logits, experts_per_token):
    weights, indices = torch.topk(torch.softmax(logits, -1), experts_per_token)
    return indices, weights / weights.sum(-1, keepdim=True)


def tokens_by_logarithm(num_experts, experts_per_token, share):
    return math.ceil(math.log(1 - share) / math.log(1 - experts_per_token / num_experts))


def tokens_one_by_one(num_experts, experts_per_token, share):
    unread, n = num_experts, 0
    while num_experts - unread < share * num_experts:
        unread, n = unread * (num_experts - experts_per_token) / num_experts, n + 1
    return n


def balanced(logits, experts_per_token, layer=None):
    return sum((layer or balance_of)(x, experts_per_token) for x in logits) / len(logits)


def one_hot_balance(scores, experts_per_token):
    chosen = torch.nn.functional.one_hot(scores.topk(experts_per_token).indices, scores.shape[1]).sum(1).float()
    return scores.shape[1] * torch.dot(chosen.mean(0), torch.softmax(scores, dim=1).mean(0))


RIGHT = [
    ("chosen_experts", reference.route_top_k),
    ("tokens_to_touch", tokens_for),
    (
        "balance_by_layer",
        lambda logits, experts_per_token: balanced(logits, experts_per_token),
    ),
    ("chosen_experts", chosen_by_loops),
    ("chosen_experts", chosen_by_topk),
    ("chosen_experts", scaled_up),
    ("chosen_experts", lambda logits, A: [x.tolist() for x in chosen_by_topk(logits, A)]),
    ("tokens_to_touch", tokens_by_logarithm),
    ("tokens_to_touch", tokens_one_by_one),
    ("tokens_to_touch", lambda E, A, share: float(tokens_by_logarithm(E, A, share))),
    ("tokens_to_touch", lambda E, A, share: np.ceil(np.log(1 - share) / np.log(1 - A / E))),
    ("balance_by_layer", lambda logits, A: balanced(logits, A, one_hot_balance)),
    ("balance_by_layer", lambda logits, A: torch.stack([balance_of(x, A) for x in logits]).mean()),
    ("balance_by_layer", lambda logits, A: torch.stack([balance_of(x.double(), A) for x in logits]).mean()),
    ("balance_by_layer", lambda logits, A: sum(balance_of(x, A) / len(logits) for x in logits)),
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


WRONG = [
    ("chosen_experts", softmax_over_all, r"add to 0\.\d\d, not to 1: the softmax over all"),
    ("chosen_experts", softmax_over_tokens, "runs over the tokens"),
    ("chosen_experts", lambda logits, A: logits.softmax(-1).topk(A), "results are swapped: indices first"),
    ("chosen_experts", always_two, "choose 2 experts whatever `experts_per_token` is"),
    ("chosen_experts", lambda logits, A: dict(RIGHT)["chosen_experts"](-logits, A), "experts with the smallest logits"),
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
    ("chosen_experts", lambda logits, A: tuple(x.flip(1) for x in chosen_by_topk(logits, A)), "lightest come first"),
    ("chosen_experts", lambda logits, A: (logits.topk(A).indices, logits.topk(A).values), "weights are the logits"),
    ("chosen_experts", lambda logits, A: (logits.topk(A).indices, logits.topk(A).values.sigmoid()), "are sigmoids"),
    ("chosen_experts", lambda logits, A: chosen_by_topk(logits.softmax(-1), A), "softmax twice"),
    ("tokens_to_touch", lambda E, A, share: int(math.log(1 - share) / math.log(1 - A / E)) + 1, "exactly, which is en"),
    ("tokens_to_touch", lambda E, A, share: math.ceil(math.log(1 - share) / math.log(A / E)), "base of your power"),
    ("tokens_to_touch", lambda E, A, share: math.log(1 - share) / math.log(1 - A / E), "no part of a token"),
    ("tokens_to_touch", lambda E, A, share: math.ceil(math.log(share) / math.log(1 - A / E)), "share that is missed"),
    (
        "tokens_to_touch",
        lambda E, A, share: math.ceil(math.log(1 - share) / math.log(1 - 1 / E) / A),
        "the same expert twice",
    ),
    ("balance_by_layer", lambda logits, A: balanced(logits, A).item(), "no gradient reaches the logits"),
    ("balance_by_layer", lambda logits, A: balanced([x.detach() for x in logits], A), "no gradient reaches"),
    ("balance_by_layer", lambda logits, A: balanced(logits, 1), "first choices alone"),
    ("balance_by_layer", lambda logits, A: balance_of(logits[0], A), "loss of the first layer"),
]
