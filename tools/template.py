"""What every lesson opens with: a title with a Colab badge, then the set-up cell.

Start a lesson:  python tools/template.py 02_grouped_query_attention "Grouped-query attention"
"""

import argparse
import re
import sys

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from notebook_files import METADATA, NOTEBOOKS, repository, write

SETUP_TAG = "nbval-skip"

_BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{slug}/blob/main/notebooks/{name}.ipynb)"
)

# Colab has torch, numpy, transformers and ipywidgets already, and --no-deps leaves them as they are. Usually it has
# PEFT too, which lesson 8 needs.
_SETUP = """\
# Installs the lab where it is missing, as on Colab, and changes nothing else.
from importlib.util import find_spec

if find_spec("mistral_lab") is None:
    %pip install --quiet --no-deps git+{address}
    for package in ("bitsandbytes", "peft"):
        if find_spec(package) is None:
            %pip install --quiet --no-deps {{package}}"""


def badge(name: str, address: str) -> str:
    """The line of Markdown with which a reader opens the lesson `name` of the repository at `address` in Colab."""
    return _BADGE.format(slug=address.removeprefix("https://github.com/"), name=name)


def setup_source(address: str) -> str:
    """The source of the set-up cell for the repository at `address`."""
    return _SETUP.format(address=address)


def new_lesson(name: str, title: str, address: str) -> NotebookNode:
    """Make a notebook that holds only what every lesson opens with."""
    opening = new_markdown_cell(f"# {int(name[:2])} · {title}\n\n{badge(name, address)}", id="title")
    setup = new_code_cell(setup_source(address), id="set-up", metadata={"tags": [SETUP_TAG]})
    return new_notebook(cells=[opening, setup], metadata=METADATA)


def main() -> None:
    """Start a lesson, unless it exists already."""
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
