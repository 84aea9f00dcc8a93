"""A process is held to its memory, and nothing of the limit is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mistral_lab.measure import LimitedMemory, limits, memory_limit

MIB = 2**20
# Takes so many MiB as soon as it reads a line, and then waits for another.
EATER = """\
import sys
sys.stdin.readline()
eaten = bytearray(int(sys.argv[1]) * 2**20)
eaten[::4096] = b"x" * len(eaten[::4096])
print("eaten", flush=True)
sys.stdin.readline()
"""
HOLDER = """\
import subprocess, sys, time
from mistral_lab.measure import memory_limit
held = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
with memory_limit(held.pid, 2**28) as possible:
    print(held.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def eater():
    """Starts a process that takes so many MiB; it ends with the test."""
    started = []

    def start(mib: int) -> subprocess.Popen:
        command = [sys.executable, "-c", EATER, str(mib)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def cgroups():
    """Skips where no memory cgroup can be made."""
    with memory_limit(os.getpid(), 2**40) as possible:
        pass
    if not possible:
        pytest.skip("no memory cgroup can be made here")


def groups_left() -> list[Path]:
    return [path for root, *_ in limits.VERSIONS for path in root.glob(f"mistral-lab-{os.getpid()}-*")]


def group_of(pid: int) -> str:
    return Path("/proc", str(pid), "cgroup").read_text()


@pytest.mark.parametrize(("mib", "survives"), [(64, True), (400, False)])
def test_a_process_is_held_to_its_memory(mib, survives, eater, cgroups):
    process = eater(mib)
    before = group_of(process.pid)
    watched = LimitedMemory(256 * MIB)
    with watched(process.pid):
        assert "mistral-lab-" in group_of(process.pid)
        process.stdin.write("go\n")
        process.stdin.flush()
        answer = process.stdout.readline()  # empty where it was killed
        time.sleep(4 * limits.SAMPLE_S)
    assert watched.held
    assert (answer == "eaten\n") == survives
    if survives:
        assert 64 * MIB < watched.anonymous_bytes <= watched.resident_bytes < 256 * MIB
        assert 0 < watched.mapped_bytes < 64 * MIB  # Python and its libraries
        assert group_of(process.pid) == before
    else:
        assert process.wait(timeout=20) == -signal.SIGKILL
    assert groups_left() == []


def test_a_file_read_under_a_limit_counts_and_is_taken_back(tmp_path, cgroups):
    file = tmp_path / "large"
    file.write_bytes(bytes(96 * MIB))
    code = f"import sys; sys.stdin.readline(); print(len(open({str(file)!r}, 'rb').read(2**20)))"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with memory_limit(process.pid, 64 * MIB) as held:
        assert held
        answer, _ = process.communicate("go\n", timeout=60)
    assert answer == f"{MIB}\n"


def test_a_failure_inside_is_not_hidden_and_leaves_nothing(eater, cgroups):
    process = eater(1)
    with pytest.raises(OSError, match="the disk"), memory_limit(process.pid, 256 * MIB):
        raise OSError("the disk is full")
    assert process.poll() is None
    assert groups_left() == []


@pytest.mark.parametrize("sent", [signal.SIGINT])
def test_an_interruption_leaves_no_group(sent, cgroups):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    held = holder.stdout.readline().strip()
    holder.send_signal(sent)
    _, error = holder.communicate(timeout=60)
    assert error.rstrip().endswith("KeyboardInterrupt")
    assert not [path for root, *_ in limits.VERSIONS for path in root.glob(f"mistral-lab-{holder.pid}-{held}")]


def test_where_no_group_can_be_made_the_process_runs_unlimited(eater, monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "VERSIONS", ((tmp_path, "memory", "memory.max"), (tmp_path / "no", "", "memory.max")))
    process = eater(1)
    watched = LimitedMemory(MIB)
    with watched(process.pid):
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "eaten\n"
    assert not watched.held
    assert list(tmp_path.iterdir()) == []


def test_without_a_limit_a_process_is_only_watched(eater):
    process = eater(32)
    watched = LimitedMemory(None)
    with watched(process.pid):
        process.stdin.write("go\n")
        process.stdin.flush()
        process.stdout.readline()
        time.sleep(4 * limits.SAMPLE_S)
    assert not watched.held
    assert watched.anonymous_bytes > 32 * MIB
