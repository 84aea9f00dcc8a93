"""`make outputs`: run the lessons and keep their outputs. Committed outputs are refreshed in no other way."""

import subprocess
import sys
from pathlib import Path

import nbformat

import notebook_files
from execute import bundled_environment, execute, exit_if_failed
from mistral_lab.files import write_whole


def refresh(path: Path) -> str | None:
    """Run a lesson in place, or return in one line what failed. A failed or interrupted lesson stays as it was."""
    run = execute(path, environment=bundled_environment() | {"TQDM_DELAY": str(10**6)})  # no bar among the outputs
    if run.error:
        return run.error
    notebook_files.fold_deeper(run.notebook)
    for cell in run.notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(notebook_files.WIDGET_VIEW, None)  # it means nothing without this kernel
    stripped = subprocess.run(
        [sys.executable, "-m", "nbstripout", "--keep-output", "--keep-count", "--keep-id"],
        input=nbformat.writes(run.notebook),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    write_whole(path, stripped.stdout)
    return None


def main() -> None:
    """Refresh the lessons named on the command line, or all; exit with 1 where a cell failed."""
    paths = [Path(name).resolve() for name in sys.argv[1:]] or notebook_files.lessons()
    failures = [failure for path in paths if (failure := refresh(path))]
    exit_if_failed([f"{failure} (left as it was)" for failure in failures])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the lesson that was running stays as it was")
