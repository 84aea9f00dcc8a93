"""Lesson 3: what a ring holds, and in which order."""

from collections.abc import Callable

import torch

from ..cache import KVRing
from .judging import Mistake, judge

GIVE = "with W = {window}, after {seen} tokens you give {got}: "
HOLD = "with W = {window}, after {seen} tokens your slots hold {got}: "


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
        cases=[(3, 4), (4, 4), (6, 4), (0, 4), (6, 5), (17, 5), (17, 4), (3, 1), (2, 7), (8, 4)],
        mistakes=[
            *(
                Mistake(numbers, GIVE + "those are numbers of slots; say which position each slot holds")
                for numbers in (
                    lambda seen, window: [p % window for p in range(seen)],
                    lambda seen, window: [p % window for p in range(max(0, seen - window), seen)],
                    lambda seen, window: [
                        p % window if p < seen else -1 for p in range(max(0, seen - window), max(seen, window))
                    ],
                    lambda seen, window: list(range(window)),
                )
            ),
            Mistake(
                lambda seen, window: answer(seen, window)[: min(seen, window)],
                GIVE + "an empty slot is listed too, as -1; there are W slots",
            ),
            *(
                Mistake(
                    newest_first,
                    GIVE + "the newest comes first here; go through the slots from 0 on",
                )
                for newest_first in (
                    lambda seen, window: [p if p >= 0 else -1 for p in range(seen - 1, seen - 1 - window, -1)],
                    lambda seen, window: list(range(seen - 1, max(-1, seen - 1 - window), -1)),
                )
            ),
            Mistake(
                lambda seen, window: list(range(max(0, seen - window), seen)),
                GIVE + "those are the positions in their own order, without empty slots; "
                "say for each slot, from 0 on, which position it holds, and -1 if none",
            ),
            Mistake(
                lambda seen, window: list(range(seen)),
                GIVE + "a ring has W slots, and keeps no more",
            ),
            Mistake(
                lambda seen, window: written(seen, window, slot=lambda p: (window - 1 - p) % window),
                HOLD + "they fill from the last to the first; position 0 goes to slot 0, position 1 to slot 1",
            ),
            Mistake(
                lambda seen, window: (
                    [p if p < seen else 0 for p in range(window)] if seen <= window else answer(seen, window)
                ),
                "an empty slot is -1 here: 0 is the first token's position",
            ),
            Mistake(
                lambda seen, window: written(seen, window, slot=lambda p: p if p < window else window - 1),
                HOLD + "the newest always takes the last slot; it takes that of the oldest",
            ),
            Mistake(
                lambda seen, window: written(seen, window, slot=lambda p: p if p < window else 0),
                HOLD + "slot 0 is overwritten again and again; the oldest is in another slot by then",
            ),
            Mistake(
                lambda seen, window: written(seen, window, slot=lambda p: (p + 1) % window),
                HOLD + "one slot too far; position 0 goes to slot 0",
            ),
            Mistake(
                lambda seen, window: written(seen + 1, window, slot=lambda p: p % window),
                HOLD + "one token too many; the first has position 0",
            ),
            *(
                Mistake(
                    from_one,
                    HOLD + "position 0 is missing; the first token has position 0",
                )
                for from_one in (
                    lambda seen, window: [p if p else -1 for p in answer(seen, window)],
                    lambda seen, window: [-1 if p < 0 else p + 1 for p in answer(seen, window)],
                    lambda seen, window: [-1 if p == 0 else p for p in answer(seen + 1, window)],
                )
            ),
            Mistake(
                lambda seen, window: written(max(0, seen - 1), window, slot=lambda p: p % window),
                HOLD + "the newest is missing",
            ),
            Mistake(
                lambda seen, window: written(seen, window, slot=lambda p: p % (window + 1), slots=window + 1),
                HOLD + "W slots are expected",
            ),
            Mistake(
                lambda seen, window: [p if p < seen else -1 for p in range(max(0, seen - window), max(seen, window))],
                HOLD + "that is the order of positions; a ring moves nothing, so a "
                "new token takes the slot of the oldest",
            ),
            Mistake(
                lambda seen, window: written(min(seen, window), window, slot=lambda p: p),
                HOLD + "a full ring goes on and overwrites its oldest token",
            ),
            Mistake(
                lambda seen, window: written(seen, window, slot=lambda p: p % window, empty=0),
                "an empty slot is -1 here: 0 is the first token's position",
            ),
        ],
        show=lambda slots: ", ".join(f"{position:g}" for position in slots),
        form="; an empty slot is -1",
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
        cases=[(3, 4), (4, 4), (6, 4), (0, 4), (6, 5), (17, 5), (17, 4), (7, 1), (2, 7), (8, 4)],
        mistakes=[
            Mistake(
                lambda seen, window: [p % window for p in range(seen)],
                GIVE + "a slot comes up twice; a ring holds only the last W tokens",
            ),
            Mistake(
                lambda seen, window: [(seen + i) % window for i in range(min(seen, window))],
                GIVE + "as long as slots are empty, the oldest token is in slot 0",
            ),
            Mistake(
                lambda seen, window: (
                    [(seen % window) + i for i in range(window)] if seen >= window else list(range(seen))
                ),
                GIVE + "slots are numbered from 0 to W - 1; after the last comes slot 0",
            ),
            Mistake(
                lambda seen, window: (
                    [(seen + 1 + i) % window for i in range(window)] if seen >= window else list(range(seen))
                ),
                GIVE + "you begin one slot too far; the oldest is in the slot that is written next",
            ),
            Mistake(
                lambda seen, window: (
                    [(seen - 1 + i) % window for i in range(window)] if seen >= window else list(range(seen))
                ),
                GIVE + "you begin with the newest; the oldest is one slot further",
            ),
            *(
                Mistake(
                    with_empty,
                    GIVE + "slots that were never written are listed too; leave them out",
                )
                for with_empty in (
                    lambda seen, window: [*answer(seen, window), *range(seen, window)],
                    lambda seen, window: [*answer(seen, window), *[-1] * (window - seen)],
                )
            ),
            Mistake(
                lambda seen, window: [answer(seen, window).index(slot) for slot in range(min(seen, window))],
                GIVE + "that says for each slot how many older ones there are; say which slot is oldest, then the next",
            ),
            Mistake(
                lambda seen, window: sorted(range(min(seen, window)), key=lambda slot: -slot),
                GIVE + "those are the slots from the last to the first; sort them by the positions that they hold",
            ),
            Mistake(
                lambda seen, window: [slot + 1 for slot in answer(seen, window)],
                GIVE + "slots are counted from 0",
            ),
            Mistake(
                lambda seen, window: answer(seen, window)[::-1],
                GIVE + "that is the newest first; begin with the oldest",
            ),
            Mistake(
                lambda seen, window: list(range(min(seen, window))),
                GIVE + "that is the order of the slots; the oldest token of a full ring "
                "is in the slot that is written next",
            ),
            Mistake(
                lambda seen, window: list(range(max(0, seen - window), seen)),
                GIVE + "those are positions; name the slots that hold them",
            ),
            Mistake(
                lambda seen, window: [(seen + i) % window for i in range(window)],
                GIVE + "some of these slots are still empty; leave those out",
            ),
            Mistake(
                lambda seen, window: [(seen - 1 + i) % window for i in range(min(seen, window))],
                GIVE + "you begin with the newest; the oldest is one slot further",
            ),
        ],
        show=lambda slots: f"[{', '.join(f'{slot:g}' for slot in slots)}]",
    )
