"""Files that are there are whole, what a safetensors file says it holds, and a disk without room is noticed early."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

LARGER_DISK = "set HF_HOME (and MISTRAL_LAB_CACHE, where it is set) to a folder on a larger disk"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write under a temporary name and rename when done; an interruption or a full disk leaves what was there.

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


def read_header(path: str | os.PathLike) -> dict[str, dict]:
    """What a safetensors file holds, without its tensors: name to "dtype", "shape" and "data_offsets".

    Source: github.com/huggingface/safetensors, README, "Format": eight bytes of length, then a JSON object.
    """
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return header


def lab_cache() -> Path:
    """The folder for what the lab keeps: MISTRAL_LAB_CACHE, or else `mistral_lab` beside the hub's downloads."""
    from huggingface_hub import constants

    return Path(os.environ.get("MISTRAL_LAB_CACHE") or Path(constants.HF_HOME) / "mistral_lab")


def decimal_size(nbytes: int) -> str:
    """Bytes as disks are labelled: GB of 10^9, or MB of 10^6 where that is less than a tenth.

    >>> decimal_size(93_400_000_000), decimal_size(3_283_280)
    ('93.4 GB', '3.3 MB')
    """
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"


class Need(NamedTuple):
    """Bytes that are to be written into a folder, which need not exist yet, and what they are for."""

    folder: Path
    nbytes: int
    purpose: str

    def __str__(self) -> str:
        return f"{decimal_size(self.nbytes)} {self.purpose}"


def check_disk(*needs: Need) -> None:
    """Refuse to begin what will not fit; what goes to one file system shares its room.

    Raises:
        OSError: a disk has less room than is needed, with both in GB (10^9 bytes).
    """
    disks: dict[int, list[Need]] = {}
    for need in needs:
        disks.setdefault(_existing(need.folder).stat().st_dev, []).append(need)
    for shared in disks.values():
        needed, free = sum(need.nbytes for need in shared), shutil.disk_usage(_existing(shared[0].folder)).free
        if needed > free:
            raise OSError(
                f"{decimal_size(needed)} are needed in {shared[0].folder} ({' and '.join(map(str, shared))}), and "
                f"{decimal_size(free)} are free there: free {decimal_size(needed - free)} more, or {LARGER_DISK}; "
                "then load again"
            )


@contextmanager
def full_disk_in_a_sentence(left: Callable[[], Need]) -> Iterator[None]:
    """Say what is still needed where the disk turns out to be full in the midst of the work.

    Args:
        left: what is still to be written; asked when it has happened.

    Raises:
        OSError: with the GB needed and free.
    """
    try:
        yield
    except Exception as error:  # safetensors has an error of its own, with the system's words in it
        if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and "No space left" not in str(error):
            raise
        need = left()
        free = shutil.disk_usage(_existing(need.folder)).free
        raise OSError(
            f"the disk of {need.folder} is full: {need} are still needed, and {decimal_size(free)} are free; make "
            f"room, or {LARGER_DISK}, and load again: what is finished stays and is used again"
        ) from None


@contextmanager
def one_process_at_a_time(lock: Path, waiting: str, give_up: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Hold a lock among the processes of this machine.

    Args:
        lock: the lock's file; its folder is made.
        waiting: what to tell the reader where another process holds it.
        give_up: asked every second while another holds it; True ends the wait.

    Raises:
        TimeoutError: the wait was given up.
    """
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        held, wait_s = False, 0.1
        while not held:
            try:
                stack.enter_context(WeakFileLock(lock, timeout=wait_s))
                held = True
            except Timeout:
                if wait_s < 1:  # the first time
                    print(waiting, file=sys.stderr, flush=True)
                if give_up():
                    raise TimeoutError(f"{waiting}, in vain") from None
                wait_s = 1
        yield


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
