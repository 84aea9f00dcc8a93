"""A process held to a memory limit by the system, and the memory that it takes meanwhile."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

# Where the memory controller has its groups, its name in /proc/PID/cgroup, and the file that holds a group's limit: in
# cgroups of version 1, and of version 2.
CGROUPS = Path("/sys/fs/cgroup")
VERSIONS = ((CGROUPS / "memory", "memory", "memory.limit_in_bytes"), (CGROUPS, "", "memory.max"))
SAMPLE_S = 0.05  # how often the memory of a watched process is read
EMPTY_WITHIN_S = 5  # a process that has just ended stays in its group for a moment


class LimitedMemory:
    """Holds a process to a memory limit where the system allows it, and records what the process takes.

    Args:
        limit_bytes: the limit, as in `memory_limit`. None only watches.

    Attributes:
        held: whether the limit was enforced.
        anonymous_bytes: the most that the process took without the files that it maps.
        mapped_bytes: the most that it had in memory of the files that it maps.
        resident_bytes: the most that it took of both at once. Each is read every 50 ms, so a shorter peak can be
            missed. Only Linux tells mapped files apart; elsewhere everything counts as anonymous.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes
        self.anonymous_bytes = self.mapped_bytes = self.resident_bytes = 0
        self.held = False

    @contextmanager
    def __call__(self, pid: int) -> Iterator["LimitedMemory"]:
        """Limit and watch a process, by its id, while the context is open."""
        done = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(psutil.Process(pid), done), daemon=True)
        with memory_limit(pid, self.limit_bytes) as self.held:
            sampler.start()
            try:
                yield self
            finally:
                done.set()
                sampler.join()

    def _sample(self, process: psutil.Process, done: threading.Event) -> None:
        while not done.wait(SAMPLE_S):
            try:
                memory = process.memory_info()
            except psutil.NoSuchProcess:
                return
            mapped = getattr(memory, "shared", 0)
            self.resident_bytes = max(self.resident_bytes, memory.rss)
            self.mapped_bytes = max(self.mapped_bytes, mapped)
            self.anonymous_bytes = max(self.anonymous_bytes, memory.rss - mapped)


@contextmanager
def memory_limit(pid: int, limit_bytes: int | None) -> Iterator[bool]:
    """Limit the memory of a process by a cgroup of Linux, the page cache of its files included.

    The system counts a page of a file where it was first read. What lay in the page cache before the limit was set is
    not counted, so a file that is to be counted has to be evicted first (`evict`). Beyond the limit the system takes
    pages of files back, and kills the process where there are none left to take. Swap is not counted.

    The group is removed when the context is left, by an interruption too; a process that still runs then goes back to
    where it came from.

    Args:
        pid: the id of the process. Processes that it starts later are in the same group.
        limit_bytes: of anonymous memory and page cache together; None sets no limit.

    Yields:
        whether the limit is enforced. That needs Linux and the right to make cgroups, which a container and a user
        without it lack.
    """
    if limit_bytes is None:
        yield False
        return
    for root, controller, file in VERSIONS:
        group, before = root / f"mistral-lab-{os.getpid()}-{pid}", _group_of(pid, root, controller)
        try:
            if _joined(group, file, pid, limit_bytes):
                yield True
                return
        finally:
            _remove(group, before)
    yield False


def _joined(group: Path, file: str, pid: int, limit_bytes: int) -> bool:
    """Make a group with a limit and put a process into it; say whether that was possible."""
    try:
        group.mkdir()
        if not (group / file).is_file():
            return False  # an ordinary folder, as where the other version is mounted
        (group / file).write_text(str(limit_bytes))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        return False
    return True


def _group_of(pid: int, root: Path, controller: str) -> Path:
    """The group of a process below the folder of the memory controller; that folder where it cannot be told."""
    with suppress(OSError):  # only Linux has the file
        for line in Path("/proc", str(pid), "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(",") and (root / path.lstrip("/") / "cgroup.procs").is_file():
                return root / path.lstrip("/")
    return root


def _remove(group: Path, before: Path) -> None:
    """Remove a group; the processes that are left in it go back to the group before."""
    deadline = time.monotonic() + EMPTY_WITHIN_S
    while group.is_dir():
        with suppress(OSError):  # a process may end while it is moved
            for left in (group / "cgroup.procs").read_text().split():
                (before / "cgroup.procs").write_text(left)
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
