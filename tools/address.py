"""`make address REPO=owner/name`: change the public address in pyproject.toml and in every lesson."""

import re
import sys

import nbformat
from nbformat import NotebookNode

import notebook_files
import template
from mistral_lab.files import write_whole

_SLUG = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,37}[A-Za-z0-9])?/[A-Za-z0-9._-]{1,100}"
_COLAB_LINE = r"^\[!\[Open in Colab\].*$"


def parse(slug: str) -> str:
    """Turn `owner/name` into its address on GitHub, the only host that Colab's badge opens.

    Raises:
        ValueError: the text is not of that form.
    """
    name = slug.partition("/")[2]
    if not re.fullmatch(_SLUG, slug) or name in (".", "..") or name.endswith(".git"):
        raise ValueError(f"REPO is owner/name as on GitHub: make address REPO=mistral-lab/mistral-lab; got {slug!r}")
    return f"https://github.com/{slug}"


def readdress_project(text: str, address: str) -> str:
    """Put another public address into the text of pyproject.toml."""
    text, count = re.subn(r'^(Repository = ").*(")$', rf"\g<1>{address}\g<2>", text, flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"pyproject.toml has {count} lines 'Repository = \"...\"', expected one under [project.urls]")
    return text


def readdress(notebook: NotebookNode, name: str, address: str) -> None:
    """Put another public address into a lesson's badge and set-up cell, in place."""
    opening, setup = notebook.cells[:2]
    badge = template.badge(name, address)
    opening.source, count = re.subn(_COLAB_LINE, lambda _: badge, opening.source, flags=re.MULTILINE)
    if count != 1 or template.SETUP_TAG not in setup.metadata.get("tags", []):
        raise ValueError(
            f"{name}: expected one Colab badge in cell 1 and the set-up cell, tagged {template.SETUP_TAG}, as cell 2"
        )
    setup.source = template.setup_source(address)


def main() -> None:
    """Rewrite all files that hold the address, or none where one of them is not as expected."""
    if len(sys.argv) != 2:
        sys.exit("usage: make address REPO=owner/name")
    try:
        address = parse(sys.argv[1])
        project = readdress_project(notebook_files.PYPROJECT.read_text(encoding="utf-8"), address)
        notebooks = {path: nbformat.read(path, as_version=4) for path in notebook_files.lessons()}
        for path, notebook in notebooks.items():
            readdress(notebook, path.stem, address)
    except ValueError as error:
        sys.exit(str(error))
    write_whole(notebook_files.PYPROJECT, project)
    for path, notebook in notebooks.items():
        notebook_files.write(notebook, path)
    print(f"pyproject.toml and {len(notebooks)} lessons now say {address}")


if __name__ == "__main__":
    main()
