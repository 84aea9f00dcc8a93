"""A disk that is too full: noticed before the work begins where that can be known, and explained where it cannot."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

LARGER_DISK = "set HF_HOME (and MISTRAL_LAB_CACHE, where it is set) to a folder on a larger disk"


def decimal_size(nbytes: int) -> str:
    """Write bytes as disks are labelled: in GB of 10^9, or in MB of 10^6 where that is less than a tenth.

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
    """Refuse to begin what will not fit; needs on the same file system share its free space.

    Raises:
        OSError: a disk has less space than is needed; the message gives both in GB (10^9 bytes).
    """
    disks: dict[int, list[Need]] = {}
    for need in needs:
        disks.setdefault(_existing(need.folder).stat().st_dev, []).append(need)
    for shared in disks.values():
        needed, free = sum(need.nbytes for need in shared), _free_bytes(shared[0].folder)
        if needed > free:
            raise OSError(
                f"{decimal_size(needed)} are needed in {shared[0].folder} ({' and '.join(map(str, shared))}), and "
                f"{decimal_size(free)} are free there: free {decimal_size(needed - free)} more, or {LARGER_DISK}; "
                "then load again"
            )


@contextmanager
def full_disk_explained(explain: Callable[[], str], *, least: Need | None = None) -> Iterator[None]:
    """Turn what a full disk makes Python, torch or safetensors raise into one OSError with one sentence.

    Args:
        explain: makes the sentence; called once the disk has turned out to be full.
        least: torch and safetensors raise errors that do not say why they could not write. Such an error counts as a
            full disk where fewer bytes than these are free. None: only an error that says so counts.

    Raises:
        OSError: the disk is full.
    """
    try:
        yield
    except Exception as error:  # safetensors has an error of its own, with or without the system's words in it
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if not full and least and isinstance(error, OSError | RuntimeError | SafetensorError):
            full = _free_bytes(least.folder) < least.nbytes
        if not full:
            raise
        explained = OSError(explain())
        explained.errno = errno.ENOSPC
        raise explained from None


def still_needed(need: Need) -> str:
    """Say of a full disk what is still to be written, what is free and what to do: for `full_disk_explained`."""
    return (
        f"the disk of {need.folder} is full: {need} are still needed, and {decimal_size(_free_bytes(need.folder))} are "
        f"free; make room, or {LARGER_DISK}, and load again: what is finished stays and is used again"
    )


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
