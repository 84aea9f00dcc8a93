"""Start a function on several ranks, and end them all where one fails or hangs."""

import inspect
import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from ..arguments import check_count
from .outcome import failed, failure

HOST = "127.0.0.1"
POLL_S = 0.05
START_S = 60.0  # for the ranks to import PyTorch and to find each other
LONGEST_S = 86_400.0  # a day; the clocks of Python and PyTorch overflow somewhere beyond
GRACE_S = 3.0  # for the other ranks, once one has failed, to fail as well and write down why


def launch(function: Callable, *arguments, ranks: int, limit_s: float = 50.0, port: int | None = None) -> list:
    """Run a function in new processes on this machine, the ranks of one process group, and bring back what it returns.

    The function travels as its source text, so that a function written in a notebook's cell works. It has to import and
    define all that it uses; it can import what its caller can. `torch.distributed` is ready when it starts: with NCCL
    where there is a card for each rank, otherwise with gloo, and then the ranks see the CPU alone. Each rank has one
    thread unless OMP_NUM_THREADS says otherwise. What the ranks print is printed when all have ended, in the order of
    the ranks.

    Args:
        function: a plain function without a decorator, called on every rank with the same arguments.
        arguments: anything that can be pickled.
        ranks: how many processes.
        limit_s: seconds after the start of the function, at which a rank that still runs counts as hanging. Before
            that, the ranks have a minute to start.
        port: where the ranks meet, 1 to 65535; None takes a free one.

    Returns:
        what the function returned, rank by rank.

    Raises:
        TypeError: a function that cannot be sent, or something else where a number is expected.
        ValueError: a count, a limit or a port out of range.
        OSError: the port is taken.
        RuntimeError: a rank failed, died or hung. The others were ended, and the message says which one and why.

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
    _check_limit(limit_s)
    source = _source(function)
    store = meeting_point(port)  # kept while the ranks run
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "task.py").write_text(source, encoding="utf-8")
        (Path(folder) / "task").write_bytes(pickle.dumps((function.__name__, arguments)))
        workers = []
        try:
            for rank in range(ranks):
                workers.append(start_rank(Path(folder), rank, ranks, store.port, limit_s))
            _wait(Path(folder), workers, limit_s)
            codes = [worker.poll() for worker in workers]  # None: still running
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        for rank in range(ranks):
            sys.stdout.write((Path(folder) / f"out-{rank}").read_text(encoding="utf-8", errors="replace"))
        if message := failure(Path(folder), codes, limit_s, START_S):
            raise RuntimeError(message)
        return [pickle.loads((Path(folder) / f"result-{rank}").read_bytes()) for rank in range(ranks)]


def _check_limit(limit_s: float) -> None:
    if not isinstance(limit_s, int | float) or isinstance(limit_s, bool):
        raise TypeError(f"limit_s is {limit_s!r}: expected a number of seconds")
    if not 0 < limit_s <= LONGEST_S:
        raise ValueError(f"limit_s is {limit_s}: expected seconds, above 0 and at most {LONGEST_S:,.0f}")


def _source(function: Callable) -> str:
    source = None
    if inspect.isfunction(function) and function.__name__ != "<lambda>" and not function.__closure__:
        try:
            source = textwrap.dedent(inspect.getsource(function))
        except OSError:
            raise TypeError(f"{function!r} has no source text: expected a function from a cell or a file") from None
    if source is None or source.startswith("@"):
        raise TypeError(
            f"{function!r} cannot be sent to other processes: expected a plain function, made with def, without a "
            "decorator and without names from a function around it"
        )
    return source


def meeting_point(port: int | None):
    """Open the store in which the ranks find each other, on this machine.

    Raises:
        TypeError, ValueError: no port.
        OSError: the port is taken.
    """
    from torch.distributed import TCPStore

    if port is not None:
        check_count("port", port)
        if port > 65_535:
            raise ValueError(f"port is {port}: expected at most 65535")
    try:
        return TCPStore(HOST, port or 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    except RuntimeError as error:
        if "EADDRINUSE" not in str(error):
            raise
    raise OSError(f"port {port} is taken by another program: give another one, or None for any that is free")


def start_rank(folder: Path, rank: int, ranks: int, port: int, limit_s: float) -> subprocess.Popen:
    """Start one rank, with the environment variables that `torchrun` sets and the caller's places to import from."""
    from torch import cuda

    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    meeting = {"MASTER_ADDR": HOST, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    meeting["TORCHELASTIC_RESTART_COUNT"] = 0
    variables = {name: str(value) for name, value in (group | meeting).items()}
    variables["PYTHONPATH"] = os.pathsep.join(map(str, sys.path))  # "", as in a notebook, is the working folder
    if cuda.device_count() < ranks:
        variables["CUDA_VISIBLE_DEVICES"] = ""  # a library that finds a card would put every rank on it
    worker = Path(__file__).with_name("worker.py")
    with (folder / f"out-{rank}").open("w") as out, (folder / f"err-{rank}").open("w") as err:
        return subprocess.Popen(
            # -P: the worker's own folder is no place to import from.
            [sys.executable, "-P", str(worker), str(folder), str(START_S), str(limit_s)],
            env={"OMP_NUM_THREADS": "1"} | os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )


def _wait(folder: Path, workers: list[subprocess.Popen], limit_s: float) -> None:
    """Return when all have ended, or a short time after one has failed. A rank that is past its limit ends itself."""
    last = time.monotonic() + START_S + limit_s + GRACE_S
    while any(worker.poll() is None for worker in workers) and time.monotonic() < last:
        if any(failed(folder, rank, worker.poll()) for rank, worker in enumerate(workers)):
            last = min(last, time.monotonic() + GRACE_S)
        time.sleep(POLL_S)
