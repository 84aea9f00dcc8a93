"""The memory limit of a container, or of any control group of Linux: what a process can have of the computer's memory.

psutil tells what the computer has, whatever part of it the process may use.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# For cgroups of version 2 and 1: where the groups are, the controller's name in /proc/self/cgroup, the files of a group
# that hold its limit and what it uses, and the entries of its memory.stat that count pages of files, and those among
# them that only memory has (shared memory), which cannot be taken back.
CGROUPS = Path("/sys/fs/cgroup")
VERSIONS = (
    (CGROUPS, "", "memory.max", "memory.current", "file", "shmem"),
    (CGROUPS / "memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem"),
)


class Limit(NamedTuple):
    """What the narrowest group allows, and what it uses without the pages of files, which can be taken back."""

    total_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        """What is left."""
        return max(0, self.total_bytes - self.used_bytes)


def memory_limits(own: Path = Path("/proc/self/cgroup")) -> Iterator[Limit]:
    """Yield the limits that this process is held to, of its own group and of those above it; none elsewhere than Linux.

    Args:
        own: the file that names this process's groups.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return
    for root, controller, *names in VERSIONS:
        groups = [path for _, controllers, path in lines if controller in controllers.split(",")]
        for group in (root / path.strip("/") for path in groups):
            # In a container the path can be that of the host, and the container's own group is the root.
            for folder in [group, *group.parents]:
                if folder.is_relative_to(root) and (found := _read(folder, *names)):
                    yield found


def _read(folder: Path, limit: str, usage: str, files: str, shared: str) -> Limit | None:
    try:
        most = (folder / limit).read_text().strip()
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        back = int(stat[files]) - int(stat.get(shared, 0))
        return None if most == "max" else Limit(int(most), int((folder / usage).read_text()) - back)
    except (OSError, ValueError, KeyError):
        return None
