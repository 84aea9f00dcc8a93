"""The program of one rank, started by `launch`: runs the function, and writes down what became of it."""

import faulthandler
import os
import pickle
import runpy
import sys
import traceback
from datetime import timedelta
from pathlib import Path


def run_task(folder: Path, rank: int) -> None:
    """Call the function of the task, and write `result-RANK` or `error-RANK`.

    Beyond the time limit Python writes where it stands into `stack-RANK` and ends, even if no launcher is left.
    """
    function, arguments, limit_s = pickle.loads((folder / "task").read_bytes())
    with (folder / f"stack-{rank}").open("w", encoding="utf-8") as stack:
        faulthandler.dump_traceback_later(limit_s, exit=True, file=stack)
        try:
            from torch import cuda, distributed

            on_cards = cuda.device_count() >= int(os.environ["WORLD_SIZE"])
            if on_cards:
                cuda.set_device(rank)
            # Twice the limit: a rank that waits is told apart from the one it waits for by where it stands.
            distributed.init_process_group("nccl" if on_cards else "gloo", timeout=timedelta(seconds=2 * limit_s))
            result = runpy.run_path(str(folder / "task.py"))[function](*arguments)
            (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
            distributed.barrier()  # a rank that is done does not close its connections under one that is not
            distributed.destroy_process_group()
        except Exception as error:
            write_error(folder / f"error-{rank}", error)
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()


def write_error(path: Path, error: Exception) -> None:
    """Two lines: whether the error came while waiting for other ranks, and what it is."""
    frames = traceback.extract_tb(error.__traceback__)
    waiting = any(f"torch{os.sep}distributed{os.sep}" in frame.filename for frame in frames)
    own = [frame for frame in frames if frame.filename.endswith("task.py")]
    where = f" (line {own[-1].lineno} of the function: {own[-1].line})" if own else ""
    message = " ".join(str(error).split())
    path.write_text(f"{'waiting' if waiting else 'own'}\n{type(error).__name__}: {message}{where}", encoding="utf-8")


if __name__ == "__main__":
    run_task(Path(sys.argv[1]), int(os.environ["RANK"]))
