"""Lesson 5: the norm, the feed-forward network, and the layer."""

import math

import numpy as np
import reference
import torch


def normed_rows(x, weight, eps):
    rows = np.asarray(x)
    return np.array([np.asarray(weight) * row / math.sqrt((row * row).mean() + eps) for row in rows])


def fused(x, gate_up, down):
    h = len(gate_up) // 2
    every = np.zeros((len(x), 1), dtype=int), np.ones((len(x), 1))
    return reference.experts(x, *every, gate_up[None, :h], gate_up[None, h:], down[None])


RIGHT = [
    ("rms_normed", normed_rows),
    ("fused_feed_forward", fused),
    (
        "layer_output",
        lambda x, attention, feed_forward, first_norm, second_norm: (
            (middle := x + attention(first_norm(x))) + feed_forward(second_norm(middle))
        ),
    ),
]


def norm_after(x, attention, feed_forward, first_norm, second_norm):
    x = first_norm(x + attention(x))
    return second_norm(x + feed_forward(x))


def side_by_side(x, attention, feed_forward, first_norm, second_norm):
    return x + attention(first_norm(x)) + feed_forward(second_norm(x))


def normed_copy(x, attention, feed_forward, first_norm, second_norm):
    x = first_norm(x)
    x = x + attention(x)
    x = second_norm(x)
    return x + feed_forward(x)


def swiglu_of(x, gate, up, down):
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


WRONG = [
    ("rms_normed", lambda x, w, eps: w * x / ((x * x).mean(-1, True).sqrt() + eps), "epsilon inside the square root"),
    ("rms_normed", lambda x, w, eps: w * x / ((x * x).sum(-1, True) + eps).sqrt(), "mean of the squares is meant"),
    ("rms_normed", lambda x, w, eps: w * x / ((x * x).mean(0) + eps).sqrt(), "mean runs over the tokens"),
    ("rms_normed", lambda x, w, eps: x / ((x * x).mean(-1, True) + eps).sqrt(), "not multiplied by the weight"),
    ("rms_normed", lambda x, w, eps: torch.nn.functional.layer_norm(x, (6,), w, None, eps), "LayerNorm"),
    ("fused_feed_forward", lambda x, gu, down: swiglu_of(x, *gu.chunk(2)[::-1], down), "gate and up swapped"),
    ("fused_feed_forward", lambda x, gu, down: swiglu_of(x, gu[::2], gu[1::2], down), "every other row"),
    ("fused_feed_forward", lambda x, gu, down: (x @ gu[:5].T) * (x @ gu[5:].T) @ down.T, "switch is missing"),
    ("layer_output", normed_copy, "normed copy"),
    ("layer_output", side_by_side, "reads what attention read"),
    ("layer_output", norm_after, "norms come after"),
    ("layer_output", lambda x, a, f, n, m: f(m(a(n(x)))), "parts replace x"),
]
