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
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files

import ipywidgets as widgets
import torch

from mistral_lab import experiments, explorers, load

STORY = "Once there was a baker called Nora, and she lived near the river."
TEXTS = tuple(STORY[:end] for end in range(4, len(STORY), 3))
WORST_MS = 300

loaded = cache(load)


def next_token() -> explorers.Explorer:
    """The explorer of sampling, after a short text."""
    return explorers.next_token(by_depth()[0][-1][-1], loaded("tiny-mistral").tokenizer)


def guesses_by_layer() -> explorers.Explorer:
    """The logit lens, on a short text."""
    return explorers.guesses_by_layer(*by_depth(), loaded("tiny-mistral").tokenizer)


def routed_text() -> explorers.Explorer:
    """The explorer of routing."""
    return explorers.routed_text(loaded("tiny-mixtral").model, loaded("tiny-mixtral").tokenizer)


def adapter_rank() -> explorers.Explorer:
    """The explorer of adapters, with the record that lesson 8 reads."""
    record = files("mistral_lab") / "bundled" / "traces" / "ranks.json"
    return explorers.adapter_rank(json.loads(record.read_text(encoding="utf-8")))


def token_loop() -> explorers.Explorer:
    """The loop of lesson 1, with the prompt that it has there."""
    return explorers.token_loop(experiments.follow_tokens(loaded("tiny-mistral"), "My favourite condiment is"))


MAKERS: dict[str, Callable[[], explorers.Explorer]] = {
    "token_loop": token_loop,
    "next_token": next_token,
    "guesses_by_layer": guesses_by_layer,
    "head_groups": explorers.head_groups,
    "kept_squares": explorers.kept_squares,
    "relay": explorers.relay,
    "ring_cache": explorers.ring_cache,
    "routed_text": routed_text,
    "four_bits": explorers.four_bits,
    "memory_plan": explorers.memory_plan,
    "adapter_rank": adapter_rank,
    "split_model": explorers.split_model,
}


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


def measured(explorer: explorers.Explorer, moves: int) -> dict:
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


@cache
def by_depth() -> tuple[list[torch.Tensor], list[int]]:
    """The logits read after each depth of the dense model, and the tokens that they were read from."""
    model, tokens = loaded("tiny-mistral").model, loaded("tiny-mistral").tokenizer(STORY)["input_ids"]
    with torch.no_grad():
        out = model(torch.tensor([tokens]), output_hidden_states=True)
        early = [model.lm_head(model.model.norm(state))[0] for state in out.hidden_states[:-1]]
    return [*early, out.logits[0]], tokens


if __name__ == "__main__":
    main()
