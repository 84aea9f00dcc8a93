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


def mask_by_loops(queries, keys, window):
    mask = torch.zeros(len(queries), len(keys), dtype=torch.bool)
    for row, i in enumerate(queries.tolist()):
        for column, j in enumerate(keys.tolist()):
            mask[row, column] = j <= i and j > i - window
    return mask


def deque_of_slots(seen, window):
    held = [-1] * window
    for position in range(seen):
        held[position % window] = position
    return held


def slots_by_rule(seen, window):
    newest = np.arange(window) + (seen - 1 - np.arange(window)) // window * window
    return np.where(newest < 0, -1, newest)


def order_by_sorting(seen, window):
    held = deque_of_slots(seen, window)
    return sorted((slot for slot in range(window) if held[slot] >= 0), key=lambda slot: held[slot])


def attention_of(q, k, v, mask):
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf")).softmax(-1) @ v


def chunk_by_chunk(q, k, v, window, chunk, weigh=None, back=None, scale=None):
    outputs = []
    for start in range(0, len(q), chunk):
        first = max(0, start - (window - 1 if back is None else back))
        i = torch.arange(start, min(start + chunk, len(q)))
        j = torch.arange(first, min(start + chunk, len(q)))
        mask = (i[:, None] >= j) & (i[:, None] - j < window)
        scores = q[i] @ k[j].T / (scale or q.shape[1] ** 0.5)
        weights = weigh(scores, mask) if weigh else scores.masked_fill(~mask, -torch.inf).softmax(-1)
        outputs.append(weights @ v[j])
    return torch.cat(outputs)


def query_by_query(q, k, v, window, chunk):
    out = torch.zeros_like(q)
    for start in range(0, len(q), chunk):
        for t in range(start, min(start + chunk, len(q))):
            seen = slice(max(0, t - window + 1), t + 1)
            out[t] = (k[seen] @ q[t] / q.shape[1] ** 0.5).softmax(0) @ v[seen]
    return out


def kept_and_new(q, k, v, window, chunk):
    kept_k, kept_v, out = k[:0], v[:0], []
    for queries, keys, values in zip(q.split(chunk), k.split(chunk), v.split(chunk), strict=True):
        kept_k, kept_v = torch.cat([kept_k, keys]), torch.cat([kept_v, values])
        T, S = len(queries), len(kept_k)
        far = torch.arange(S - T, S)[:, None] - torch.arange(S)
        out.append(attention_of(queries, kept_k, kept_v, (far >= 0) & (far < window)))
        kept_k, kept_v = kept_k[max(0, S - window + 1) :], kept_v[max(0, S - window + 1) :]
    return torch.cat(out)


def last_chunk_left(fresh):
    """Whole chunks alone, in a tensor that `fresh` makes."""

    def prefill(q, k, v, window, chunk):
        out = fresh(v)
        whole = len(q) // chunk * chunk
        if whole:
            out[:whole] = chunk_by_chunk(q[:whole], k[:whole], v[:whole], window, chunk)
        return out

    return prefill


def numpy_in_chunks(q, k, v, window, chunk):
    q, k, v = map(np.asarray, (q, k, v))
    out = np.zeros(v.shape)
    for start in range(0, len(q), chunk):
        end, first = min(start + chunk, len(q)), max(0, start - window + 1)
        back = np.arange(start, end)[:, None] - np.arange(first, end)
        scores = np.where((back >= 0) & (back < window), q[start:end] @ k[first:end].T / q.shape[1] ** 0.5, -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out[start:end] = weights / weights.sum(1, keepdims=True) @ v[first:end]
    return out


def all_at_once(q, k, v, window, chunk):
    i = torch.arange(len(q))
    return attention_of(q, k, v, mask_by_loops(i, i, window))


def keys_from(first):
    """Right values in chunks, over more keys than the queries of a chunk see: all from `first(start, W, chunk)` on."""

    def prefill(q, k, v, window, chunk):
        out = []
        for rows in torch.arange(len(q)).split(chunk):
            begin = max(0, first(int(rows[0]), window, chunk))
            columns = torch.arange(begin, max(begin, int(rows[-1])) + 1)
            scores = (q[rows] @ k[columns].T / q.shape[1] ** 0.5).masked_fill(
                ~mask_by_loops(rows, columns, window), float("-inf")
            )
            out.append(scores.softmax(-1) @ v[columns])
        return torch.cat(out)

    return prefill


def up_to_the_end(q, k, v, window, chunk):
    out = []
    for rows in torch.arange(len(q)).split(chunk):
        columns = torch.arange(max(0, int(rows[0]) - window + 1), len(q))
        scores = q[rows] @ k[columns].T / q.shape[1] ** 0.5
        hidden = ~mask_by_loops(rows, columns, window)
        out.append(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v[columns])
    return torch.cat(out)


RIGHT = [
    ("window_mask", lambda queries, keys, window: np.array([[0 <= i - j < window for j in keys] for i in queries])),
    ("ring_slots", slots),
    ("prefill_in_chunks", in_chunks),
    ("prefill_in_chunks", numpy_in_chunks),
    ("window_mask", mask_by_loops),
    ("window_mask", lambda i, j, W: (i[:, None] >= j[None]) & (i[:, None] < j[None] + W)),
    ("window_mask", lambda i, j, W: mask_by_loops(i, j, W).tolist()),
    ("window_mask", lambda i, j, W: torch.logical_and(torch.sub(i[:, None], j) >= 0, i[:, None] - j <= W - 1)),
    ("ring_slots", deque_of_slots),
    ("ring_slots", slots_by_rule),
    ("ring_slots", lambda seen, window: torch.tensor(deque_of_slots(seen, window))),
    ("ring_slots", lambda seen, window: tuple(map(float, deque_of_slots(seen, window)))),
    ("ring_order", order_by_sorting),
    ("ring_order", lambda seen, W: [p % W for p in range(max(0, seen - W), seen)]),
    ("ring_order", lambda seen, W: [*range(seen % W, W), *range(seen % W)] if seen >= W else list(range(seen))),
    ("ring_order", lambda seen, W: torch.arange(max(0, seen - W), seen) % W),
    ("ring_order", lambda seen, W: np.roll(np.arange(W), -(seen % W)) if seen > W else range(seen)),
    ("prefill_in_chunks", chunk_by_chunk),
    ("prefill_in_chunks", kept_and_new),
    ("prefill_in_chunks", lambda q, k, v, W, C: chunk_by_chunk(q.double(), k.double(), v.double(), W, C)),
    ("prefill_in_chunks", lambda q, k, v, W, C: chunk_by_chunk(q, k, v, W, min(C, 2))),  # it touches no key too many
]


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


def from_one(seen, window, place):
    held = [-1] * window
    for p in range(1, seen + 1):
        held[place(p) % window] = p
    return held


WRONG = [
    ("window_mask", lambda i, j, W: (i[:, None] >= j) & (i[:, None] - j <= W), "shows 5 keys where W = 4: is it `<=`"),
    ("window_mask", lambda i, j, W: (i[:, None] > j) & (i[:, None] - j < W), "shows 3 keys.*token itself is missing"),
    ("window_mask", lambda i, j, W: (i[:, None] - j).abs() < W, "keys that come after them"),
    ("window_mask", lambda i, j, W: (i >= j[:, None]) & (i - j[:, None] < W), "rows are keys"),
    ("window_mask", lambda i, j, W: i[:, None] >= j, "no far end"),
    ("window_mask", lambda i, j, W: masks.sliding_window_mask(len(j), W)[: len(i)], "you count from the first query"),
    ("ring_slots", lambda seen, W: ring_with(seen, W, lambda p: (p + 1) % W), "one slot too far"),
    (
        "ring_slots",
        lambda seen, W: ring_with(seen, W, lambda p: p % (W + 1), W + 1),
        "with W = 4, .*W slots are expected",
    ),
    ("ring_slots", lambda seen, W: ring_with(seen + 1, W, lambda p: p % W), "one token too many"),
    ("ring_slots", lambda seen, W: [*range(max(0, seen - W), seen), *[-1] * (W - seen)], "order of positions"),
    ("ring_slots", lambda seen, W: [p if p >= 0 else None for p in slots(seen, W)], "NoneType.*an empty slot is -1"),
    ("prefill_in_chunks", query_by_query, "a chunk of 11 queries takes 22 products, and 11 chunks of one take 22"),
    ("prefill_in_chunks", lambda q, k, v, W, C: chunk_by_chunk(q, k, v, W, 1), "belong in one product"),
    ("prefill_in_chunks", lambda q, k, v, W, C: chunk_by_chunk(q, k, v, W, C, back=C), "keep the previous chunk"),
    *(
        ("prefill_in_chunks", function, "you hide keys after the softmax")
        for function in (
            lambda q, k, v, W, C: chunk_by_chunk(q, k, v, W, C, lambda s, m: s.softmax(-1).where(m, -torch.inf)),
            lambda q, k, v, W, C: chunk_by_chunk(q, k, v, W, C, lambda s, m: s.softmax(-1) * m, back=len(q)),
            lambda q, k, v, W, C: (
                ((q @ k.T / q.shape[1] ** 0.5).softmax(-1) * masks.sliding_window_mask(len(q), W)) @ v
            ),
        )
    ),
    ("prefill_in_chunks", without_mask, "read without a mask"),
    ("prefill_in_chunks", blind_chunks, "see only themselves"),
    ("prefill_in_chunks", whole_prompt, "one key too many"),
    (
        "prefill_in_chunks",
        lambda q, k, v, window, chunk: in_chunks(q, k, v, len(q), chunk),
        "see everything before them",
    ),
    ("window_mask", lambda i, j, W: (i[:, None] >= j) & (i[:, None] - j < W - 1), "shows 3 keys.*one too few"),
    ("window_mask", lambda i, j, W: (i[:, None] - j).abs() <= W // 2, "to both sides"),
    ("window_mask", lambda i, j, W: ~mask_by_loops(i, j, W), "mark what is hidden"),
    ("window_mask", lambda i, j, W: (i[:, None] >= j) & (i[:, None] // W == j // W), "stand still, in blocks"),
    (
        "ring_slots",
        lambda seen, W: [p % W for p in range(seen)],
        "with W = 4, after 3 tokens you give 0, 1, 2: those are numbers",
    ),
    ("ring_slots", lambda seen, W: [p % W for p in range(max(0, seen - W), seen)], "those are numbers of slots"),
    ("ring_slots", lambda seen, W: [max(0, p) for p in slots(seen, W)], "an empty slot is -1"),
    (
        "ring_slots",
        lambda seen, W: ring_with(min(seen, W), W, lambda p: p),
        "with W = 4, after 6 tokens .* a full ring goes on",
    ),
    ("ring_slots", lambda seen, W: [p for p in slots(seen, W) if p >= 0], "an empty slot is listed too"),
    ("ring_order", lambda seen, W: list(range(min(seen, W))), "order of the slots"),
    ("ring_order", lambda seen, W: order_by_sorting(seen, W)[::-1], "newest first"),
    ("ring_order", lambda seen, W: list(range(max(0, seen - W), seen)), "those are positions"),
    ("ring_order", lambda seen, W: [(seen + i) % W for i in range(W)], "still empty"),
    ("ring_order", lambda seen, W: [(seen - 1 + i) % W for i in range(min(seen, W))], "begin with the newest"),
    ("ring_order", lambda seen, W: [p % W for p in range(seen)], "comes up twice"),
    ("ring_order", lambda seen, W: [1 + s for s in order_by_sorting(seen, W)], "counted from 0"),
    ("ring_order", lambda seen, W: [(seen + i) % W for i in range(min(seen, W))], "oldest token is in slot 0"),
    ("prefill_in_chunks", last_chunk_left(torch.zeros_like), "last chunk of your answer is missing"),
    (
        "prefill_in_chunks",
        lambda q, k, v, W, C: chunk_by_chunk(q, k, v, W, C)[: len(q) // C * C],
        "last chunk of your answer is missing",
    ),
    (
        "prefill_in_chunks",
        lambda q, k, v, W, C: chunk_by_chunk(q, k, v, W, C, lambda s, m: s.masked_fill(~m, -torch.inf).softmax(0)),
        "softmax runs over the queries",
    ),
    (
        "prefill_in_chunks",
        lambda q, k, v, W, C: chunk_by_chunk(q, k, v, W, C, lambda s, m: s.softmax(-1) * m),
        "hide keys after the softmax",
    ),
    ("prefill_in_chunks", lambda q, k, v, W, C: chunk_by_chunk(q, k, v, W, C, scale=1.0), "square root of D"),
    ("prefill_in_chunks", lambda q, k, v, W, C: chunk_by_chunk(q, k, v, W, C, scale=2.0), "not always 4"),
    ("prefill_in_chunks", lambda q, k, v, W, C: chunk_by_chunk(q, k, v, W, C, back=max(0, W - 2)), "misses one key"),
    ("prefill_in_chunks", all_at_once, "chunk of queries 0 to 3 touches 11 keys where 4 are seen"),
    ("prefill_in_chunks", lambda q, k, v, W, C: chunk_by_chunk(q, k, v, W, len(q)), "touches 11 keys where 4 are seen"),
    ("prefill_in_chunks", keys_from(lambda start, W, chunk: 0), "queries 4 to 7 touches 8 keys where 6 are seen"),
    ("prefill_in_chunks", keys_from(lambda start, W, chunk: start - W), "queries 4 to 7 touches 7 keys where 6 are"),
    (
        "prefill_in_chunks",
        keys_from(lambda start, W, chunk: start - max(W - 1, chunk)),
        "queries 4 to 7 touches 8 keys where 6",
    ),
    ("prefill_in_chunks", up_to_the_end, "queries 0 to 3 touches 11 keys where 4 are seen"),
    (
        "prefill_in_chunks",
        lambda q, k, v, W, C: torch.cat(
            [
                attention_of(q[i], k[j], v[j], mask_by_loops(i, j, W + 1))
                for i in torch.arange(len(q)).split(C)
                for j in [torch.arange(max(0, int(i[0]) - W + 1), int(i[-1]) + 1)]
            ]
        ),
        "your mask shows one key too many where W = 3",
    ),
    ("window_mask", lambda i, j, W: (i - j >= 0) & (i - j < W), "your mask has one axis"),
    ("window_mask", lambda i, j, W: (i >= j) & (j > i - W), "your mask has one axis"),
    ("window_mask", lambda i, j, W: (i > j) & (i - j < W), "your mask has one axis"),
    ("ring_order", lambda seen, W: sorted(range(W), key=lambda s: slots(seen, W)[s]), "still empty"),
    ("ring_order", lambda seen, W: [*order_by_sorting(seen, W), *range(min(seen, W), W)], "were never written"),
    ("ring_order", lambda seen, W: [*order_by_sorting(seen, W), *[-1] * (W - seen)], "were never written"),
    ("ring_order", lambda seen, W: np.argsort(order_by_sorting(seen, W)), "for each slot how many older"),
    ("prefill_in_chunks", last_chunk_left(torch.empty_like), "last chunk of your answer is missing"),
    ("ring_slots", lambda seen, W: from_one(seen, W, lambda p: p), "the first token has position 0"),
    ("ring_slots", lambda seen, W: from_one(seen, W, lambda p: p - 1), "the first token has position 0"),
]
