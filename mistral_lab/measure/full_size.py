"""The records of benchmarks/full_size.py: all layers of a model, from loading to decoding, one file per machine."""

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FORMAT = 1  # the version of the files' layout
Beside = tuple[dict[float, float], dict[float, float]]  # place to what was measured there, and to what was expected


@dataclass(frozen=True)
class FullSize:
    """What was recorded of one model on one machine.

    Args:
        device: the name of the machine's card or processor.
        model: a key of `PRESETS`.
        layers, of_layers: how many were measured, and how many the model has.
        measurements: by what was measured: "load", "context", "layers", "prefill" and "budget". Each is a dict from the
            setting ("warm" or "cold", tokens, or GiB) to the entry as benchmarks/full_size.py describes it. What was
            not measured is missing.
    """

    device: str
    model: str
    layers: int
    of_layers: int
    measurements: dict[str, dict[str | int, dict]]

    def of(self, what: str) -> dict[str | int, dict]:
        """Return the measurements of one kind by their settings, the smallest first; empty where there are none."""
        found = self.measurements.get(what, {})
        return dict(sorted(found.items(), key=lambda item: (isinstance(item[0], str), item[0])))

    def seconds(self, what: str) -> Beside:
        """Return the median seconds of a token (or of a prompt) by setting, and what it takes at least.

        A budget under which nothing ran is missing among the measured, and one without a floor among the others.
        """
        entries = self.of(what)
        return (
            {key: statistics.median(entry["seconds"]) for key, entry in entries.items() if entry.get("seconds")},
            {key: entry["at_least_s"] for key, entry in entries.items() if "at_least_s" in entry},
        )

    def memory_by_layer(self) -> Beside:
        """Return the bytes that the process held during its first token, by layer, and what was predicted.

        Place 0 is before the first layer, place n after the n-th, and the last place after the output layer. Held are
        mapped files and all other memory on a CPU, tensors on a card. The prediction is the runtime and the weights
        that were read until then. Both are empty where loading was not measured.
        """
        loads = self.of("load")
        if not (entry := loads.get("warm", loads.get("cold"))):
            return {}, {}
        held, predicted = entry["held_by_layer"], entry["predicted"]
        if "card_bytes" in held:  # everything lies there before the first token
            return dict(enumerate(held["card_bytes"])), dict.fromkeys(
                range(len(held["card_bytes"])), predicted["weights_bytes"]
            )
        measured = [one + other for one, other in zip(held["anonymous_bytes"], held["mapped_bytes"], strict=True)]
        expected = [predicted["runtime_bytes"] + size for size in predicted["touched_by_layer_bytes"]]
        return dict(enumerate(measured)), dict(enumerate(expected))

    def token_by_layer(self) -> Beside:
        """Return the seconds that one token takes until each place of `memory_by_layer`, and its floor."""
        entry = next(iter(self.of("layers").values()), {})
        return tuple(dict(enumerate(entry.get(key, []))) for key in ("seconds_by_layer", "at_least_by_layer_s"))


def read_full_size(folder: str | os.PathLike) -> list[FullSize]:
    """Read all records in a folder, machine by machine, models in the order of their names; none where it is missing.

    Args:
        folder: benchmarks/full_size of the repository.

    Raises:
        ValueError: a JSON file in it is no such record.
    """
    return [record for path in sorted(Path(folder).glob("*.json")) for record in _read(path)]


def side_by_side(found: Sequence[Beside]) -> tuple[list[float], list[list[float]], list[list[float]]]:
    """Bring what several models have at their own places to common ones, for a picture.

    Args:
        found: for each model what was measured and what was expected.

    Returns:
        all places in order; (models, places) measured, and (models, places) expected, NaN where there is nothing.

    >>> side_by_side([({8: 3.0, 16: 1.0}, {8: 2.0}), ({16: 5.0}, {16: 4.0})])
    ([8, 16], [[3.0, 1.0], [nan, 5.0]], [[2.0, nan], [nan, 4.0]])
    """
    places = sorted({place for both in found for one in both for place in one})
    measured, expected = (
        [[both[which].get(place, math.nan) for place in places] for both in found] for which in (0, 1)
    )
    return places, measured, expected


def _read(path: Path) -> list[FullSize]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format is {content['format']!r}: expected {FORMAT}")
        models: dict[tuple, dict] = {}
        for entry in content["measurements"]:
            key = (entry["model"], entry["layers"], entry["of_layers"])
            models.setdefault(key, {}).setdefault(entry["what"], {})[entry["setting"]] = entry
        return [FullSize(content["device"], *key, found) for key, found in sorted(models.items())]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path.name} is no record of benchmarks/full_size.py ({type(error).__name__}: {error}): write it again"
        ) from None
