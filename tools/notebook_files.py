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

DEEPER = "## Dig deeper"
FOLDED = "jp-MarkdownHeadingCollapsed"


def lessons() -> list[Path]:
    """All lessons, in order."""
    return sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))


def repository() -> str:
    """The public address of the repository, from pyproject.toml; badges and set-up cells are made from it."""
    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook whole or not at all."""
    write_whole(path, nbformat.writes(notebook) + "\n")


def deeper_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells of the section "Dig deeper", from its heading to the next one of its level."""
    found, inside = [], False
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            inside = cell.source.startswith(DEEPER)
        if inside:
            found.append(cell)
    return found


def fold_deeper(notebook: NotebookNode) -> None:
    """Give a notebook the lessons' metadata, in which each part of "Dig deeper" is folded until a reader opens it.

    JupyterLab reads `jp-MarkdownHeadingCollapsed` at the heading's cell. Colab reads a list of the headings' ids in
    `metadata.colab`, and looks for an id in a cell's metadata.
    """
    headings = [
        cell for cell in deeper_cells(notebook) if cell.cell_type == "markdown" and cell.source.startswith("### ")
    ]
    for cell in notebook.cells:
        kept = {key: value for key, value in cell.metadata.items() if key not in (FOLDED, "id")}
        folding = {FOLDED: True, "id": cell.id} if any(cell is heading for heading in headings) else {}
        cell.metadata = nbformat.from_dict(kept | folding)
    folded = {"colab": {"collapsed_sections": [cell.id for cell in headings]}} if headings else {}
    notebook.metadata = nbformat.from_dict(METADATA | folded)
