"""Lesson 2: shared heads, the cache in bytes, and grouped attention."""

import math

import numpy as np
import reference
import torch


def grouped(q, k, v, mask):
    q, k, v = (np.asarray(x).swapaxes(1, 2) for x in (q, k, v))
    return reference.attention(q, k, v, np.asarray(mask))[0].swapaxes(1, 2)


def attention_of(q, k, v, mask, scale=None, axis=-1, repeat=lambda x, G: x.repeat_interleave(G, dim=1)):
    k, v = (repeat(x, q.shape[1] // k.shape[1]) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / (scale or q.shape[-1] ** 0.5)
    return scores.masked_fill(~mask, float("-inf")).softmax(axis) @ v


def shared_by_groups(n_heads, n_kv_heads):
    heads = []
    for kv_head in range(n_kv_heads):
        heads += [kv_head] * (n_heads // n_kv_heads)
    return heads


def head_by_head(q, k, v, mask):
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            kv = h // (q.shape[1] // k.shape[1])
            scores = q[b, h] @ k[b, kv].T / math.sqrt(q.shape[-1])
            scores[~mask] = -math.inf
            out[b, h] = torch.softmax(scores, dim=-1) @ v[b, kv]
    return out


def by_place_in_the_group(q, k, v, mask):
    """All KV heads in one product, but the heads of a group one after the other."""
    G = q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    for place in range(G):
        out[:, place::G] = attention_of(q[:, place::G], k, v, mask)
    return out


def by_sums(q, k, v, mask):
    """Head by head, without a matrix product."""
    G, heads = q.shape[1] // k.shape[1], []
    for h in range(q.shape[1]):
        scores = (q[:, h, :, None] * k[:, h // G, None]).sum(-1) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        heads.append((weights[..., None] * v[:, h // G, None]).sum(-2))
    return torch.stack(heads, dim=1)


def values_by_heads(q, k, v, mask):
    """The scores of a group in one product, the means of its heads one by one."""
    (B, H, T, D), G = q.shape, q.shape[1] // k.shape[1]
    scores = (q.reshape(B, k.shape[1], -1, D) @ k.mT / D**0.5).view(B, H, T, -1)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return torch.stack([weights[:, h] @ v[:, h // G] for h in range(H)], dim=1)


def kv_head_by_kv_head(q, k, v, mask):
    out = torch.empty_like(q)
    G = q.shape[1] // k.shape[1]
    for b in range(len(q)):
        for kv in range(k.shape[1]):
            group = slice(kv * G, kv * G + G)
            scores = (q[b, group].flatten(0, 1) @ k[b, kv].T / math.sqrt(q.shape[-1])).view(G, *mask.shape)
            weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
            out[b, group] = (weights.flatten(0, 1) @ v[b, kv]).view(q[b, group].shape)
    return out


def in_blocks_of_keys(q, k, v, mask):
    """A few keys at a time: more products, but each key is read once for its group."""
    B, H, T, D = q.shape
    rows = q.reshape(B, k.shape[1], -1, D)
    scores = torch.cat([rows @ part.mT for part in k.split(64, dim=2)], dim=-1) / D**0.5
    weights = scores.unflatten(2, (-1, T)).masked_fill(~mask, -math.inf).softmax(-1).flatten(2, 3)
    return sum(w @ part for w, part in zip(weights.split(64, -1), v.split(64, 2), strict=True)).reshape(q.shape)


def with_fresh_zeros(q, k, v, mask):
    """The mask as numbers in float32, which do not fit a cache in bfloat16."""
    added = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    rows = q.reshape(len(q), k.shape[1], -1, q.shape[-1])
    scores = (rows @ k.mT / q.shape[-1] ** 0.5).unflatten(2, (-1, q.shape[2])) + added
    return (scores.softmax(-1).flatten(2, 3) @ v).reshape(q.shape)


def stacked(q, k, v, mask, dtype=None):
    k, v = torch.stack([k, v]).to(dtype or k.dtype)
    return rows_of_a_group(q.to(k.dtype), k, v, mask).to(q.dtype)


def without_copies(q, k, v, mask):
    B, H, T, D = q.shape
    K = k.shape[1]
    grouped_queries = q.reshape(B, K, H // K, T, D)
    scores = torch.einsum("bkgtd,bksd->bkgts", grouped_queries, k) * D**-0.5
    weights = scores.masked_fill(mask.logical_not(), float("-inf")).softmax(-1)
    return torch.einsum("bkgts,bksd->bkgtd", weights, v).reshape(B, H, T, D)


def by_library(q, k, v, mask):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def stretched(q, k, v, mask):
    """What `@` has to stretch, it copies: nothing warns of it."""
    B, H, T, D = q.shape
    k, v = k[:, :, None], v[:, :, None]
    scores = q.view(B, k.shape[1], -1, T, D) @ k.mT / D**0.5
    return (scores.masked_fill(~mask, -math.inf).softmax(-1) @ v).view(B, H, T, D)


def keys_in_place(q, k, v, mask):
    k /= q.shape[-1] ** 0.5
    return attention_of(q, k, v, mask, scale=1.0)


def queries_in_place(q, k, v, mask):
    q /= q.shape[-1] ** 0.5
    return attention_of(q, k, v, mask, scale=1.0)


def filled(q, k, v, mask, low):
    """With a low score in the place of minus infinity."""
    B, H, T, D = q.shape
    scores = (q.reshape(B, k.shape[1], -1, D) @ k.mT / D**0.5).view(B, H, T, -1).masked_fill(~mask, low)
    return (scores.softmax(-1).view(B, k.shape[1], -1, k.shape[2]) @ v).view(B, H, T, D)


def rows_of_a_group(q, k, v, mask, per_query=None, hide=None, swap=True, axis=-1):
    """The queries of a group as rows of one product; with S for T, as a reader who tried T = S alone writes it."""
    B, H, T, D = q.shape
    K, rows = k.shape[1], per_query or T
    keys = k.mT if swap else k.reshape(B, K, D, -1)
    scores = q.view(B, K, H // K * rows, D) @ keys / D**0.5
    if hide:
        scores = scores.masked_fill(~hide(mask, H // K), -math.inf)
    else:
        scores = scores.view(B, H, rows, -1).masked_fill(~mask, -math.inf)
    weights = scores.view(B, K, H // K * rows, -1).softmax(axis)
    return (weights @ v).view(B, H, rows, D)


RIGHT = [
    ("shared_heads", lambda n_heads, n_kv_heads: [int(h * n_kv_heads / n_heads) for h in range(n_heads)]),
    (
        "longest_text",
        lambda free_bytes, n_layers, n_heads, group_size, head_dim, bytes_per_value: (
            free_bytes * group_size // (2 * n_layers * n_heads * head_dim * bytes_per_value)
        ),
    ),
    ("grouped_attention", kv_head_by_kv_head),
    ("shared_heads", shared_by_groups),
    ("shared_heads", lambda n_heads, n_kv_heads: np.arange(n_kv_heads).repeat(n_heads // n_kv_heads)),
    ("shared_heads", lambda H, K: torch.arange(H) // (H // K)),
    ("shared_heads", lambda H, K: [float(h // (H / K)) for h in range(H)]),
    ("shared_heads", lambda H, K: tuple(h * K // H for h in range(H))),
    (
        "token_bytes",
        lambda n_layers, n_kv_heads, head_dim, bytes_per_value: sum(
            n_kv_heads * head_dim * bytes_per_value for _ in range(n_layers) for _ in ("key", "value")
        ),
    ),
    ("token_bytes", lambda L, K, D, size: 2 * L * K * D * size),
    ("token_bytes", lambda L, K, D, size: float(L * (K * D * size + K * D * size))),
    ("token_bytes", lambda L, K, D, size: np.prod([2, L, K, D, size])),
    ("token_bytes", lambda L, K, D, size: torch.zeros(L, 2, K, D).numel() * size),
    ("longest_text", lambda free, L, H, G, D, size: int(free / (2 * L * (H / G) * D * size))),
    ("longest_text", lambda free, L, H, G, D, size: math.floor(free / (L * 2 * H / G * D * size))),
    ("longest_text", lambda free, L, H, G, D, size: free // (2 * L * (H // G) * D * size)),
    ("longest_text", lambda free, L, H, G, D, size: np.floor(free / (2 * L * (H // G) * D * size))),
    ("grouped_attention", without_copies),
    ("grouped_attention", rows_of_a_group),
    ("grouped_attention", lambda q, k, v, mask: rows_of_a_group(q, k, v, mask).tolist()),
    ("grouped_attention", in_blocks_of_keys),
    ("grouped_attention", lambda q, k, v, mask: rows_of_a_group(q, k, v, mask).double()),
    ("grouped_attention", lambda q, k, v, mask: filled(q, k, v, mask, torch.finfo(q.dtype).min)),
]


WRONG = [
    ("shared_heads", lambda H, K: [h // K for h in range(H)], "number of KV heads where the group size is meant"),
    ("shared_heads", lambda H, K: [h % K for h in range(H)], r"you give \[0, 1, 0, 1.*run of neighbours"),
    ("shared_heads", lambda H, K: [1 + h * K // H for h in range(H)], "counted from 0"),
    ("longest_text", lambda free, L, H, G, D, size: free // (2 * L * H * D * size), "all 32 query heads"),
    (
        "longest_text",
        lambda free, L, H, G, D, size: free // (2 * L * G * D * size),
        "group size taken for the number of KV",
    ),
    ("longest_text", lambda free, L, H, G, D, size: free // (L * (H // G) * D * size), "both keys and values"),
    (
        "longest_text",
        lambda free, L, H, G, D, size: free // (2 * L * (H // G) * D * 4),
        "4 bytes per value, which is float32",
    ),
    ("longest_text", lambda free, L, H, G, D, size: free / (2 * L * (H // G) * D * size), "round down"),
    ("grouped_attention", lambda q, k, v, mask: attention_of(q, k, v, mask, scale=1.0), "square root of D"),
    ("grouped_attention", lambda q, k, v, mask: attention_of(q, k, v, torch.ones_like(mask)), "is the mask used"),
    (
        "grouped_attention",
        lambda q, k, v, mask: attention_of(q, k, v, mask, repeat=lambda x, G: torch.cat([x] * G, dim=1)),
        "wrong KV heads.*K and G swapped",
    ),
    (
        "grouped_attention",
        lambda q, k, v, mask: attention_of(q, k, v, mask, axis=-2).nan_to_num(),
        "softmax runs over the queries",
    ),
    ("shared_heads", lambda H, K: [h % (H // K) for h in range(H)], "place within its group"),
    ("shared_heads", lambda H, K: list(range(H)), "several query heads share one"),
    ("shared_heads", lambda H, K: [0] * H, "each of them is read by some"),
    ("shared_heads", lambda H, K: list(range(K)), "an entry for each of the 8 query heads is expected"),
    ("shared_heads", lambda H, K: [h / (H // K) for h in range(H)], "number of a head is whole"),
    ("shared_heads", lambda H, K: [round(h * K / H) for h in range(H)], "round down"),
    ("token_bytes", lambda L, K, D, size: L * K * D * size, "both a key and a value"),
    ("token_bytes", lambda L, K, D, size: 2 * K * D * size, "one layer: each of the 32"),
    ("token_bytes", lambda L, K, D, size: 2 * L * K * D, "the number of values"),
    ("token_bytes", lambda L, K, D, size: 4 * L * K * D, "2 bytes for every value: here it is 4"),
    ("token_bytes", lambda L, K, D, size: 16 * L * K * D * size, "which is bits"),
    ("token_bytes", lambda L, K, D, size: 2 * L * D * size, "one KV head: each of the 8"),
    ("token_bytes", lambda L, K, D, size: 2 * L * K * size, "one value per head: a head's key has 128"),
    ("token_bytes", lambda L, K, D, size: 2 * L * K * D * size / 1024, "1,024 times too small: is it a unit"),
    ("longest_text", lambda free, L, H, G, D, size: round(free / (2 * L * (H // G) * D * size)), "not to the nearest"),
    ("longest_text", lambda free, L, H, G, D, size: free // (2 * (H // G) * D * size), "cache of one layer"),
    ("longest_text", lambda free, L, H, G, D, size: 1 + free // (2 * L * (H // G) * D * size), "one too many"),
    ("longest_text", lambda free, L, H, G, D, size: free // (4 * L * (H // G) * D), "2 bytes per value"),
    ("grouped_attention", lambda q, k, v, mask: attention_of(q, k, v, mask.tril()), "triangle of your own"),
    (
        "grouped_attention",
        lambda q, k, v, mask: by_library(q, k, v, torch.ones_like(mask).tril()),
        "triangle of your own",
    ),
    ("grouped_attention", lambda q, k, v, mask: attention_of(q, k, v, mask, scale=8**0.5), "it is not always 8"),
    (
        "grouped_attention",
        lambda q, k, v, mask: rows_of_a_group(q, k, v, mask, per_query=k.shape[2]),
        r"raises RuntimeError.*called with q of shape \(1, 4, 1, 4\), k of shape \(1, 2, 9, 4\)",
    ),
    (
        "grouped_attention",
        lambda q, k, v, mask: attention_of(q, k.mean(1, keepdim=True), v.mean(1, keepdim=True), mask),
        "average over the KV heads",
    ),
    (
        "grouped_attention",
        lambda q, k, v, mask: attention_of(q, k.mean(1, keepdim=True).expand_as(k), v, mask),
        "average over the KV heads.*the values are right",
    ),
    ("grouped_attention", lambda q, k, v, mask: attention_of(q, k, v, ~mask).nan_to_num(), "hide what may be seen"),
    ("grouped_attention", attention_of, "the answers are right, but keys or values are copied"),
    ("grouped_attention", stretched, "the answers are right, but keys or values are copied"),
    ("grouped_attention", head_by_head, "right, but head by head: .* you read 4 times as much of k and v"),
    ("grouped_attention", by_sums, "right, but head by head: .* you read 4 times as much of k and v"),
    ("grouped_attention", by_place_in_the_group, "right, but head by head: .* you read 4 times as much of k and v"),
    ("grouped_attention", values_by_heads, r"right, but head by head: .* you read 2\.5 times as much of k and v"),
    ("grouped_attention", grouped, "in bfloat16, and there your function raises TypeError: .*: NumPy has no bfloat16"),
    ("grouped_attention", with_fresh_zeros, "in bfloat16, and there your function raises RuntimeError: (?!.*NumPy)"),
    ("grouped_attention", stacked, r"2 times the bytes of k: are keys or values copied\?"),
    (
        "grouped_attention",
        lambda q, k, v, mask: stacked(q, k, v, mask, torch.float64),
        r"8 times the bytes of k: are keys or values copied\?",
    ),
    *(
        ("grouped_attention", function, "are keys or values copied into another number format")
        for function in (
            lambda q, k, v, mask: rows_of_a_group(q.double(), k.double(), v.double(), mask),
            lambda q, k, v, mask: rows_of_a_group(q.float(), k.float(), v.float(), mask).to(q.dtype),
        )
    ),
    ("grouped_attention", lambda q, k, v, mask: attention_of(q, v, k, mask), "are `k` and `v` swapped"),
    ("grouped_attention", lambda q, k, v, mask: attention_of(q, k, k, mask), "you take the mean of the keys"),
    ("grouped_attention", lambda q, k, v, mask: attention_of(q, v, v, mask), "multiply the queries with the values"),
    (
        "grouped_attention",
        lambda q, k, v, mask: attention_of(q, k, v.flip(1), mask),
        "values are in .* of the KV heads",
    ),
    ("grouped_attention", lambda q, k, v, mask: attention_of(q, k, v.flip(2), mask), "values are in .* of the tokens"),
    (
        "grouped_attention",
        lambda q, k, v, mask: attention_of(q, k.flip(1), v.flip(1), mask),
        "keys and values are in reverse order of the KV heads",
    ),
    *(
        (
            "grouped_attention",
            lambda q, k, v, mask, scale=scale: attention_of(q, k, v, mask, scale=scale) / q.shape[-1] ** 0.5,
            "you divide after the softmax",
        )
        for scale in (1.0, None)
    ),
    ("grouped_attention", keys_in_place, "argument `k`, which is the cache: .* the scores can be scaled"),
    ("grouped_attention", queries_in_place, "argument `q`: work on a copy of it"),
    ("grouped_attention", by_library, "the answers are right, but PyTorch's own attention"),
    *(
        ("grouped_attention", lambda q, k, v, mask, low=low: filled(q, k, v, mask, low), "use minus infinity")
        for low in (-10, -50, -100, -1e4)
    ),
    (
        "grouped_attention",
        lambda q, k, v, mask: rows_of_a_group(q, k, v, mask, hide=lambda mask, G: mask.repeat_interleave(G, 0)),
        "repeat the whole mask, not each of its rows",
    ),
    ("grouped_attention", lambda q, k, v, mask: rows_of_a_group(q, k, v, mask, axis=-2), "runs over the queries"),
    ("grouped_attention", lambda q, k, v, mask: rows_of_a_group(q, k, v, mask, swap=False), r"`k\.mT` does"),
    (
        "grouped_attention",
        lambda q, k, v, mask: rows_of_a_group(q.transpose(1, 2).reshape(q.shape), k, v, mask),
        "your queries are in the wrong order",
    ),
    (
        "grouped_attention",
        lambda q, k, v, mask: rows_of_a_group(q, k, v, mask).transpose(1, 2).reshape(q.shape),
        "right before its last step",
    ),
    ("longest_text", lambda free, L, H, G, D, size: min(free // (2 * L * (H // G) * D * size), 32768), "as if a text"),
    (
        "longest_text",
        lambda free, L, H, G, D, size: max(1, free // (2 * L * (H // G) * D * size)),
        "where not one token fits: then the answer is 0",
    ),
    (
        "longest_text",
        lambda free, L, H, G, D, size: int(torch.tensor(float(free)) / (2 * L * (H // G) * D * size)),
        "division in float32",
    ),
    ("shared_heads", lambda H, K: [min(h // (H // K), 7) for h in range(H)], "32 heads over 16 no entry .* above 7"),
    ("shared_heads", lambda H, K: [h // (H // K) % 4 for h in range(H)], "8 heads over 8 your entries begin again"),
    ("token_bytes", lambda L, K, D, size: 2 * L * K * D * int(size), "half a byte, so do not round"),
]
