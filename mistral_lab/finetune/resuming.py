"""Going on with a training run that was stopped: which checkpoint is whole, and whether it is of the same run."""

import hashlib
import json
import re
from pathlib import Path

from ..files import write_whole

RUN = "run.json"
STATE = "trainer_state.json"  # what the Trainer writes last into a checkpoint


def newest_checkpoint(folder: Path, run: dict) -> str | None:
    """Find where a run stopped; the first time, note in the folder which run it is.

    Args:
        folder: of the checkpoints; made where it is missing.
        run: what makes two runs the same, in the types of JSON; "steps" among it.

    Returns:
        the path of the last whole checkpoint; None where there is none.

    Raises:
        FileExistsError: the folder holds checkpoints of another run, or the run is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = sorted((path for path in folder.glob("checkpoint-*") if _whole(path)), key=_step)
    if checkpoints:
        _check_same(folder, run)
        if _step(checkpoints[-1]) >= run["steps"]:
            raise FileExistsError(f"this run is complete: load_adapter(..., {str(checkpoints[-1])!r}) reads its result")
        return str(checkpoints[-1])
    write_whole(folder / RUN, json.dumps(run, indent=1) + "\n")
    return None


def fingerprint(rows: list) -> str:
    """Tell lists of examples apart, in the order in which they are given."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _check_same(folder: Path, run: dict) -> None:
    try:
        before = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FileExistsError(f"{folder} holds checkpoints of an unknown run: give another folder") from None
    if differs := [name for name, value in run.items() if before.get(name) != value]:
        name = differs[0]
        raise FileExistsError(
            f"{folder} holds checkpoints of another run: {name} was {before.get(name)}, now it is {run[name]}; give "
            "another folder, or delete this one"
        )


def _whole(checkpoint: Path) -> bool:
    if not re.fullmatch(r"checkpoint-\d+", checkpoint.name):
        return False
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
