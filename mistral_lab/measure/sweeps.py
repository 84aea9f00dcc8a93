"""Many measurements of one model, each saved as soon as it is taken, so that an interrupted sweep can go on."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm.auto import tqdm

from ..files import write_json
from ..loading.loaded import Loaded
from .generation import Measurement, check_counts, dtype_name, measure_generation
from .machine import Machine, machines_here

FORMAT = 1  # the version of the file's layout
BAR_AFTER_S = 5  # a sweep that is done sooner shows no progress bar


@dataclass(frozen=True)
class Point:
    """One measurement of a sweep.

    Args:
        label: the caller's name for the model.
        weights: the bytes of its parameters by dtype, which tell two models with the same label apart.
        measurement: times, memory, setting and machine.
        here: whether it was taken on this machine, with these versions and this number of threads.
    """

    label: str
    weights: dict[str, int]
    measurement: Measurement
    here: bool

    def __str__(self) -> str:
        found = self.measurement
        place = "" if self.here else f", measured elsewhere: {found.machine}"
        return (
            f"{self.label}, {found.batch} x {found.prompt_tokens} tokens: first token {found.first_token_s * 1e3:.3g} "
            f"ms, then {found.per_token_s * 1e3:.3g} ms per token{place}"
        )


def sweep(
    loaded: Loaded,
    path: str | os.PathLike,
    *,
    label: str,
    prompt_tokens: Sequence[int],
    batches: Sequence[int] = (1,),
    new_tokens: int = 16,
    repeats: int = 3,
) -> list[Point]:
    """Measure a model at every prompt length and batch size, and save each point to a file as soon as it is measured.

    A point that the file has already, with the same label, weights, setting and machine, is not measured again: an
    interrupted sweep goes on where it stopped. Points of other models, settings and machines stay in the file. The file
    is replaced as a whole after each point, so an interruption never leaves half of one.

    Args:
        loaded: what `load()` returned; its `model` is used.
        path: the file. It need not exist; its folder must.
        label: what to call the model, for instance "tiny-mixtral, NF4".
        prompt_tokens: lengths of the prompt.
        batches: numbers of prompts at once.
        new_tokens: tokens generated for each prompt, at least 2.
        repeats: timed runs per point.

    Returns:
        all points of the file, also those of other machines (`here` is False for these).

    Raises:
        TypeError, ValueError: a count is below its smallest value, or no sweep wrote the file, which is left alone.
        OSError: the file cannot be written; this is found before the first measurement.
    """
    grid = list(dict.fromkeys((prompt, batch) for batch in batches for prompt in prompt_tokens))
    for prompt, batch in grid:
        check_counts(prompt, new_tokens, batch, repeats)
    path = Path(path)
    points = read_sweep(path) if path.exists() else []
    _write(path, points)
    weights = Counter()
    for parameter in loaded.model.parameters():
        weights[dtype_name(parameter.dtype)] += parameter.nbytes
    machine, dtype = Machine.here(loaded.model.device), dtype_name(loaded.model.dtype)

    def is_there(prompt: int, batch: int) -> bool:
        setting = (label, weights, prompt, batch, new_tokens, repeats, dtype, machine)
        return any(_setting(point) == setting for point in points)

    missing = [(prompt, batch) for prompt, batch in grid if not is_there(prompt, batch)]
    for prompt, batch in tqdm(missing, desc=label, unit="point", delay=BAR_AFTER_S, leave=False):
        measurement = measure_generation(
            loaded, prompt_tokens=prompt, new_tokens=new_tokens, batch=batch, repeats=repeats
        )
        points.append(Point(label, dict(weights), measurement, here=True))
        _write(path, points)
    return points


def read_sweep(path: str | os.PathLike) -> list[Point]:
    """Read the points of a sweep's file, in the order in which they were measured.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no sweep wrote this file.
    """
    text, here = Path(path).read_text(encoding="utf-8", errors="replace"), machines_here()
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"format is {content['format']!r}: expected {FORMAT}")
        points = []
        for entry in content["points"]:
            measurement = Measurement.from_json(json.dumps(entry["measurement"]))
            points.append(Point(entry["label"], entry["weights"], measurement, measurement.machine in here))
        return points
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no file of a sweep, and is left as it is: give another path ({type(error).__name__}: {error})"
        ) from None


def _setting(point: Point) -> tuple:
    """What makes two points the same measurement."""
    found = point.measurement
    numbers = (found.prompt_tokens, found.batch, found.new_tokens, len(found.samples_s))
    return (point.label, point.weights, *numbers, found.dtype, found.machine)


def _write(path: Path, points: Sequence[Point]) -> None:
    entries = [
        {"label": point.label, "weights": point.weights, "measurement": asdict(point.measurement)} for point in points
    ]
    write_json(path, {"format": FORMAT, "points": entries})
