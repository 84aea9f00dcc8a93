"""Lesson 3: what a window shows, what a ring holds and in which order, and a prompt read in chunks."""

import math
from collections.abc import Callable

import torch

from ..cache import KVRing
from ..masks import position_mask
from .judging import Mistake, judge


def window_mask(function: Callable) -> Callable:
    """Check `function(queries (T,), keys (S,), window) -> (T, S) bool`, True where a query sees a key, by position.

    >>> my_answer = window_mask(lambda queries, keys, window: NotImplemented)
    window_mask: not tried yet; the lesson goes on with its own
    """

    def answer(queries, keys, window):
        return position_mask(queries, keys, window=window)

    def visible(rule, by_index=False):
        def wrong(queries, keys, window):
            i, j = (torch.arange(len(x)) for x in (queries, keys)) if by_index else (queries, keys)
            return rule(i[:, None] - j, window)

        return wrong

    def transposed(queries, keys, window):
        return position_mask(queries, keys, window=window).T

    positions = torch.arange(8)
    return judge(
        "window_mask",
        function,
        answer=answer,
        cases=[(positions, positions, 4), (positions, positions, 3), (positions[5:], positions, 4)]
        + [(positions[5:], positions[2:], 4), (positions, positions.flip(0), 4)],
        mistakes=[
            Mistake(
                visible(lambda back, window: (back >= 0) & (back <= window)),
                "your window shows {got} keys where W = {window}: is it `<=`?",
            ),
            Mistake(
                visible(lambda back, window: (back > 0) & (back <= window)),
                "your queries do not see themselves: a window counts the token itself",
            ),
            Mistake(
                visible(lambda back, window: (back > 0) & (back < window)),
                "your window shows {got} keys where W = {window}: the token itself is missing; is it `>`?",
            ),
            Mistake(
                visible(lambda back, window: back.abs() < window),
                "your queries see keys that come after them: a window looks back only",
            ),
            Mistake(
                visible(lambda back, window: (back <= 0) & (back > -window)),
                "your queries see keys that come after them: a window looks back only",
            ),
            Mistake(
                visible(lambda back, window: back < window),
                "your queries see keys that come after them: a window looks back only",
            ),
            Mistake(
                visible(lambda back, window: back >= 0),
                "your last query shows {got} keys where W = {window}: the window has no far end",
            ),
            Mistake(
                visible(lambda back, window: (back >= 0) & (back < window), by_index=True),
                "you count from the first query and the first key: use their positions, because the first query may "
                "be at position 5",
            ),
            Mistake(transposed, "your rows are keys and your columns queries: it is the other way round"),
            Mistake(
                lambda queries, keys, window: ~position_mask(queries, keys, window=window),
                "you mark what is hidden: True means that the query sees the key",
            ),
        ],
        show=lambda mask: str(int(mask[-1].sum())),
    )


def ring_slots(function: Callable) -> Callable:
    """Check `function(seen, window)`: the position that each of W slots holds after `seen` tokens, -1 if empty.

    >>> my_answer = ring_slots(lambda seen, window: NotImplemented)
    ring_slots: not tried yet; the lesson goes on with its own
    """

    def answer(seen, window):
        ring, tokens = KVRing(window, n_kv_heads=1, head_dim=1), torch.zeros(1, max(seen, 1), 1, 1)
        if seen:
            ring.append(tokens, tokens)
        return ring.slot_positions().tolist()

    def written(seen, window, *, slot, slots=None, empty=-1):
        held = [empty] * (slots or window)
        for position in range(seen):
            held[slot(position)] = position
        return held

    return judge(
        "ring_slots",
        function,
        answer=answer,
        cases=[(3, 4), (4, 4), (6, 4), (0, 4), (6, 5), (17, 5), (17, 4)],
        mistakes=[
            Mistake(
                lambda seen, window: written(seen, window, slot=lambda p: (p + 1) % window),
                "after {seen} tokens your slots hold {got}: one slot too far; position 0 goes to slot 0",
            ),
            Mistake(
                lambda seen, window: written(seen + 1, window, slot=lambda p: p % window),
                "after {seen} tokens your slots hold {got}: one token too many; the first has position 0",
            ),
            Mistake(
                lambda seen, window: written(max(0, seen - 1), window, slot=lambda p: p % window),
                "after {seen} tokens your slots hold {got}: the newest is missing",
            ),
            Mistake(
                lambda seen, window: written(seen, window, slot=lambda p: p % (window + 1), slots=window + 1),
                "your ring has {got}: W = {window} slots are expected",
            ),
            Mistake(
                lambda seen, window: [p if p < seen else -1 for p in range(max(0, seen - window), max(seen, window))],
                "after {seen} tokens your slots hold {got}: that is the order of positions; a ring moves nothing, so a "
                "new token takes the slot of the oldest",
            ),
            Mistake(
                lambda seen, window: written(min(seen, window), window, slot=lambda p: p),
                "after {seen} tokens your slots hold {got}: a full ring goes on and overwrites its oldest token",
            ),
            Mistake(
                lambda seen, window: written(seen, window, slot=lambda p: p % window, empty=0),
                "an empty slot is -1 here: 0 is the first token's position",
            ),
        ],
        show=lambda slots: ", ".join(f"{position:g}" for position in slots),
    )


def ring_order(function: Callable) -> Callable:
    """Check `function(seen, window)`: the slots that hold a token, that of the oldest position first.

    >>> my_answer = ring_order(lambda seen, window: NotImplemented)
    ring_order: not tried yet; the lesson goes on with its own
    """

    def answer(seen, window):
        return [position % window for position in range(max(0, seen - window), seen)]

    return judge(
        "ring_order",
        function,
        answer=answer,
        cases=[(3, 4), (4, 4), (6, 4), (0, 4), (6, 5), (17, 5), (17, 4), (7, 1)],
        mistakes=[
            Mistake(
                lambda seen, window: answer(seen, window)[::-1],
                "you give {got}: that is the newest first; begin with the oldest",
            ),
            Mistake(
                lambda seen, window: list(range(min(seen, window))),
                "after {seen} tokens you give {got}: that is the order of the slots; the oldest token of a full ring "
                "is in the slot that is written next",
            ),
            Mistake(
                lambda seen, window: list(range(max(0, seen - window), seen)),
                "after {seen} tokens you give {got}: those are positions; name the slots that hold them",
            ),
            Mistake(
                lambda seen, window: [(seen + i) % window for i in range(window)],
                "after {seen} tokens you give {got}: some of these slots are still empty; leave those out",
            ),
            Mistake(
                lambda seen, window: [(seen - 1 + i) % window for i in range(min(seen, window))],
                "after {seen} tokens you give {got}: you begin with the newest; the oldest is one slot further",
            ),
        ],
        show=lambda slots: f"[{', '.join(f'{slot:g}' for slot in slots)}]",
    )


def prefill_in_chunks(function: Callable) -> Callable:
    """Check `function(q, k, v (T, D), window, chunk) -> (T, D)`: windowed attention, `chunk` queries at a time.

    >>> my_answer = prefill_in_chunks(lambda q, k, v, window, chunk: NotImplemented)
    prefill_in_chunks: not tried yet; the lesson goes on with its own
    """

    def chunks(q, k, v, window, chunk, *, before=None, visible=None, root=None):
        out = torch.zeros_like(v)
        for start in range(0, len(q), chunk):
            end = min(start + chunk, len(q))
            rows = torch.arange(start, end, device=q.device)
            columns = torch.arange(max(0, start - (window - 1 if before is None else before)), end, device=q.device)
            scores = q[rows] @ k[columns].T / math.sqrt(root or q.shape[1])
            seen = position_mask(rows, columns, window=window) if visible is None else visible(rows, columns)
            out[rows] = scores.masked_fill(~seen, -math.inf).softmax(1) @ v[columns]
        return out

    def everything(rows, columns):
        return torch.ones(len(rows), len(columns), dtype=torch.bool)

    def from_zero(rows, columns):
        return position_mask(torch.arange(len(rows)), torch.arange(len(columns)), window=len(columns))

    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 11, 4, generator=generator, dtype=torch.float64)
    return judge(
        "prefill_in_chunks",
        function,
        answer=lambda q, k, v, window, chunk: chunks(q, k, v, window, chunk),
        cases=[(q, k, v, 3, 11), (q, k, v, 3, 4), (q, k, v, 5, 4), (q, k, v, 5, 2), (q, k, v, 20, 4)]
        + [(q, k, v, 3, 1), (q.flip(0), k, v, 3, 4), (q, k.flip(0), v, 3, 4), (q, k, v.flip(0), 3, 4)],
        mistakes=[
            Mistake(
                lambda q, k, v, window, chunk: chunks(q, k, v, window, chunk, visible=everything),
                "your chunk is read without a mask: inside it a query sees keys that come after it",
            ),
            Mistake(
                lambda q, k, v, window, chunk: chunks(
                    q, k, v, window, chunk, visible=lambda i, j: position_mask(i, j, window=len(q))
                ),
                "in a chunk of {chunk} later queries see more than W = {window} keys: the mask needs the window too",
            ),
            Mistake(
                lambda q, k, v, window, chunk: chunks(q, k, v, window, chunk, before=0),
                "your chunks see only themselves: the first query of a chunk also sees the W - 1 keys before it",
            ),
            Mistake(
                lambda q, k, v, window, chunk: chunks(q, k, v, window + 1, chunk),
                "your queries see one key too many: W = {window} counts the token itself",
            ),
            Mistake(
                lambda q, k, v, window, chunk: chunks(q, k, v, window, chunk, before=window - 2),
                "the first query of your chunks misses one key: keep the W - 1 before it",
            ),
            Mistake(
                lambda q, k, v, window, chunk: chunks(q, k, v, window, chunk, visible=from_zero),
                "your mask counts from the first query of the chunk: it needs positions in the whole text",
            ),
            Mistake(
                lambda q, k, v, window, chunk: chunks(q, k, v, window, chunk, root=1),
                "your weights are too extreme: are the scores divided by the square root of D?",
            ),
        ],
    )
