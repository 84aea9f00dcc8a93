"""Lesson 2: shared heads, the cache in bytes, and grouped attention."""

import numpy as np
import reference
import torch


def grouped(q, k, v, mask):
    q, k, v = (np.asarray(x).swapaxes(1, 2) for x in (q, k, v))
    return reference.attention(q, k, v, np.asarray(mask))[0].swapaxes(1, 2)


RIGHT = [
    ("shared_heads", lambda n_heads, n_kv_heads: [int(h * n_kv_heads / n_heads) for h in range(n_heads)]),
    (
        "longest_text",
        lambda free_bytes, n_layers, n_heads, group_size, head_dim, bytes_per_value: (
            free_bytes * group_size // (2 * n_layers * n_heads * head_dim * bytes_per_value)
        ),
    ),
    ("grouped_attention", grouped),
]


def attention_of(q, k, v, mask, scale=None, axis=-1, repeat=lambda x, G: x.repeat_interleave(G, dim=1)):
    k, v = (repeat(x, q.shape[1] // k.shape[1]) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / (scale or q.shape[-1] ** 0.5)
    return scores.masked_fill(~mask, float("-inf")).softmax(axis) @ v


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
]
