"""Files between disk and memory: what a process has read, what lies in the page cache, how fast the disk is."""

import ctypes
import mmap
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

PIECE = 2**23  # bytes that one read asks for
READERS = 4  # a disk answers several readers at once faster than one


@dataclass(frozen=True)
class Paging:
    """What the system has brought into memory for this process since it began.

    Args:
        disk_bytes: read from the disk, by calls, by page faults, and ahead of both. What lay in the page cache already
            was not read. None where the system does not count this; Linux does.
        major_faults: accesses to a page that had to be read from the disk first; None on Windows.
    """

    disk_bytes: int | None
    major_faults: int | None

    @classmethod
    def now(cls) -> "Paging":
        """Read the counters of this process."""
        process = psutil.Process()
        disk_bytes = process.io_counters().read_bytes if psutil.LINUX else None
        if psutil.WINDOWS:
            return cls(disk_bytes, None)
        import resource  # Windows has no such module

        return cls(disk_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_majflt)

    def since(self, before: "Paging") -> "Paging":
        """Return what was brought in between an earlier moment and this one."""

        def difference(now: int | None, then: int | None) -> int | None:
            return None if now is None else now - then

        return Paging(
            difference(self.disk_bytes, before.disk_bytes), difference(self.major_faults, before.major_faults)
        )


def evict(files: Iterable[Path]) -> None:
    """Ask the system to drop files from the page cache, so that the next process reads them from the disk.

    It keeps pages that a process has mapped at this moment. `cached_bytes` says what is left.

    Raises:
        NotImplementedError: this system has no `posix_fadvise`, as macOS.
    """
    if not hasattr(os, "posix_fadvise"):
        raise NotImplementedError("this system cannot drop a file from the page cache: measure on Linux")
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # what is not written yet cannot be dropped
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_bytes(files: Iterable[Path]) -> int | None:
    """Count the bytes of files that lie in the page cache, in whole pages; None on another system than Linux."""
    if not psutil.LINUX:
        return None
    library, pages = ctypes.CDLL(None, use_errno=True), 0
    library.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    for file in files:
        if not (size := file.stat().st_size):
            continue
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), size, flags=mmap.MAP_PRIVATE) as mapped:
            begin = ctypes.c_char.from_buffer(mapped)  # a private mapping may be written to, in Python's eyes
            found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
            failed = library.mincore(ctypes.addressof(begin), size, found)
            del begin  # or the mapping could not be closed
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
        pages += sum(bytes(found).translate(_LOWEST_BIT))
    return pages * mmap.PAGESIZE


_LOWEST_BIT = bytes(value & 1 for value in range(256))  # of mincore's bytes the others mean nothing


def read_through(files: Iterable[Path], *, most: int | None = None) -> float:
    """Read files from beginning to end, several at once, and return the bytes per second.

    After `evict` this is the speed of the disk; before a measurement with a warm page cache it warms it.

    Args:
        files: at least one that is not empty.
        most: stop with the file with which so many bytes have been read. None reads everything.
    """
    chosen, total = [], 0
    for file in files:
        if most is not None and total >= most:
            break
        chosen.append(file)
        total += file.stat().st_size
    begin = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        read = sum(pool.map(_read, chosen))
    return read / (time.perf_counter() - begin)


def _read(file: Path) -> int:
    piece, total = bytearray(PIECE), 0
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(piece):
            total += count
    return total
