"""`make outputs`: run the lessons and keep their outputs, the one way to refresh what is committed."""

import subprocess
import sys
from pathlib import Path

import nbformat

import template
from execute import bundled_environment, execute
from mistral_lab.files import write_whole


def refresh(path: Path) -> str | None:
    """Run a lesson in place; return what failed, in one line. A lesson that fails or is interrupted stays as it was."""
    run = execute(path, environment=bundled_environment())
    if run.error:
        return run.error
    run.notebook.metadata = nbformat.from_dict(template.METADATA)
    for cell in run.notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(template.WIDGET_VIEW, None)  # it means nothing without this kernel
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
    paths = [Path(name).resolve() for name in sys.argv[1:]] or template.lessons()
    failures = [failure for path in paths if (failure := refresh(path))]
    if failures:
        sys.exit("\n".join(f"FAILED {failure} (left as it was)" for failure in failures))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the lesson that was running stays as it was")
