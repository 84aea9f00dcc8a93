"""How a lesson is laid out, in the first edition and in the second. A rule yields one line per problem."""

import ast
import builtins
import re
from collections.abc import Iterator

from nbformat import NotebookNode
from notebook_cells import (
    body,
    bound_names,
    code_cells,
    code_lines,
    inner_names,
    is_explorer,
    is_picture,
    known_names,
    words_in,
)

import notebook_files

MAX_WORDS = 1_800
CELLS = range(20, 46)
# The sections in which a reader tries things. They are for a second sitting and are counted separately.
PRACTICE = ("## Explore", "## Exercises")
PRACTICE_MAX_WORDS = 700
PRACTICE_MAX_CELLS = 14
# The second edition: these lessons are laid out for someone who wants to understand, in the order of CONTRIBUTING.md.
SECOND_EDITION = ("01_", "02_", "03_")
MAIN_MAX_WORDS, MAIN_MAX_LINES, CELL_MAX_LINES, DEEPER_MAX_WORDS = 1_500, 250, 20, 800
CODE_MAX_WIDTH = 92  # what JupyterLab shows in a window of 1,280 pixels, its file browser open
FIRST_PICTURE_BY, LEAST_CHECKS = 4, 3
ARTICLE = "《Mistral AI：欧洲AI新贵如何用开源挑战OpenAI？》"

CHECK = re.compile(r"^\w+ = checks\.\w+\(\w+\)$", re.MULTILINE)

Problems = Iterator[str]


def shape(notebook: NotebookNode, name: str) -> Problems:
    """A lesson is read in one sitting, with what belongs to its edition in its place."""
    yield from layout(notebook) if name.startswith(SECOND_EDITION) else first_edition(notebook)


def first_edition(notebook: NotebookNode) -> Problems:
    """20 to 45 cells and 1,800 words of prose. Exploring and exercises are a second, shorter sitting."""
    practice = practice_cells(notebook)
    reading = [cell for cell in notebook.cells if not any(cell is other for other in practice)]
    if len(reading) not in CELLS:
        yield f"notebook: {len(reading)} cells, expected {CELLS.start} to {CELLS.stop - 1}"
    if (words := words_in(reading)) > MAX_WORDS:
        yield f"notebook: {words} words of prose, expected at most {MAX_WORDS}"
    if len(practice) > PRACTICE_MAX_CELLS:
        yield f"notebook: {len(practice)} cells to explore and practise, expected at most {PRACTICE_MAX_CELLS}"
    if (words := words_in(practice)) > PRACTICE_MAX_WORDS:
        yield f"notebook: {words} words to explore and practise, expected at most {PRACTICE_MAX_WORDS}"


def practice_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells of the sections that PRACTICE names, their headings included."""
    found, inside = [], False
    for cell in notebook.cells:
        heading = cell.source.startswith("## ") and cell.cell_type == "markdown"
        inside = cell.source.startswith(PRACTICE) if heading else inside
        if inside:
            found.append(cell)
    return found


def layout(notebook: NotebookNode) -> Problems:
    """A short main path on which the reader sees, moves, builds and measures; what is for later is folded."""
    deeper = notebook_files.deeper_cells(notebook)
    main = main_path(notebook)
    if (words := words_in(main)) > MAIN_MAX_WORDS:
        yield f"notebook: {words} words on the main path, expected at most {MAIN_MAX_WORDS}"
    code = [cell for cell in main if cell.cell_type == "code"][1:]  # without the set-up cell
    if (lines := sum(map(code_lines, code))) > MAIN_MAX_LINES:
        yield f"notebook: {lines} lines of code on the main path, expected at most {MAIN_MAX_LINES}"
    for number, cell in code_cells(notebook)[1:]:
        lines = cell.source.strip().splitlines()
        if len(lines) > CELL_MAX_LINES:
            yield f"cell {number}: {len(lines)} lines, expected at most {CELL_MAX_LINES}"
        if (width := max(map(len, lines), default=0)) > CODE_MAX_WIDTH:
            yield f"cell {number}: a line of {width} characters, expected at most {CODE_MAX_WIDTH}"

    pictured = [number for number, cell in code_cells(notebook) if any(map(is_picture, cell.get("outputs", [])))]
    if not pictured or pictured[0] > FIRST_PICTURE_BY:
        yield f"notebook: the first picture is in cell {pictured[:1]}, expected by cell {FIRST_PICTURE_BY}"
    moving = [place for place, cell in enumerate(main, 1) if is_explorer(cell)]
    if not moving or moving[0] > len(main) / 3:
        yield f"notebook: the first explorer is cell {moving[:1]} of {len(main)}, expected within the first third"
    checked = [place for place, cell in enumerate(main, 1) if CHECK.search(cell.source) and cell.cell_type == "code"]
    if len(checked) < LEAST_CHECKS or checked[0] > len(main) / 2:
        yield f"notebook: checks in cells {checked} of {len(main)}, expected {LEAST_CHECKS}, one in the first half"

    if not deeper:
        yield f"notebook: no section {notebook_files.DEEPER!r}"
    elif (words := words_in(deeper)) > DEEPER_MAX_WORDS:
        yield f"notebook: {words} words to dig deeper, expected at most {DEEPER_MAX_WORDS}"
    for cell in deeper:
        if cell.source.startswith("### ") and cell.cell_type == "markdown" and "\n" in cell.source.strip():
            yield f"cell {cell.id!r}: holds more than the heading, and only what is below its cell is folded"
    yield from stands_alone(notebook)
    if ARTICLE not in "".join(cell.source for cell in notebook.cells):
        yield f"notebook: does not name the article, {ARTICLE}"


def stands_alone(notebook: NotebookNode) -> Problems:
    """A part of "Dig deeper" needs, beside itself, the names of the first code cell and of the one that loads `lab`."""
    code = [cell for cell in main_path(notebook) if cell.cell_type == "code"][1:]  # without the set-up cell
    loading = [cell for cell in code[1:] if "lab" in bound_names(body(cell))][:1]
    given = set(dir(builtins)).union(*(known_names(cell) for cell in [*code[:1], *loading]))
    known = set(given)
    for cell in notebook_files.deeper_cells(notebook):
        if cell.cell_type == "markdown" and cell.source.startswith("### "):
            known = set(given)
        elif cell.cell_type == "code":
            known |= known_names(cell)
            read = {node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)}
            if unknown := sorted(read - known - inner_names(cell)):
                yield f"cell {cell.id!r}: needs {', '.join(unknown)} from another part of the lesson"


def main_path(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells before "Dig deeper"; the references after it are looked up, not read."""
    deeper = notebook_files.deeper_cells(notebook)
    return notebook.cells[: notebook.cells.index(deeper[0])] if deeper else notebook.cells
