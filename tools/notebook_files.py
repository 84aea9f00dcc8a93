"""What the tools share: where the lessons are, their metadata, the public address, and writing a file whole."""

import os
import tomllib
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).parent.parent
PYPROJECT = ROOT / "pyproject.toml"
NOTEBOOKS = ROOT / "notebooks"

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

# The same in every lesson, so that running one on another Python changes nothing but outputs.
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def lessons() -> list[Path]:
    """All lessons, in order."""
    return sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))


def repository() -> str:
    """The public address of the repository, from pyproject.toml; badges and set-up cells are made from it."""
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
