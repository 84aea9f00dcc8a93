"""Where the lessons are, what their files have in common, and how a file is written whole. The other tools use it."""

import os
import tomllib
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).parent.parent
PYPROJECT = ROOT / "pyproject.toml"
NOTEBOOKS = ROOT / "notebooks"

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

# Fixed, so that running a lesson on another Python changes nothing but outputs.
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def lessons() -> list[Path]:
    """All lessons, in order."""
    return sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))


def repository() -> str:
    """The public address: it stands once, in pyproject.toml, and badges and set-up cells are made from it."""
    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: an interruption leaves the old one."""
    unfinished = path.with_name(f".{path.name}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook whole or not at all."""
    replace_text(path, nbformat.writes(notebook) + "\n")
