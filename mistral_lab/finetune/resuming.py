"""Resuming a training run that was stopped: which checkpoint is whole, and whether it belongs to the same run."""

import hashlib
import json
from pathlib import Path

from ..files import read_json_if_whole, trainer_checkpoints, write_json

RUN = "run.json"


def newest_checkpoint(folder: Path, run: dict) -> str | None:
    """Find where a run stopped. Where there is no checkpoint yet, note in the folder which run it is.

    Args:
        folder: the folder of the checkpoints; it is created where it is missing.
        run: everything that makes two runs the same, in types that JSON has; one key is "steps".

    Returns:
        the path of the last whole checkpoint, or None where there is none.

    Raises:
        FileExistsError: the folder holds checkpoints of another run, or the run is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = trainer_checkpoints(folder)
    if checkpoints:
        _check_same(folder, run)
        if _step(checkpoints[-1]) >= run["steps"]:
            raise FileExistsError(f"this run is complete: load_adapter(..., {str(checkpoints[-1])!r}) reads its result")
        return str(checkpoints[-1])
    write_json(folder / RUN, run)
    return None


def fingerprint(rows: list[dict[str, list[int]]]) -> str:
    """A short text that differs between lists of examples, or between two orders of one list."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _check_same(folder: Path, run: dict) -> None:
    """Refuse checkpoints that another run wrote, and name the first difference."""
    before = read_json_if_whole(folder / RUN)
    if before is None:
        raise FileExistsError(f"{folder} holds checkpoints of an unknown run: give another folder")
    if differs := [name for name, value in run.items() if before.get(name) != value]:
        name = differs[0]
        raise FileExistsError(
            f"{folder} holds checkpoints of another run: {name} was {before.get(name)}, now it is {run[name]}; give "
            "another folder, or delete this one"
        )


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
