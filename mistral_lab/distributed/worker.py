"""The program of one rank, which `launch` starts: it runs the function, and writes down what became of it."""

import faulthandler
import os
import pickle
import runpy
import sys
import traceback
from datetime import timedelta
from pathlib import Path


def run_task(folder: Path, rank: int, start_s: float, limit_s: float) -> None:
    """Call the function of the task, and write `result-RANK` or `error-RANK`.

    At a time limit Python writes into `stack-RANK` where it stands, and ends, even if no launcher is left.
    """
    with (folder / f"stack-{rank}").open("w", encoding="utf-8") as stack:
        faulthandler.dump_traceback_later(start_s, exit=True, file=stack)
        try:
            function, arguments = pickle.loads((folder / "task").read_bytes())
            # Longer than the limits: a rank that waits is told apart from the one it waits for by where it stands.
            join_group(rank, timedelta(seconds=start_s + 2 * limit_s))
            faulthandler.dump_traceback_later(limit_s, exit=True, file=stack)  # in place of the one before
            result = runpy.run_path(str(folder / "task.py"))[function](*arguments)
            (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
            from torch import distributed

            distributed.barrier()  # a rank that is done does not close its connections under one that is not
            distributed.destroy_process_group()
        except Exception as error:
            write_error(folder / f"error-{rank}", error)
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()


def join_group(rank: int, timeout: timedelta) -> None:
    """Make this process a rank: with NCCL and its own card where each rank has one, otherwise with gloo and the CPU."""
    import torch

    on_cards = torch.cuda.device_count() >= int(os.environ["WORLD_SIZE"])
    if on_cards:
        torch.cuda.set_device(rank)
    else:
        from mistral_lab.distributed.compat import place_ranks_on_cpu  # this file runs as a program, not as a module

        place_ranks_on_cpu()
    torch.distributed.init_process_group("nccl" if on_cards else "gloo", timeout=timeout)


def write_error(path: Path, error: Exception) -> None:
    """Write two lines: whether the error came while this rank waited for others, and what it is."""
    frames = traceback.extract_tb(error.__traceback__)
    # A connection that broke is a RuntimeError. A TypeError or ValueError is a wrong argument, and this rank's own.
    waiting = isinstance(error, RuntimeError) and any(
        f"torch{os.sep}distributed{os.sep}" in frame.filename for frame in frames
    )
    own = [frame for frame in frames if frame.filename.endswith("task.py")]
    where = f" (line {own[-1].lineno} of the function: {own[-1].line})" if own else ""
    message = " ".join(str(error).split())
    path.write_text(f"{'waiting' if waiting else 'own'}\n{type(error).__name__}: {message}{where}", encoding="utf-8")


if __name__ == "__main__":
    run_task(Path(sys.argv[1]), int(os.environ["RANK"]), *map(float, sys.argv[2:]))
