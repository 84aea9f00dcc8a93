"""Start a function on several ranks, and say which rank failed or hung, and why."""

import inspect
import os
import pickle
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from .._checks import check_count

HOST = "127.0.0.1"
POLL_S = 0.05
GRACE_S = 3.0  # for the other ranks, once one has failed, to fail as well and write down why


def launch(function: Callable, *arguments, ranks: int, limit_s: float = 50.0, port: int | None = None) -> list:
    """Run a function in new processes on this machine, the ranks of one process group, and bring back what it returns.

    The function travels as its source text, so that one written in a notebook's cell works: it imports and defines for
    itself all it uses. `torch.distributed` is ready when it starts (NCCL where there is a card a rank, else gloo), one
    thread a rank unless OMP_NUM_THREADS says otherwise. What the ranks print is printed when all have ended, in the
    order of the ranks.

    Args:
        function: a plain function, called on every rank with the same arguments.
        arguments: anything that can be pickled.
        ranks: how many processes.
        limit_s: so many seconds after its start, imports included, a rank that still runs counts as hanging.
        port: where the ranks meet; None takes a free one.

    Returns:
        what the function returned, rank by rank.

    Raises:
        TypeError, ValueError: a function without source text, or a count below 1.
        OSError: the port is taken.
        RuntimeError: a rank failed, died or hung; the others were ended, and the message says which and why.

    Differs: `torchrun` starts a script from the command line, has no time limit, and prints to the terminal.

    >>> def add_ranks(start):
    ...     import torch
    ...     total = torch.tensor(start + torch.distributed.get_rank())
    ...     torch.distributed.all_reduce(total)
    ...     return int(total)
    >>> launch(add_ranks, 10, ranks=2)
    [21, 21]
    """
    check_count("ranks", ranks)
    source = _source(function)
    store = _meeting_point(port)  # kept while the ranks run
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "task.py").write_text(source, encoding="utf-8")
        (Path(folder) / "task").write_bytes(pickle.dumps((function.__name__, arguments, limit_s)))
        workers = []
        try:
            for rank in range(ranks):
                workers.append(_start(Path(folder), rank, ranks, store.port))
            _wait(workers, limit_s)
            codes = [worker.poll() for worker in workers]  # None: still running
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        for rank in range(ranks):
            sys.stdout.write((Path(folder) / f"out-{rank}").read_text(encoding="utf-8", errors="replace"))
        if failure := _failure(Path(folder), codes, limit_s):
            raise RuntimeError(failure)
        return [pickle.loads((Path(folder) / f"result-{rank}").read_bytes()) for rank in range(ranks)]


def _source(function: Callable) -> str:
    if not inspect.isfunction(function) or function.__name__ == "<lambda>" or function.__closure__:
        raise TypeError(f"{function!r} cannot be sent to other processes: expected a plain function, made with `def`")
    return textwrap.dedent(inspect.getsource(function))


def _meeting_point(port: int | None):
    from torch.distributed import TCPStore

    try:
        return TCPStore(HOST, port or 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    except RuntimeError as error:
        if "EADDRINUSE" not in str(error):
            raise
    raise OSError(f"port {port} is taken by another program: give another one, or None for any that is free")


def _start(folder: Path, rank: int, ranks: int, port: int) -> subprocess.Popen:
    """One rank, with the environment variables that `torchrun` sets."""
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    meeting = {"MASTER_ADDR": HOST, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    meeting["TORCHELASTIC_RESTART_COUNT"] = 0
    variables = {name: str(value) for name, value in (group | meeting).items()}
    worker = Path(__file__).with_name("worker.py")
    with (folder / f"out-{rank}").open("w") as out, (folder / f"err-{rank}").open("w") as err:
        return subprocess.Popen(
            [sys.executable, "-P", str(worker), str(folder)],  # -P: this folder is no place to import from
            env={"OMP_NUM_THREADS": "1"} | os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )


def _wait(workers: list[subprocess.Popen], limit_s: float) -> None:
    """Return when all have ended, or some time after one has failed; a rank past its limit ends itself."""
    last = time.monotonic() + limit_s + GRACE_S
    while any(worker.poll() is None for worker in workers) and time.monotonic() < last:
        if any(worker.poll() for worker in workers):
            last = min(last, time.monotonic() + GRACE_S)
        time.sleep(POLL_S)


def _failure(folder: Path, codes: list[int | None], limit_s: float) -> str | None:
    """One sentence on the ranks at fault, or None where all went well."""
    if not any(code != 0 for code in codes):
        return None
    found = [_what_became(folder, rank, code, limit_s) for rank, code in enumerate(codes)]
    worst = min(guilt for guilt, _ in found)
    return "; ".join(text for guilt, text in found if guilt == worst) + "; all ranks were ended"


def _what_became(folder: Path, rank: int, code: int | None, limit_s: float) -> tuple[int, str]:
    """What to say of a rank, and its guilt: 0 at fault, 1 waited for others to the end, 2 failed with them, 3 none."""
    error, stack = folder / f"error-{rank}", _text(folder / f"stack-{rank}")
    if error.exists():
        kind, _, message = _text(error).partition("\n")
        return 2 if kind == "waiting" else 0, f"rank {rank} failed: {message}"
    if stack:
        where = re.search(r'task\.py", line (\d+) in (\w+)', stack)
        place = f"line {where[1]} of {where[2]}" if where else "no line of the function"
        waiting = f"torch{os.sep}distributed{os.sep}" in stack
        did = "waited for other ranks" if waiting else "hung"
        return int(waiting), f"rank {rank} {did}: after {limit_s:g} s it was in {place}"
    if code is None:
        return 1, f"rank {rank} did not end"
    if code < 0:
        return 0, f"rank {rank} was killed by signal {-code}"
    if code:
        last = _text(folder / f"err-{rank}").strip().rpartition("\n")[2]
        return 0, f"rank {rank} ended with exit status {code}: {last or 'it printed no reason'}"
    return 3, f"rank {rank} had ended"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
