"""What became of the ranks that `launch` started: which one is at fault, and why."""

import os
import re
from pathlib import Path


def failed(folder: Path, rank: int, code: int | None) -> bool:
    """Say whether a rank has ended without a result."""
    return code is not None and (code != 0 or not (folder / f"result-{rank}").exists())


def failure(folder: Path, codes: list[int | None], limit_s: float, start_s: float) -> str | None:
    """Return one sentence on the ranks at fault, or None where all went well.

    Args:
        folder: what the ranks wrote.
        codes: the exit status of each rank; None where it still ran.
        limit_s, start_s: the seconds that the function and the start of a rank were allowed.
    """
    if not any(code is None or failed(folder, rank, code) for rank, code in enumerate(codes)):
        return None
    found = [_what_became(folder, rank, code, limit_s, start_s) for rank, code in enumerate(codes)]
    worst = min(guilt for guilt, _ in found)
    return "; ".join(text for guilt, text in found if guilt == worst) + "; all ranks were ended"


def _what_became(folder: Path, rank: int, code: int | None, limit_s: float, start_s: float) -> tuple[int, str]:
    """The guilt of a rank, and what to say of it.

    0 is at fault, 1 waited for other ranks to the end, 2 failed together with others, 3 has no guilt.
    """
    error, stack = folder / f"error-{rank}", _text(folder / f"stack-{rank}")
    if error.exists():
        kind, _, message = _text(error).partition("\n")
        return 2 if kind == "waiting" else 0, f"rank {rank} failed: {message}"
    if stack:
        return _where_it_stood(rank, stack, (folder / f"result-{rank}").exists(), limit_s, start_s)
    if code is None:  # it ran on while another failed; where none did, it is past every limit
        return 3 if any(folder.glob("error-*")) else 1, f"rank {rank} did not end"
    if code < 0:
        return 0, f"rank {rank} was killed by signal {-code}"
    if code:
        last = _text(folder / f"err-{rank}").strip().rpartition("\n")[2]
        return 0, f"rank {rank} ended with exit status {code}: {last or 'it printed no reason'}"
    if failed(folder, rank, code):
        return 0, f"rank {rank} ended with exit status 0 before the function returned"
    return 3, f"rank {rank} had ended"


def _where_it_stood(rank: int, stack: str, returned: bool, limit_s: float, start_s: float) -> tuple[int, str]:
    """The same for a rank that was past its limit, from the stack that it left."""
    line = re.search(r'task\.py", line (\d+) in (\w+)', stack)
    if line:
        place = f"after {limit_s:g} s it was in line {line[1]} of {line[2]}"
    else:
        place = "its function had returned" if returned else f"after {start_s:g} s its function had not started"
    # A rank that imports torch.distributed waits for nobody.
    meeting = line or returned or "in init_process_group" in stack
    waiting = bool(meeting) and f"torch{os.sep}distributed{os.sep}" in stack
    return int(waiting), f"rank {rank} {'waited for other ranks' if waiting else 'hung'}: {place}"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
