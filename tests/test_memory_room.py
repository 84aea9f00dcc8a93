"""The memory that this process can have, on a card and on a CPU."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from mistral_lab import memory
from mistral_lab.memory import (
    RUNTIME_BYTES,
    free_bytes,
    limit,
    room,
    room_bytes,
    room_to_load_bytes,
    total_bytes,
)
from mistral_lab.memory.limit import memory_limits

GIB = 2**30


@pytest.mark.parametrize(
    ("free", "reserved", "expected"),
    [
        (23.14, 0, 23.64),  # nothing but this process's runtime
        (0.3, 22.84, 23.64),  # with a model loaded it is the same
        (22.0, 0, 22.5),  # another program has 1.14 GiB
        (23.64, 0, 23.64),  # never more than the total
    ],
)
def test_on_a_card_it_is_what_is_free_and_what_this_process_holds(monkeypatch, free, reserved, expected):
    total = int(23.64 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (min(int(free * GIB), total), total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: int(reserved * GIB))
    assert memory.room_bytes("cuda:0") == pytest.approx(expected * GIB, abs=2)  # each figure is cut to whole bytes


def test_on_a_cpu_pages_of_files_count_once(monkeypatch):
    """They are among what is available, because the system can take them back."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5 * GIB, total=16 * GIB))
    held = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=6 * GIB, shared=4 * GIB))
    monkeypatch.setattr(psutil, "Process", lambda: held)
    assert memory.room_bytes("cpu") == 7 * GIB
    held.memory_info = lambda: SimpleNamespace(rss=12 * GIB)  # not on Linux: no more than there is
    assert memory.room_bytes("mps") == 16 * GIB


# A container, or another control group with a limit


def group(root, path: str, files: dict[str, str]):
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Control groups of both versions in folders of this test's own, and the file that names this process's."""
    v2 = ("", "memory.max", "memory.current", "file", "shmem")
    v1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem")
    monkeypatch.setattr(limit, "VERSIONS", ((tmp_path / "v2", *v2), (tmp_path / "v1", *v1)))
    (tmp_path / "own").write_text("9:memory:/outer/inner\n3:cpu,cpuacct:/outer\n0::/some/group\n")
    return tmp_path


def test_a_limit_of_either_version_counts_without_the_pages_of_files(groups):
    own = groups / "own"
    assert list(memory_limits(own)) == []
    group(groups / "v1", "outer/inner", {"memory.limit_in_bytes": "1000", "memory.usage_in_bytes": "900"})
    assert list(memory_limits(own)) == []  # without its statistics a group says too little
    group(groups / "v1", "outer/inner", {"memory.stat": "cache 1\ntotal_cache 700\n"})
    assert list(memory_limits(own)) == [(1000, 200)]
    group(groups / "v1", "outer", {"memory.limit_in_bytes": "800", "memory.usage_in_bytes": "900"})
    group(groups / "v1", "outer", {"memory.stat": "total_cache 0\n"})
    assert [found.free_bytes for found in memory_limits(own)] == [800, 0]
    group(groups / "v2", "some/group", {"memory.max": "max\n", "memory.current": "1", "memory.stat": "file 1"})
    stat = "anon 2\nfile 55\nshmem 5\n"
    group(groups / "v2", "", {"memory.max": "500\n", "memory.current": "60", "memory.stat": stat})
    assert next(memory_limits(own)) == (500, 10)


def test_a_process_in_a_group_has_no_more_than_the_group(monkeypatch):
    monkeypatch.setattr(room, "memory_limits", lambda: iter([limit.Limit(3 * 2**30, 2**30)]))
    assert total_bytes() == 3 * 2**30
    assert free_bytes() == 2 * 2**30
    assert room_to_load_bytes() <= 2 * 2**30 + RUNTIME_BYTES
    assert room_bytes() <= 3 * 2**30


def test_where_there_are_no_groups_the_computer_counts(monkeypatch, tmp_path):
    assert list(memory_limits(tmp_path / "missing")) == []
    monkeypatch.setattr(room, "memory_limits", lambda: iter([]))
    assert total_bytes() == psutil.virtual_memory().total
