"""Run one lesson from top to bottom in a kernel of its own."""

import os
import subprocess
import sys
import time
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

# On Linux VmHWM is the peak of this program alone; ru_maxrss begins with the peak of the process that started it.
# macOS has only ru_maxrss, there in bytes.
_PEAK = """\
import os, re, resource
if os.path.exists("/proc/self/status"):
    print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"""


@dataclass(frozen=True)
class Run:
    """What became of one lesson: the notebook with its outputs, and `error` in one line where a cell failed."""

    name: str
    notebook: NotebookNode
    code_cells: int
    seconds: float
    peak_bytes: int | None
    error: str | None


def bundled_environment() -> dict[str, str]:
    """The environment in which a lesson uses the bundled models and no network."""
    chosen = {name: value for name, value in os.environ.items() if name != "MISTRAL_LAB_MODEL"}
    return chosen | {"HF_HUB_OFFLINE": "1"}


def execute(path: Path, *, environment: dict[str, str], python: str = sys.executable) -> Run:
    """Run a lesson, one line of progress a cell. A cell that fails ends it; the cells after it hold no output.

    Args:
        path: the lesson; it is read, not written. The kernel works in its folder, as in JupyterLab.
        environment: the kernel's environment variables.
        python: the kernel's interpreter, which needs ipykernel.
    """

    class Kernel(AsyncKernelManager):
        """A kernel of that interpreter, whatever kernels are registered on this machine."""

        kernel_spec = KernelSpec(argv=[python, "-m", "ipykernel_launcher", "-f", "{connection_file}"])

    notebook = nbformat.read(path, as_version=4)
    code = [(index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    for _, cell in code:
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        kernel_manager_class=Kernel,
        timeout=CELL_TIMEOUT_S,
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
    )
    error = peak_bytes = None
    began = time.perf_counter()
    # What the kernel's own log says is not the lesson's; what cells print to standard error goes to their outputs.
    with client.setup_kernel(env=environment, stderr=subprocess.DEVNULL):
        for index, cell in code:
            place = f"{path.stem}, cell {index + 1} of {len(notebook.cells)}"
            print(f"{place} ...", end="", flush=True)
            cell_began = time.perf_counter()
            try:
                client.execute_cell(cell, index)
            except CellExecutionError as failure:
                error = f"{place}: {failure.ename}: {failure.evalue.strip().partition(chr(10))[0]}"
            except CellTimeoutError:
                error = f"{place}: took more than {CELL_TIMEOUT_S} s"
            except DeadKernelError:
                error = f"{place}: the kernel died, perhaps for want of memory"
            print(f" {'failed after ' if error else ''}{time.perf_counter() - cell_began:.1f} s", flush=True)
            if error:
                break
        else:
            peak_bytes = _peak_bytes(client)
    return Run(path.stem, notebook, len(code), time.perf_counter() - began, peak_bytes, error)


def _peak_bytes(client: NotebookClient) -> int:
    """The largest resident memory that the kernel's process has had."""
    probe = new_code_cell(_PEAK)
    client.nb.cells.append(probe)
    client.execute_cell(probe, len(client.nb.cells) - 1)
    return int(client.nb.cells.pop().outputs[0].text)
