"""`make test-full-size`: run each lesson that offers its 7B tier on a CPU at full size, on seeded random weights.

A lesson passes if every cell runs, the whole takes at most `MINUTES`, no cell is silent for longer than `SILENCE_S`,
and the kernel needs no more memory than the lesson's table of tiers names. Where the system allows it, a memory cgroup
enforces that limit; it counts the pages of mapped files too. Each lesson starts without a quantised copy.

The measurements go to benchmarks/lessons-7b.json, which the tables of tiers and the README quote.
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import notebook_files
from execute import Run, execute, exit_if_failed
from full_size import write
from mistral_lab import PRESETS
from mistral_lab.files import write_whole
from mistral_lab.measure import LimitedMemory, Machine

MODEL = "mistral-7b-v0.1"
RECORDS = notebook_files.ROOT / "benchmarks" / "lessons-7b.json"
FOLDER = notebook_files.ROOT / "build" / "full-size"
NEEDED_BYTES = 25 * 10**9  # on disk: the weights in 16 bits, a quantised copy, room to write

MEMORY_GIB = {"01": 8, "02": 8, "03": 8, "06": 16}  # by lesson: the memory that its table of tiers names for a CPU
MINUTES = 15
SILENCE_S = 20


@dataclass(frozen=True)
class Record:
    """What was measured while one lesson ran at full size."""

    minutes: float
    memory_gib: int
    held: bool
    anonymous_bytes: int
    resident_bytes: int
    longest_silence_s: float
    cells_over_20_s: dict[str, float]
    machine: dict


def shortcomings(run: Run, record: Record) -> list[str]:
    """List why a lesson does not pass, one line per reason."""
    found = [run.error] if run.error else []
    if record.minutes > MINUTES:
        found.append(f"{run.name} took {record.minutes:.1f} minutes: expected at most {MINUTES}")
    if not record.held and record.anonymous_bytes > record.memory_gib * 2**30:
        taken = record.anonymous_bytes / 2**30
        found.append(f"{run.name} took {taken:.1f} GiB without mapped files: expected at most {record.memory_gib}")
    found += [
        f"{run.name}, cell {cell.number}: silent for {cell.silence_s:.0f} s: expected output every {SILENCE_S} s"
        for cell in run.cells
        if cell.silence_s > SILENCE_S
    ]
    return found


def run_lesson(path: Path, checkpoint: Path) -> tuple[Run, Record]:
    """Run one lesson on the checkpoint, without a quantised copy at the start."""
    quantised = FOLDER / "quantised"
    shutil.rmtree(quantised, ignore_errors=True)
    memory_gib = MEMORY_GIB[path.stem[:2]]
    watched = LimitedMemory(memory_gib * 2**30)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "MISTRAL_LAB_MODEL": str(checkpoint),
        "MISTRAL_LAB_CACHE": str(quantised),
    }
    run = execute(path, environment=environment, timeout_s=60 * MINUTES, watch=watched)
    shutil.rmtree(quantised, ignore_errors=True)
    record = Record(
        minutes=round(run.seconds / 60, 1),
        memory_gib=memory_gib,
        held=watched.held,
        anonymous_bytes=watched.anonymous_bytes,
        resident_bytes=watched.resident_bytes,
        longest_silence_s=round(max(cell.silence_s for cell in run.cells), 1),
        cells_over_20_s={str(cell.number): round(cell.seconds, 1) for cell in run.cells if cell.seconds > 20},
        machine=asdict(Machine.here()),
    )
    return run, record


def keep(name: str, record: Record) -> None:
    """Write the record of one lesson beside those of the others."""
    records = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.is_file() else {}
    records[name] = asdict(record)
    write_whole(RECORDS, json.dumps(records, indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Run the lessons named on the command line, or all; exit with 1 where one does not pass."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("lessons", nargs="*", metavar="LESSON", help="its two digits, as 01 (default: all)")
    parser.add_argument("--checkpoint", type=Path, default=FOLDER / MODEL, help="created where it is missing")
    options = parser.parse_args()
    chosen = options.lessons or list(MEMORY_GIB)
    if unknown := set(chosen) - set(MEMORY_GIB):
        parser.error(f"no 7B tier on a CPU: {', '.join(sorted(unknown))}; expected some of {', '.join(MEMORY_GIB)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not (options.checkpoint / "config.json").is_file():  # written last
        if (free := shutil.disk_usage(FOLDER).free) < NEEDED_BYTES:
            sys.exit(f"the disk has {free / 1e9:.0f} GB free: full size needs {NEEDED_BYTES / 1e9:.0f} GB")
        write(PRESETS[MODEL], options.checkpoint, bits=16)
    failures = []
    for path in notebook_files.lessons():
        if path.stem[:2] in chosen:
            run, record = run_lesson(path, options.checkpoint)
            print(
                f"{run.name}: {record.minutes} minutes, {record.anonymous_bytes / 2**30:.1f} GiB without mapped files, "
                f"{record.resident_bytes / 2**30:.1f} GiB with them, "
                f"{'held to' if record.held else 'not held to'} {record.memory_gib} GiB",
                flush=True,
            )
            found = shortcomings(run, record)
            failures += found
            if not found and record.held:
                keep(run.name, record)
    exit_if_failed(failures)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
