"""Lessons 1 to 5 again: slips that a second author thought of."""

import math

import torch
from torch.nn.functional import gelu, silu

from mistral_lab import masks


def counted(config, queries=1, keys=2, matrices=3, norms=2, tables=2, last=1):
    d, width = config.dim, config.n_heads * config.head_dim
    layer = queries * 2 * d * width + keys * d * config.n_kv_heads * config.head_dim
    layer += matrices * d * config.hidden_dim + norms * d
    return tables * config.vocab_size * d + config.n_layers * layer + last * d


def kept_of(p, top_p):
    order = p.argsort(descending=True)
    before = p[order].cumsum(0) - p[order]
    return torch.zeros_like(p).scatter(0, order[before < top_p], p[order[before < top_p]])


def smallest_kept(logits, temperature, top_p):
    p = (logits / temperature).softmax(0)
    kept = torch.where(p >= 1 - top_p, p, 0)
    return kept / kept.sum()


def cut_before_the_temperature(logits, temperature, top_p):
    kept = kept_of(logits.softmax(0), top_p) > 0
    return (logits / temperature).masked_fill(~kept, -math.inf).softmax(0)


def softmax_of_the_kept(logits, temperature, top_p):
    return kept_of((logits / temperature).softmax(0), top_p).softmax(0)


def attended(q, k, v, mask, *, hide=True, axis=-1, scale=None, spread=None, after=False):
    G = q.shape[1] // k.shape[1]
    k, v = (spread(x, G) if spread else x.repeat_interleave(G, dim=1) for x in (k, v))
    scores = q @ k.mT / (scale or math.sqrt(q.shape[-1]))
    if after:
        return (scores.softmax(axis) * mask) @ v
    return scores.masked_fill(~mask, -math.inf).softmax(axis) @ v


def mean_of_groups(q, k, v, mask):
    B, H, T, D = q.shape
    q = q.reshape(B, k.shape[1], -1, T, D).mean(2)
    return attended(q, k, v, mask).repeat_interleave(H // k.shape[1], dim=1)


def chunked(q, k, v, window, chunk, *, axis=1, after=False, drop=False, scale=None):
    out = []
    for start in range(0, len(q) - (chunk - 1 if drop else 0), chunk):
        rows = torch.arange(start, min(start + chunk, len(q)))
        keys = torch.arange(max(0, start - window + 1), int(rows[-1]) + 1)
        scores = q[rows] @ k[keys].T / (scale or q.shape[1] ** 0.5)
        seen = masks.position_mask(rows, keys, window=window)
        out.append(
            (scores.softmax(axis) * seen if after else scores.masked_fill(~seen, -math.inf).softmax(axis).nan_to_num())
            @ v[keys]
        )
    return torch.cat(out)


def swiglu(x, gate_up, down, switch=silu):
    gate, up = gate_up.chunk(2)
    return switch(x @ gate.T) * (x @ up.T) @ down.T


def balanced(x, A, choices=1, factor=True):
    chosen = x.topk(A).indices
    share = torch.zeros(x.shape[1]).scatter_add(0, chosen.flatten(), torch.ones(chosen.numel())) / len(x)
    return (x.shape[1] if factor else 1) * (share * x.softmax(1).mean(0)).sum()


WRONG = [
    ("parameter_count", lambda c: counted(c, tables=1), "a table is missing"),
    ("parameter_count", lambda c: counted(c, matrices=2), "has three matrices, not two"),
    ("parameter_count", lambda c: counted(c, keys=1), "you count one for both"),
    ("parameter_count", lambda c: counted(c, last=0), "last norm is missing"),
    ("parameter_count", lambda c: 2 * counted(c), "twice too much: is that bytes"),
    ("least_time", lambda n, bits, rate: n * bits / 8 / rate * 1000, "which is milliseconds"),
    ("least_time", lambda n, bits, rate: n * bits / 8 * rate, "seconds is a division"),
    ("least_time", lambda n, bits, rate: n / rate, "a byte for every weight: here a weight has 16"),
    ("least_time", lambda n, bits, rate: n * (bits // 8) / rate, "`//` drops the fraction"),
    ("draw_probabilities", smallest_kept, "no threshold for one token"),
    ("draw_probabilities", cut_before_the_temperature, "cut before the temperature"),
    ("draw_probabilities", softmax_of_the_kept, "second softmax to scale up"),
    (
        "draw_probabilities",
        lambda x, t, p: kept_of(x.softmax(0), p) / kept_of(x.softmax(0), p).sum(),
        "the temperature changes nothing",
    ),
    ("whole_characters", lambda pieces: [b"".join(pieces).decode()], "raises UnicodeDecodeError"),
    ("whole_characters", lambda pieces: [p.decode("latin-1") for p in pieces], "a byte alone is no character"),
    (
        "whole_characters",
        lambda pieces: [b"".join(pieces[: i + 1]).decode(errors="ignore") for i in range(len(pieces))],
        "only what is new with each piece",
    ),
    (
        "whole_characters",
        lambda pieces: [p.decode(errors="backslashreplace") for p in pieces],
        r"you print \['.*a piece alone is no character",
    ),
    ("token_bytes", lambda L, K, D, size: L * K * D * size, "both a key and a value"),
    ("token_bytes", lambda L, K, D, size: 2 * K * D * size, "is one layer: each of the 32"),
    ("token_bytes", lambda L, K, D, size: 2 * L * K * D, "the number of values: each takes 2"),
    ("token_bytes", lambda L, K, D, size: 2 * L * D * size, "is one KV head: each of the 8"),
    ("shared_heads", lambda H, K: [h % (H // K) for h in range(H)], "place within its group, the remainder"),
    (
        "shared_heads",
        lambda H, K: [h // (H // K) for h in range(K)],
        r"give \[0, 0\], as many entries as there are KV heads",
    ),
    ("shared_heads", lambda H, K: [k for _ in range(H // K) for k in range(K)], "assign the heads in turn"),
    ("shared_heads", lambda H, K: [min(h, K - 1) for h in range(H)], "one KV head each and all others the last"),
    ("longest_text", lambda f, L, H, G, D, s: f // (2 * (H // G) * D * s), "cache of one layer"),
    ("longest_text", lambda f, L, H, G, D, s: f // (2 * L * (H // G) * D), "one byte per value: here a value takes 2"),
    ("longest_text", lambda f, L, H, G, D, s: 2 * L * (H // G) * D * s, "whatever `free_bytes` is"),
    ("longest_text", lambda f, L, H, G, D, s: f // (2 * L * D * s * H * G), "do you multiply by the group size"),
    ("grouped_attention", lambda q, k, v, m: attended(q, k, v, m & torch.ones_like(m).tril()), "triangle of your own"),
    ("grouped_attention", lambda q, k, v, m: attended(q, k, v, m, scale=math.sqrt(8)), "same number whatever D is"),
    ("grouped_attention", lambda q, k, v, m: attended(q, k, v, m, after=True), "hide keys after the softmax"),
    ("grouped_attention", mean_of_groups, "average the queries of a group"),
    ("grouped_attention", lambda q, k, v, m: attended(q, k, v, m, scale=q.shape[-1]), "not by D"),
    (
        "grouped_attention",
        lambda q, k, v, m: attended(q, k, v, m, spread=lambda x, G: x.mean(1, True)),
        "average over the KV heads",
    ),
    (
        "window_mask",
        lambda i, j, W: (i[:, None] - j >= 0) & (i[:, None] - j < W - 1),
        "3 keys where W = 4, one too few",
    ),
    ("window_mask", lambda i, j, W: (j - i[:, None] >= 0) & (j - i[:, None] < W), "keys that come after them"),
    ("window_mask", lambda i, j, W: i[:, None] - j < W, "keys that come after them"),
    ("window_mask", lambda i, j, W: ~((i[:, None] >= j) & (i[:, None] - j < W)), "you mark what is hidden"),
    (
        "ring_slots",
        lambda seen, W: [p % W for p in range(seen)][:W] + [-1] * max(0, W - seen),
        "full ring goes on and overwrites",
    ),
    ("ring_slots", lambda seen, W: [p if p < seen else -1 for p in range(W)], "full ring goes on and overwrites"),
    ("ring_slots", lambda seen, W: [seen - 1 - s if s < seen else -1 for s in range(W)], "the newest comes first here"),
    (
        "ring_slots",
        lambda seen, W: [max([p for p in range(seen) if p % W == s], default=0) for s in range(W)],
        "an empty slot is -1",
    ),
    ("ring_order", lambda seen, W: list(range(min(seen, W))), "order of the slots; the oldest"),
    (
        "ring_order",
        lambda seen, W: [p % W for p in range(max(0, seen - W), seen)][::-1],
        "the newest first; begin with the oldest",
    ),
    ("ring_order", lambda seen, W: list(range(max(0, seen - W), seen)), "those are positions; name the slots"),
    ("ring_order", lambda seen, W: [p % W for p in range(seen - W, seen)], "slots are still empty"),
    ("prefill_in_chunks", lambda *a: chunked(*a, axis=0), "softmax runs over the queries"),
    ("prefill_in_chunks", lambda *a: chunked(*a, after=True), "hide keys after the softmax"),
    ("prefill_in_chunks", lambda *a: chunked(*a, drop=True), "the last chunk of your answer is missing"),
    ("prefill_in_chunks", lambda *a: chunked(*a, scale=a[0].shape[1]), "not by D"),
    (
        "chosen_experts",
        lambda x, A: (x.topk(A).indices, x.topk(A).values / x.topk(A).values.sum(1, True)),
        "logits themselves by their sum",
    ),
    ("chosen_experts", lambda x, A: (x.topk(A).indices, torch.full((len(x), A), 1 / A)), "weights are all equal"),
    (
        "chosen_experts",
        lambda x, A: (x.topk(A).indices.sort(1).values, x.topk(A).values.softmax(1)),
        "experts are sorted by number and your weights by size",
    ),
    ("chosen_experts", lambda x, A: (x.topk(A).indices, x.topk(A).values.sigmoid()), "weights are sigmoids"),
    (
        "tokens_to_touch",
        lambda E, A, s: int(math.log(1 - s) / math.log(1 - A / E)) + 1,
        "answer 2, but at 1 the share of 0.5 is reached exactly",
    ),
    (
        "tokens_to_touch",
        lambda E, A, s: next(n for n in range(10**4) if 1 - (1 - A / E) ** n > s),
        "strict comparison, or a floor",
    ),
    ("tokens_to_touch", lambda E, A, s: math.ceil(math.log(s) / math.log(1 - A / E)), "share that is missed"),
    (
        "tokens_to_touch",
        lambda E, A, s: math.ceil(math.log(1 - s) / math.log(1 - 1 / E) / A),
        "choose the same expert twice",
    ),
    (
        "balance_by_layer",
        lambda xs, A: (sum(balanced(x, A) for x in xs) / len(xs)).detach(),
        "no gradient reaches the logits",
    ),
    (
        "balance_by_layer",
        lambda xs, A: (sum(balanced(x, A) for x in xs) / len(xs)).item(),
        "no gradient reaches the logits",
    ),
    (
        "balance_by_layer",
        lambda xs, A: sum(balanced(x, 1) for x in xs) / len(xs),
        "first choices alone: a token chooses 2",
    ),
    ("balance_by_layer", lambda xs, A: sum(balanced(x, A, factor=False) for x in xs) / len(xs), "factor E is missing"),
    (
        "rms_normed",
        lambda x, w, eps: w * x / (x.var(-1, keepdim=True) + eps).sqrt(),
        "standard deviation, which subtracts the mean",
    ),
    ("rms_normed", lambda x, w, eps: w * x / (x.square().mean(-1, True) + eps), "is the square root missing"),
    (
        "rms_normed",
        lambda x, w, eps: w * x * (x.square().mean(-1, True) + eps).sqrt(),
        "root of the mean of the squares: divide",
    ),
    ("rms_normed", lambda x, w, eps: w * x / x.square().mean(-1, True).sqrt(), "your epsilon is missing"),
    (
        "rms_normed",
        lambda x, w, eps: (1 + w) * x / (x.square().mean(-1, True) + eps).sqrt(),
        "multiply by 1 [+] weight",
    ),
    ("fused_feed_forward", lambda x, gu, d: swiglu(x, gu, d, gelu), "switch is GELU"),
    ("fused_feed_forward", lambda x, gu, d: swiglu(x, gu, d, torch.relu), "switch is ReLU"),
    ("fused_feed_forward", lambda x, gu, d: swiglu(x, gu.roll(len(gu) // 2, 0), d), "are gate and up swapped"),
    ("fused_feed_forward", lambda x, gu, d: swiglu(x, gu, d, torch.sigmoid), "sigmoid alone"),
    ("layer_output", lambda x, a, f, n, m: (y := a(n(x))) + f(m(y)), "your first sum is lost"),
    ("layer_output", lambda x, a, f, n, m: f(m(x + a(n(x)))), "your second sum is lost"),
    ("layer_output", lambda x, a, f, n, m: (y := x + a(m(x))) + f(n(y)), "norms are swapped"),
    ("layer_output", lambda x, a, f, n, m: (y := x + a(x)) + f(y), "parts read x itself"),
    ("layer_output", lambda x, a, f, n, m: (y := x + f(n(x))) + a(m(y)), "attention comes first"),
]
