"""What the package computes, slowly and plainly in float64 NumPy. Shares no code with the package."""

import math

import numpy as np


def window_mask(T, window):
    """mask[i, j]: key j is one of the `window` keys that end with i."""
    mask = np.zeros((T, T), dtype=bool)
    for i in range(T):
        for j in range(max(0, i - window + 1), i + 1):
            mask[i, j] = True
    return mask


def attention(q, k, v, mask):
    """q (B, T, H, D), k and v (B, S, K, D), mask (B, H, T, S) or smaller -> out (B, T, H, D), weights (B, H, T, S)."""
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    B, T, H, D = q.shape
    S, K = k.shape[1:3]
    mask = np.broadcast_to(mask, (B, H, T, S))
    out, weights = np.zeros((B, T, H, D)), np.zeros((B, H, T, S))
    for b, t, h in np.ndindex(B, T, H):
        shared = h // (H // K)
        seen = np.flatnonzero(mask[b, h, t])
        scores = np.array([q[b, t, h] @ k[b, s, shared] for s in seen]) / np.sqrt(D)
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        weights[b, h, t, seen] = shares
        out[b, t, h] = shares @ v[b, seen, shared]
    return out, weights


def rotate(x, positions, theta, layout="halves"):
    """Each pair of x (B, T, H, D) as a complex number, turned by position times frequency; positions (T,)."""
    x = np.asarray(x, dtype=np.float64)
    D = x.shape[-1]
    out = np.empty_like(x)
    for t, position in enumerate(positions):
        for pair in range(D // 2):
            one, two = (pair, pair + D // 2) if layout == "halves" else (2 * pair, 2 * pair + 1)
            turn = np.exp(1j * position * theta ** (-2 * pair / D))
            turned = (x[:, t, :, one] + 1j * x[:, t, :, two]) * turn
            out[:, t, :, one], out[:, t, :, two] = turned.real, turned.imag
    return out


def route_top_k(logits, num_experts_per_tok):
    """Softmax over all experts, choice, division by the sum of the chosen -> indices, weights (N, A)."""
    logits = np.asarray(logits, dtype=np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    indices = np.argsort(-shares, axis=1, kind="stable")[:, :num_experts_per_tok]
    weights = np.take_along_axis(shares, indices, axis=1)
    return indices, weights / weights.sum(axis=1, keepdims=True)


def experts(x, indices, weights, gates, ups, downs):
    """Token by token and choice by choice; x (N, d), gates and ups (E, f, d), downs (E, d, f) -> (N, d)."""
    x, weights, gates, ups, downs = (np.asarray(a, dtype=np.float64) for a in (x, weights, gates, ups, downs))
    out = np.zeros_like(x)
    for n, a in np.ndindex(*np.shape(indices)):
        e = indices[n][a]
        gate = gates[e] @ x[n]
        out[n] += weights[n, a] * (downs[e] @ (gate / (1 + np.exp(-gate)) * (ups[e] @ x[n])))
    return out


def normal_quantile(p):
    """Where the normal distribution function reaches p, by bisection."""
    low, high = -10.0, 10.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 + math.erf(middle / math.sqrt(2))) / 2 < p else (low, middle)
    return low


def nf4_values():
    """The sixteen values of NF4, from the area left of each: 8 above zero, 7 below."""
    most = 1 - (1 / 32 + 1 / 30) / 2
    above = [normal_quantile(0.5 + (most - 0.5) * i / 8) for i in range(1, 9)]
    below = [-normal_quantile(0.5 + (most - 0.5) * i / 7) for i in range(7, 0, -1)]
    return np.array([*below, 0.0, *above]) / above[-1]


def round_blocks(w, values, block_size):
    """Each block over its largest magnitude, each weight to the nearest of `values`, in any order.

    -> numbers (n,), absmax (blocks,), and how much nearer the nearest is than the next one that differs (n,)
    """
    w, values = np.asarray(w, dtype=np.float64).ravel(), np.asarray(values, dtype=np.float64)
    numbers, margins, absmax = np.zeros(len(w), dtype=int), np.zeros(len(w)), []
    for start in range(0, len(w), block_size):
        absmax.append(max(abs(x) for x in w[start : start + block_size]))
        for i in range(start, min(start + block_size, len(w))):
            distances = abs(values - (w[i] / absmax[-1] if absmax[-1] else 0.0))
            numbers[i] = distances.argmin()
            margins[i] = min(distances[values != values[numbers[i]]]) - distances[numbers[i]]
    return numbers, np.array(absmax), margins


def load_balancing_loss(logits, num_experts_per_tok):
    """Token by token over all layers; logits is a list of (N, E) -> E times the sum of chosen shares times softmax."""
    rows = [np.asarray(row, dtype=np.float64) for layer in logits for row in layer]
    E = len(rows[0])
    chose, shares = np.zeros(E), np.zeros(E)
    for row in rows:
        for e in sorted(range(E), key=lambda e: -row[e])[:num_experts_per_tok]:
            chose[e] += 1 / len(rows)
        exponentials = np.exp(row - row.max())
        shares += exponentials / exponentials.sum() / len(rows)
    return E * sum(chose[e] * shares[e] for e in range(E))


def token_probabilities(logits, temperature, top_p):
    """logits (V,) -> the probabilities (V,) of the draw: the likeliest tokens one by one, until they reach top_p."""
    weights = np.exp((logits - logits.max()) / temperature)
    shares = weights / weights.sum()
    kept, together = np.zeros(len(shares)), 0.0
    for token in np.argsort(-shares):
        if together < top_p or top_p == 1:
            kept[token] = shares[token]
            together += shares[token]
    return kept / kept.sum()
