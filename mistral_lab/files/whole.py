"""One file or one folder, written whole or not at all, and what was cut short, told apart from what is whole."""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name and rename it when it is done.

    An interruption or a full disk leaves the file that was there before.

    Yields:
        the temporary path, in the same folder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write a JSON file whole or not at all."""
    write_whole(path, json.dumps(content, indent=1) + "\n")


def read_json_if_whole(path: Path) -> object | None:
    """Return what a JSON file holds, or None where the file is missing, cut short or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextmanager
def private_place(target: Path) -> Iterator[Path]:
    """Make a new folder on the same disk as a target, to prepare it in, and remove that folder afterwards.

    The parents of the target are made where they are missing. Those that are still empty in the end are removed again.

    Args:
        target: a file or folder that is to be.

    Yields:
        an empty folder with the target's name. What is to stay has to be moved out of it.
    """
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unfinished-") as private:
            place = Path(private, target.name)  # the temporary folder itself is closed to other users
            place.mkdir()
            yield place
    finally:
        for folder in made:
            with suppress(OSError):  # what is not empty stays
                folder.rmdir()


@contextmanager
def folder_written_whole(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder in private and rename it into place when it is done; a failure leaves what was there before.

    Args:
        target: the folder.
        replace: whether a folder that is there already may be replaced, with all that it holds.

    Yields:
        an empty folder on the same disk, to be filled.

    Raises:
        FileExistsError: something is there, and it may not be replaced.
    """

    def refuse_to_replace() -> None:
        if target.exists() and not replace:
            raise FileExistsError(f"{target} exists: choose another name, or delete it first")

    refuse_to_replace()
    with private_place(target) as place:
        yield place
        refuse_to_replace()  # somebody may have made it in the meantime
        before = place.with_name(f"{target.name}.before")  # goes with the private place
        try:
            if target.exists():
                target.rename(before)
            place.rename(target)
        except BaseException:
            if before.exists() and not target.exists():
                before.rename(target)
            raise


def trainer_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints that the Trainer of transformers wrote into a folder, oldest first.

    The Trainer writes `trainer_state.json` last, so a checkpoint without it was cut short and is left out.
    """
    numbered = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    whole = [path for path in numbered if read_json_if_whole(path / "trainer_state.json") is not None]
    return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))
