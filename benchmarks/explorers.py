"""How long each explorer takes to draw again after a move: what a reader waits for at every step of a slider.

Every control is walked from its first value to its last and back, until it moved often enough; a move ends when the new
picture is encoded. The kernel's part is measured, not the browser's. The median should stay below 120 ms and no move
above 300 ms on two cores; figures are full of cycles, so the longest moves show whether garbage is collected in one.

Other programs slow a move down. The right half of each row is the time that this process had on the processor, which
they change less. On a busy machine run it a few times, where possible with priority, and keep the quietest.

    python benchmarks/explorers.py
    nice -n -5 python benchmarks/explorers.py --moves 300 --only ring_cache relay
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator

import ipywidgets as widgets
from explorer_makers import MAKERS, STORY

from mistral_lab.explorers import Explorer

TEXTS = tuple(STORY[:end] for end in range(4, len(STORY), 3))
WORST_MS = 300


def main() -> None:
    """Measure, print a line for each explorer, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=MAKERS, default=list(MAKERS), metavar="NAME")
    parser.add_argument("--moves", type=int, default=200, help="of each control")
    chosen = parser.parse_args()
    if chosen.moves < 1:
        parser.error(f"--moves is {chosen.moves}: expected at least 1")
    print(f"{'ms':>20}  median   95 %  worst  over {WORST_MS}  | on the processor: median   95 %  worst")
    rows = {}
    for name in chosen.only:
        rows[name] = measured(MAKERS[name](), chosen.moves)
        wall, own = rows[name]["wall_ms"], rows[name]["processor_ms"]
        counted = f"{rows[name]['slow']:4} of {rows[name]['moves']:4}"
        print(f"{name:>20}  {summary(wall)}  {counted}  |                   {summary(own)}", flush=True)
    print(json.dumps(rows))


def measured(explorer: Explorer, moves: int) -> dict:
    """Move every control so often; median, 95th percentile and worst in milliseconds, of wall and of processor time."""
    wall, own = [], []
    for control in explorer.controls.values():
        for value in itertools.islice(walk(control), moves):
            began, began_own = time.perf_counter(), time.process_time()
            control.value = value
            wall.append(1000 * (time.perf_counter() - began))
            own.append(1000 * (time.process_time() - began_own))
            if explorer.sentence.startswith("This cannot be drawn"):
                raise SystemExit(f"{control.description} at {value!r}: {explorer.sentence}")
    return {
        "moves": len(wall),
        "slow": sum(took > WORST_MS for took in wall),
        "wall_ms": spread(wall),
        "processor_ms": spread(own),
    }


def walk(control: widgets.DOMWidget) -> Iterator:
    """The values of a control, up and down without end, never one twice in a row."""
    while True:
        values = values_of(control)  # what it offers may change while others move
        place = values.index(control.value) if control.value in values else 0
        yield from values[place + 1 :]
        yield from values[-2::-1]
        yield from values[1 : place + 1]


def values_of(control: widgets.DOMWidget) -> list:
    """What a reader can set a control to; for a text, what she has after every third letter."""
    if isinstance(control, widgets.Checkbox):
        return [False, True]
    if isinstance(control, widgets.Textarea):
        return list(TEXTS)
    if hasattr(control, "options"):
        return list(control.options)
    return list(range(control.min, control.max + 1))


def spread(milliseconds: list[float]) -> list[float]:
    """Median, 95th percentile and worst."""
    ordered = sorted(milliseconds)
    return [round(x, 1) for x in (statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1])]


def summary(three: list[float]) -> str:
    """Median, 95th percentile and worst as they stand in the table."""
    return "  ".join(f"{number:5.0f}" for number in three)


if __name__ == "__main__":
    main()
