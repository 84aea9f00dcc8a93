"""The rules that every lesson keeps, checked on its file without running it. A rule yields one line per problem.

Cells are numbered from 1, Markdown included. How a lesson is laid out stands in notebook_shape.py.
"""

import ast
import copy
import re
from collections.abc import Callable

import nbformat
from nbformat import NotebookNode
from notebook_cells import (
    alt_text,
    body,
    bound_names,
    called,
    code_cells,
    exported_names,
    output_text,
    own_text,
    printed_text,
)
from notebook_shape import Problems, shape

import notebook_files
import template

MAX_BYTES = 1_000_000
WIDTH_AS_H = re.compile(r"\(2?h, ?d\)|\(d, ?h\)|width \$h\$")
TAGS = {template.SETUP_TAG, "nbval-ignore-output", "nbval-check-output", "raises-exception"}

# Paths that are true on one machine only. No URL matches, because in a URL a letter or a slash precedes the path.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/~-])/(?:root|home|Users|tmp|work|opt|usr|var|mnt|private|content|kaggle)/[\w.-]+|\b[A-Z]:\\\w+"
)


def problems(notebook: NotebookNode, name: str) -> list[str]:
    """List everything that is wrong with the lesson called `name`."""
    found = list(schema(notebook, name))
    return found or [problem for rule in RULES for problem in rule(notebook, name)]


def schema(notebook: NotebookNode, name: str) -> Problems:
    """The notebook has format 4.5, and each cell its own id. The other rules rely on both."""
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        yield f"format {notebook.nbformat}.{notebook.nbformat_minor}, expected 4.5, in which cells have ids"
        return
    for number, cell in enumerate(notebook.cells, 1):
        kind = cell.get("cell_type")
        if kind not in ("markdown", "code"):
            yield f"cell {number}: is of type {kind!r}, expected 'markdown' or 'code'"
            continue
        for error in nbformat.validator.iter_validate(cell, ref=f"{kind}_cell", version=4, version_minor=5):
            yield f"cell {number}: {error.message}"
    seen = set()
    for number, cell in enumerate(notebook.cells, 1):
        if cell.get("id") in seen:
            yield f"cell {number}: has the same id as another cell, {cell.id!r}"
        seen.add(cell.get("id"))


def opening(notebook: NotebookNode, name: str) -> Problems:
    """First comes the title with its badge, then the set-up cell, both as tools/template.py writes them."""
    address = notebook_files.repository()
    title, setup = notebook.cells[:2]
    if title.cell_type != "markdown" or not title.source.startswith("# "):
        yield "cell 1: expected Markdown that starts with the title, '# ...'"
    if title.source.splitlines().count(template.badge(name, address)) != 1:
        yield f"cell 1: expected one line with this badge: {template.badge(name, address)}"
    if setup.cell_type != "code" or setup.source != template.setup_source(address):
        yield "cell 2: expected the set-up cell of tools/template.py, with the address in pyproject.toml"
    if setup.metadata.get("tags") != [template.SETUP_TAG]:
        yield f"cell 2: expected {template.SETUP_TAG} as its only tag, got {setup.metadata.get('tags')}"
    if setup.get("outputs"):
        yield "cell 2: has an output, but the set-up cell prints nothing where the lab is installed"


def letters(notebook: NotebookNode, name: str) -> Problems:
    """One letter has one meaning in all lessons: the feed-forward width is f, because h is a head."""
    for number, cell in enumerate(notebook.cells, 1):
        if found := WIDTH_AS_H.search(cell.source):
            yield f"cell {number}: {found.group()!r}, expected f for the feed-forward width"


def length(notebook: NotebookNode, name: str) -> Problems:
    """A lesson stays below 1 MB."""
    size = len(nbformat.writes(notebook).encode())
    if size >= MAX_BYTES:
        number, _ = max(enumerate(notebook.cells, 1), key=lambda pair: len(str(pair[1])))
        yield f"notebook: {size:,} bytes, expected fewer than {MAX_BYTES:,}; the largest is cell {number}"


def counts(notebook: NotebookNode, name: str) -> Problems:
    """Every code cell was run, in order, in one kernel."""
    for expected, (number, cell) in enumerate(code_cells(notebook), 1):
        if not cell.source.strip():
            yield f"cell {number}: is an empty code cell"
        elif cell.execution_count is None:
            yield f"cell {number}: was not run; run `make outputs`"
        elif cell.execution_count != expected:
            yield f"cell {number}: execution count {cell.execution_count}, expected {expected}; run `make outputs`"


def metadata(notebook: NotebookNode, name: str) -> Problems:
    """Nothing depends on who saved the file: metadata as every lesson has it, and tags that nbval knows."""
    if "widgets" in notebook.metadata:
        yield "notebook: keeps widget state in metadata.widgets; run `make outputs`"
    folded = copy.deepcopy(notebook)
    notebook_files.fold_deeper(folded)
    if folded != notebook:
        yield f"notebook: metadata {dict(notebook.metadata)}, expected {dict(folded.metadata)}; run `make outputs`"
    for number, cell in enumerate(notebook.cells, 1):
        if extra := cell.metadata.keys() - {"tags", notebook_files.FOLDED, "id"}:
            yield f"cell {number}: metadata has {sorted(extra)}, expected nothing but tags"
        if unknown := set(cell.metadata.get("tags", [])) - TAGS:
            yield f"cell {number}: unknown tags {sorted(unknown)}, expected some of {sorted(TAGS)}"
        if number != 2 and template.SETUP_TAG in cell.metadata.get("tags", []):
            yield f"cell {number}: is tagged {template.SETUP_TAG}, which only the set-up cell may be"
        if cell.cell_type == "code" and re.search(r"^\s*#+\s*(NBVAL|PYTEST_VALIDATE)_", cell.source, re.MULTILINE):
            yield f"cell {number}: controls nbval with a comment; use a tag"


def outputs(notebook: NotebookNode, name: str) -> Problems:
    """A cell that prints or shows something has an output; no output is an error, a warning or a progress bar."""
    for number, cell in code_cells(notebook):
        if not cell.outputs and any(called(statement) in ("print", "show", "display") for statement in body(cell)):
            yield f"cell {number}: prints or shows something, but has no output; run `make outputs`"
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
                yield f"cell {number}: has an error as output, {output.ename}: {output.evalue}"
            if output.get("name") == "stderr":
                yield f"cell {number}: prints to standard error: {output.text.strip()[:80]!r}"


def paths(notebook: NotebookNode, name: str) -> Problems:
    """No cell and no output shows a path of the machine that it ran on."""
    for number, cell in enumerate(notebook.cells, 1):
        for text in (cell.source, *map(output_text, cell.get("outputs", []))):
            if match := MACHINE_PATH.search(text):
                yield f"cell {number}: shows a path of one machine, {match[0]!r}"


def pictures(notebook: NotebookNode, name: str) -> Problems:
    """Each picture has an alt text, and below it another sentence in the font of the page."""
    for number, cell in code_cells(notebook):
        for place, output in enumerate(cell.outputs):
            if any(kind.startswith("image/") for kind in output.get("data", {})):
                alt = " ".join(alt_text(output).split())
                if len(alt.split()) < 5 or not alt.endswith((".", "!", "?")):
                    yield f"cell {number}: a picture's alt text is no sentence: {alt!r}; use figures.show"
                else:
                    below = cell.outputs[place + 1].get("data", {}) if place + 1 < len(cell.outputs) else {}
                    caption = " ".join(below.get("text/markdown", "").split())
                    if not caption:
                        yield f"cell {number}: a picture has no caption below it; use figures.show or an explorer"
                    elif caption == alt:
                        yield f"cell {number}: a caption repeats the alt text: {alt!r}"
                if alt and alt in " ".join(printed_text(cell).split()):
                    yield f"cell {number}: prints a picture's alt text again: {alt!r}"


def views(notebook: NotebookNode, name: str) -> Problems:
    """No output refers to a widget: without its kernel it would be an error in place of the picture."""
    for number, cell in code_cells(notebook):
        if any(notebook_files.WIDGET_VIEW in output.get("data", {}) for output in cell.outputs):
            yield f"cell {number}: keeps the view of a widget; run `make outputs`"


def compared(notebook: NotebookNode, name: str) -> Problems:
    """nbval compares at least half of the cells that print text of their own."""
    printing = [(number, cell) for number, cell in code_cells(notebook) if own_text(cell)]
    ignored = [number for number, cell in printing if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    if 2 * len(ignored) > len(printing):
        yield f"notebook: nbval ignores {len(ignored)} of {len(printing)} cells that print text: cells {ignored}"


def names(notebook: NotebookNode, name: str) -> Problems:
    """No cell gives another meaning to a name that the package exports."""
    exported = exported_names(notebook_files.ROOT / "mistral_lab")
    for number, cell in code_cells(notebook):
        for bound in sorted(bound_names(body(cell)) & exported.keys()):
            yield f"cell {number}: defines {bound!r} again, which mistral_lab/{exported[bound]} defines"


def source(notebook: NotebookNode, name: str) -> Problems:
    """Plain Python: no magic or shell command outside the set-up cell, no semicolon that hides an output."""
    for number, cell in code_cells(notebook)[1:]:
        if re.search(r"^\s*[!%]", cell.source, re.MULTILINE):
            yield f"cell {number}: holds a magic or shell command; only the set-up cell may"
        elif cell.source.rstrip().endswith(";"):
            yield f"cell {number}: ends with a semicolon"
        else:
            try:
                ast.parse(cell.source)
            except SyntaxError as error:
                yield f"cell {number}: is not Python: {error.msg} in line {error.lineno}"


RULES: tuple[Callable[[NotebookNode, str], Problems], ...] = (
    opening,
    letters,
    length,
    shape,
    counts,
    metadata,
    outputs,
    paths,
    pictures,
    views,
    compared,
    names,
    source,
)
