"""The folder in which the lab keeps what it made, and one process at a time at work there."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


def lab_cache() -> Path:
    """Name the folder: MISTRAL_LAB_CACHE, or else `mistral_lab` beside the hub's downloads."""
    from huggingface_hub import constants

    return Path(os.environ.get("MISTRAL_LAB_CACHE") or Path(constants.HF_HOME) / "mistral_lab")


@contextmanager
def one_process_at_a_time(lock: Path, waiting: str, give_up: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Hold a lock among the processes of this machine.

    Args:
        lock: the lock's file; its folder is made.
        waiting: what to tell the reader while another process holds it.
        give_up: called every second while another process holds it; True ends the wait.

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
