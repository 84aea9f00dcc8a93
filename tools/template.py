"""What every lesson opens with: a title with a Colab badge, then the set-up cell.

Start a lesson:  python tools/template.py 02_grouped_query_attention "Grouped-query attention"
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mistral_lab.files import write_whole

ROOT = Path(__file__).parent.parent
PYPROJECT = ROOT / "pyproject.toml"
NOTEBOOKS = ROOT / "notebooks"

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
SETUP_TAG = "nbval-skip"

# Fixed, so that running a lesson on another Python changes nothing but outputs.
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

_BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{slug}/blob/main/notebooks/{name}.ipynb)"
)

# On Colab torch, numpy, transformers and ipywidgets are there already: --no-deps leaves them as they are. PEFT is, as a
# rule, and lesson 8 needs it.
_SETUP = """\
# Installs the lab where it is missing, as on Colab, and changes nothing else.
from importlib.util import find_spec

if find_spec("mistral_lab") is None:
    %pip install --quiet --no-deps git+{address}
    for package in ("bitsandbytes", "peft"):
        if find_spec(package) is None:
            %pip install --quiet --no-deps {{package}}"""


def lessons() -> list[Path]:
    """All lessons, in order."""
    return sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))


def repository() -> str:
    """The public address: it stands once, in pyproject.toml, and badges and set-up cells are made from it."""
    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def badge(name: str, address: str) -> str:
    """The line of Markdown that opens the lesson `name` of the repository at `address` in Colab."""
    return _BADGE.format(slug=address.removeprefix("https://github.com/"), name=name)


def setup_source(address: str) -> str:
    """The source of the set-up cell for the repository at `address`."""
    return _SETUP.format(address=address)


def new_lesson(name: str, title: str, address: str) -> NotebookNode:
    """A notebook that holds only what every lesson opens with."""
    opening = new_markdown_cell(f"# {int(name[:2])} · {title}\n\n{badge(name, address)}", id="title")
    setup = new_code_cell(setup_source(address), id="set-up", metadata={"tags": [SETUP_TAG]})
    return new_notebook(cells=[opening, setup], metadata=METADATA)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook whole or not at all."""
    write_whole(path, nbformat.writes(notebook) + "\n")


def main() -> None:
    """Start a lesson, unless it exists."""
    parser = argparse.ArgumentParser(description="Start a lesson from the template.")
    parser.add_argument("name", help="file name without .ipynb, e.g. 02_grouped_query_attention")
    parser.add_argument("title", help='e.g. "Grouped-query attention"')
    arguments = parser.parse_args()
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", arguments.name):
        sys.exit(f"a lesson's name is two digits, '_' and words, as 02_grouped_query_attention; got {arguments.name!r}")
    path = NOTEBOOKS / f"{arguments.name}.ipynb"
    if path.exists():
        sys.exit(f"notebooks/{path.name} exists already; nothing was changed")
    write(new_lesson(arguments.name, arguments.title, repository()), path)
    print(f"started notebooks/{path.name}")


if __name__ == "__main__":
    main()
