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


def normed_by_rsqrt(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def swiglu_of(x, gate, up, down):
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def fused_by_one_product(x, gate_up, down):
    gate, up = torch.nn.functional.linear(x, gate_up).chunk(2, dim=-1)
    return torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, down)


def layer_in_steps(x, attention, feed_forward, first_norm, second_norm):
    stream = x.clone()
    stream += attention(first_norm(stream))
    stream += feed_forward(second_norm(stream))
    return stream


def layer_with_names(x, attention, feed_forward, first_norm, second_norm):
    for norm, part in ((first_norm, attention), (second_norm, feed_forward)):
        x = torch.add(x, part(norm(x)))
    return x


RIGHT = [
    ("rms_normed", normed_rows),
    ("fused_feed_forward", fused),
    (
        "layer_output",
        lambda x, attention, feed_forward, first_norm, second_norm: (
            (middle := x + attention(first_norm(x))) + feed_forward(second_norm(middle))
        ),
    ),
    ("rms_normed", normed_by_rsqrt),
    ("rms_normed", lambda x, weight, eps: torch.nn.functional.rms_norm(x, weight.shape, weight, eps)),
    ("rms_normed", lambda x, weight, eps: normed_by_rsqrt(x.double(), weight, eps)),
    ("rms_normed", lambda x, w, eps: w * x / ((x.norm(dim=-1, keepdim=True) ** 2) / x.shape[-1] + eps) ** 0.5),
    ("rms_normed", lambda x, weight, eps: normed_by_rsqrt(x, weight, eps).tolist()),
    ("fused_feed_forward", fused_by_one_product),
    ("fused_feed_forward", lambda x, gate_up, down: swiglu_of(x, *gate_up.chunk(2), down)),
    ("fused_feed_forward", lambda x, gu, down: swiglu_of(x, gu[: len(gu) // 2], gu[len(gu) // 2 :], down).tolist()),
    ("fused_feed_forward", lambda x, gu, down: fused_by_one_product(x.double(), gu.double(), down.double())),
    ("layer_output", layer_in_steps),
    ("layer_output", layer_with_names),
    ("layer_output", lambda *given: layer_in_steps(*given).numpy()),
    ("layer_output", lambda *given: layer_with_names(*given).double()),
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


WRONG = [
    ("rms_normed", lambda x, w, eps: w * x / ((x * x).mean(-1, True).sqrt() + eps), "epsilon inside the square root"),
    ("rms_normed", lambda x, w, eps: w * x / ((x * x).sum(-1, True) + eps).sqrt(), "mean of the squares is meant"),
    ("rms_normed", lambda x, w, eps: w * x / ((x * x).mean(0) + eps).sqrt(), "mean runs over the tokens"),
    ("rms_normed", lambda x, w, eps: x / ((x * x).mean(-1, True) + eps).sqrt(), "not multiplied by the weight"),
    ("rms_normed", lambda x, w, eps: torch.nn.functional.layer_norm(x, w.shape, w, None, eps), "LayerNorm"),
    ("fused_feed_forward", lambda x, gu, down: swiglu_of(x, *gu.chunk(2)[::-1], down), "gate and up swapped"),
    ("fused_feed_forward", lambda x, gu, down: swiglu_of(x, gu[::2], gu[1::2], down), "every other row"),
    (
        "fused_feed_forward",
        lambda x, gu, down: (x @ gu.chunk(2)[0].T) * (x @ gu.chunk(2)[1].T) @ down.T,
        "switch is missing",
    ),
    ("layer_output", normed_copy, "normed copy"),
    ("layer_output", side_by_side, "reads what attention read"),
    ("layer_output", norm_after, "norms come after"),
    ("layer_output", lambda x, a, f, n, m: f(m(a(n(x)))), "parts replace x"),
    ("rms_normed", lambda x, w, eps: w * x / (x.var(-1, keepdim=True) + eps).sqrt(), "standard deviation"),
    ("rms_normed", lambda x, w, eps: w * x / (x.var(-1, correction=0, keepdim=True) + eps).sqrt(), "standard dev"),
    ("rms_normed", lambda x, w, eps: w * x / (x.pow(2).mean(-1, True) + eps), "square root missing"),
    ("rms_normed", lambda x, w, eps: (1 + w) * x / (x.pow(2).mean(-1, True) + eps).sqrt(), "as Gemma does"),
    ("rms_normed", lambda x, w, eps: w * x / x.pow(2).mean(-1, True).sqrt(), "epsilon is missing"),
    (
        "fused_feed_forward",
        lambda x, gu, down: (torch.nn.functional.gelu(x @ gu.chunk(2)[0].T) * (x @ gu.chunk(2)[1].T)) @ down.T,
        "switch is GELU: it must be SiLU",
    ),
    (
        "fused_feed_forward",
        lambda x, gu, down: ((x @ gu.chunk(2)[0].T).relu() * (x @ gu.chunk(2)[1].T)) @ down.T,
        "switch is ReLU",
    ),
    (
        "fused_feed_forward",
        lambda x, gu, down: ((x @ gu.chunk(2)[0].T).sigmoid() * (x @ gu.chunk(2)[1].T)) @ down.T,
        "sigmoid alone",
    ),
    ("fused_feed_forward", lambda x, gu, down: x + fused_by_one_product(x, gu, down), "you add x"),
    (
        "fused_feed_forward",
        lambda x, gu, down: torch.nn.functional.silu(x @ gu.chunk(2)[0].T) @ down.T,
        "up is missing",
    ),
    ("layer_output", lambda x, a, f, n, m: a(n(x)) + f(m(a(n(x)))), "your first sum is lost"),
    ("layer_output", lambda x, a, f, n, m: f(m(x + a(n(x)))), "your second sum is lost"),
    ("layer_output", lambda x, a, f, n, m: layer_in_steps(x, a, f, m, n), "norms are swapped"),
    ("layer_output", lambda x, a, f, n, m: layer_in_steps(x, a, f, n, n), "first norm twice"),
    ("layer_output", lambda x, a, f, n, m: layer_in_steps(x, f, a, n, m), "attention comes first"),
    ("layer_output", lambda x, a, f, n, m: x + f(m(x + a(n(x)))), "attention's output is lost"),
]
