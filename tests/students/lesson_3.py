"""Lesson 3: the window's mask, the ring, and a prompt in chunks."""

import numpy as np
import reference
import torch

from mistral_lab import masks


def in_chunks(q, k, v, window, chunk):
    q, k, v = (np.asarray(x)[None, :, None] for x in (q, k, v))
    return reference.attention(q, k, v, reference.window_mask(q.shape[1], window))[0][0, :, 0]


def slots(seen, window):
    return [max([p for p in range(seen) if p % window == slot], default=-1) for slot in range(window)]


RIGHT = [
    ("window_mask", lambda queries, keys, window: np.array([[0 <= i - j < window for j in keys] for i in queries])),
    ("ring_slots", slots),
    ("prefill_in_chunks", in_chunks),
]


def attention_of(q, k, v, mask, scale=None, axis=-1, repeat=lambda x, G: x.repeat_interleave(G, dim=1)):
    k, v = (repeat(x, q.shape[1] // k.shape[1]) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / (scale or q.shape[-1] ** 0.5)
    return scores.masked_fill(~mask, float("-inf")).softmax(axis) @ v


def without_mask(q, k, v, window, chunk):
    out = []
    for start in range(0, len(q), chunk):
        keys = slice(max(0, start - window + 1), start + chunk)
        out.append((q[start : start + chunk] @ k[keys].T / q.shape[1] ** 0.5).softmax(-1) @ v[keys])
    return torch.cat(out)


def blind_chunks(q, k, v, window, chunk):
    parts = zip(q.split(chunk), k.split(chunk), v.split(chunk), strict=True)
    return torch.cat(
        [
            attention_of(*(x[None, None] for x in part), masks.sliding_window_mask(len(part[0]), window))[0, 0]
            for part in parts
        ]
    )


def whole_prompt(q, k, v, window, chunk):
    return attention_of(q[None, None], k[None, None], v[None, None], masks.sliding_window_mask(len(q), window + 1))[
        0, 0
    ]


def ring_with(seen, window, place, size=None):
    held = [-1] * (size or window)
    for p in range(seen):
        held[place(p)] = p
    return held


WRONG = [
    ("window_mask", lambda i, j, W: (i[:, None] >= j) & (i[:, None] - j <= W), "shows 5 keys where W = 4: is it `<=`"),
    ("window_mask", lambda i, j, W: (i[:, None] > j) & (i[:, None] - j < W), "shows 3 keys.*token itself is missing"),
    ("window_mask", lambda i, j, W: (i[:, None] - j).abs() < W, "keys that come after them"),
    ("window_mask", lambda i, j, W: (i >= j[:, None]) & (i - j[:, None] < W), "rows are keys"),
    ("window_mask", lambda i, j, W: i[:, None] >= j, "no far end"),
    ("window_mask", lambda i, j, W: masks.sliding_window_mask(len(j), W)[: len(i)], "you count from the first query"),
    ("ring_slots", lambda seen, W: ring_with(seen, W, lambda p: (p + 1) % W), "one slot too far"),
    ("ring_slots", lambda seen, W: ring_with(seen, W, lambda p: p % (W + 1), W + 1), "W = 4 slots are expected"),
    ("ring_slots", lambda seen, W: ring_with(seen + 1, W, lambda p: p % W), "one token too many"),
    ("ring_slots", lambda seen, W: [*range(max(0, seen - W), seen), *[-1] * (W - seen)], "order of positions"),
    ("prefill_in_chunks", without_mask, "read without a mask"),
    ("prefill_in_chunks", blind_chunks, "see only themselves"),
    ("prefill_in_chunks", whole_prompt, "one key too many"),
    (
        "prefill_in_chunks",
        lambda q, k, v, window, chunk: in_chunks(q, k, v, len(q), chunk),
        "see everything before them",
    ),
]
