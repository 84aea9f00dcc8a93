"""The records of benchmarks/full_size.py: all layers of a model, from loading to decoding, one file per machine."""

import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

FORMAT = 1  # the version of the files' layout


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

    def medians_s(self, what: str) -> dict[str | int, float]:
        """Return the median seconds of a token (or of a prompt) for each setting; NaN where it did not run."""
        return {
            setting: statistics.median(entry["seconds"]) if entry.get("seconds") else float("nan")
            for setting, entry in self.of(what).items()
        }

    def at_least_s(self, what: str) -> dict[str | int, float]:
        """Return the floor of each setting in seconds, measured in the same run; NaN where there is none."""
        return {setting: entry.get("at_least_s", float("nan")) for setting, entry in self.of(what).items()}


def read_full_size(folder: str | os.PathLike) -> list[FullSize]:
    """Read all records in a folder, machine by machine, models in the order of their names; none where it is missing.

    Args:
        folder: benchmarks/full_size of the repository.

    Raises:
        ValueError: a JSON file in it is no such record.
    """
    return [record for path in sorted(Path(folder).glob("*.json")) for record in _read(path)]


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
