"""Run one lesson from top to bottom in a kernel of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

CELL_TIMEOUT_S = 300

# On Linux VmHWM is the peak of this program alone; ru_maxrss would start from the peak of the process that started it.
# macOS has only ru_maxrss, in bytes.
_PEAK = """\
import os, re, resource
if os.path.exists("/proc/self/status"):
    print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"""


@dataclass(frozen=True)
class CellRun:
    """One code cell: its number among all cells (from 1), how long it ran, and its longest time without output."""

    number: int
    seconds: float
    silence_s: float


@dataclass(frozen=True)
class Run:
    """The run of one lesson: the notebook with its outputs, and `error`, one line, where a cell failed."""

    name: str
    notebook: NotebookNode
    code_cells: int
    seconds: float
    peak_bytes: int | None
    error: str | None
    cells: tuple[CellRun, ...] = ()


def bundled_environment() -> dict[str, str]:
    """The environment in which a lesson uses the bundled models and no network."""
    chosen = {name: value for name, value in os.environ.items() if name != "MISTRAL_LAB_MODEL"}
    return chosen | {"HF_HUB_OFFLINE": "1"}


class _Client(NotebookClient):
    """A client that notes when the running cell last sent something: a line, a picture or a step of a progress bar."""

    heard = longest_silence_s = 0.0

    def process_message(self, msg: dict, cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        """Note the time, then process the message as usual."""
        self.listen()
        return super().process_message(msg, cell, cell_index)

    def listen(self) -> None:
        """Update the longest silence with the time since the last message."""
        now = time.perf_counter()
        self.longest_silence_s, self.heard = max(self.longest_silence_s, now - self.heard), now

    def begin(self) -> None:
        """Start counting again."""
        self.heard, self.longest_silence_s = time.perf_counter(), 0.0


def execute(
    path: Path,
    *,
    environment: dict[str, str],
    timeout_s: float = CELL_TIMEOUT_S,
    before: str = "",
    python: str = sys.executable,
    watch: Callable[[int], AbstractContextManager] = lambda pid: nullcontext(),
) -> Run:
    """Run a lesson, with one line of progress per cell. A cell that fails ends the run; later cells have no output.

    Args:
        path: the lesson; it is read, not written. The kernel runs in its folder, as in JupyterLab.
        environment: the kernel's environment variables.
        timeout_s: the time limit of each cell.
        before: code that the kernel runs before the lesson, in a cell that the notebook does not keep.
        python: the kernel's interpreter, which needs ipykernel.
        watch: is called with the kernel's process id and returns a context manager, which is entered before the first
            cell and left after the last.
    """

    class Kernel(AsyncKernelManager):
        """A kernel of that interpreter, whichever kernels are registered on this machine."""

        kernel_spec = KernelSpec(argv=[python, "-m", "ipykernel_launcher", "-f", "{connection_file}"])

    notebook = nbformat.read(path, as_version=4)
    code = [(index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    for _, cell in code:
        cell.outputs, cell.execution_count = [], None
    client = _Client(
        notebook,
        kernel_manager_class=Kernel,
        timeout=timeout_s,
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
    )
    error, peak_bytes, cells = None, None, []
    began = time.perf_counter()
    # The kernel's own log is no part of the lesson; what cells print to standard error goes to their outputs.
    with client.setup_kernel(env=environment, stderr=subprocess.DEVNULL), watch(client.km.provisioner.pid):
        if before:
            _run_aside(client, before)
        for index, cell in code:
            place = f"{path.stem}, cell {index + 1} of {len(notebook.cells)}"
            print(f"{place} ...", end="", flush=True)
            cell_began = time.perf_counter()
            client.begin()
            try:
                client.execute_cell(cell, index)
            except CellExecutionError as failure:
                error = f"{place}: {failure.ename}: {failure.evalue.strip().partition(chr(10))[0]}"
            except CellTimeoutError:
                error = f"{place}: took more than {timeout_s} s"
            except DeadKernelError:
                error = f"{place}: the kernel died, perhaps because memory ran out"
            client.listen()
            cells.append(CellRun(index + 1, time.perf_counter() - cell_began, client.longest_silence_s))
            print(f" {'failed after ' if error else ''}{cells[-1].seconds:.1f} s", flush=True)
            if error:
                break
        else:
            # The largest resident memory that the kernel's process ever had.
            peak_bytes = int(_run_aside(client, _PEAK).outputs[0].text)
    return Run(path.stem, notebook, len(code), time.perf_counter() - began, peak_bytes, error, tuple(cells))


def exit_if_failed(failures: list[str]) -> None:
    """Exit with status 1 and one line per failure, if there is any."""
    if failures:
        sys.exit("\n".join(f"FAILED {failure}" for failure in failures))


def _run_aside(client: NotebookClient, source: str) -> NotebookNode:
    """Run code in a cell that the notebook does not keep."""
    client.nb.cells.append(new_code_cell(source))
    try:
        return client.execute_cell(client.nb.cells[-1], len(client.nb.cells) - 1)
    finally:
        client.nb.cells.pop()
