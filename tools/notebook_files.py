"""What the tools share: where the lessons are, their metadata, the public address, and writing a notebook."""

import tomllib
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from mistral_lab.files import write_whole

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


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook whole or not at all."""
    write_whole(path, nbformat.writes(notebook) + "\n")
