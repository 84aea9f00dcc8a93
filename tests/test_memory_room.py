"""The memory that this process can have, on a card and on a CPU."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from mistral_lab import memory

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
