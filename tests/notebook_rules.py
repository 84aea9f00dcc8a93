"""The rules that every lesson keeps, checked on its file without running it. A rule yields one line per problem.

Cells are numbered from 1, Markdown included.
"""

import ast
import builtins
import copy
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import nbformat
from nbformat import NotebookNode

import notebook_files
import template

MAX_BYTES = 1_000_000
MAX_WORDS = 1_800
CELLS = range(20, 46)
# The sections in which a reader tries things. They are for a second sitting and are counted separately.
PRACTICE = ("## Explore", "## Exercises")
PRACTICE_MAX_WORDS = 700
PRACTICE_MAX_CELLS = 14
# The second edition: these lessons are laid out for someone who wants to understand, in the order of CONTRIBUTING.md.
SECOND_EDITION = ("01_", "02_", "03_")
MAIN_MAX_WORDS, MAIN_MAX_LINES, CELL_MAX_LINES, DEEPER_MAX_WORDS = 1_500, 250, 20, 800
WIDTH_AS_H = re.compile(r"\(2?h, ?d\)|\(d, ?h\)|width \$h\$")
CODE_MAX_WIDTH = 92  # what JupyterLab shows in a window of 800 pixels
FIRST_PICTURE_BY, LEAST_CHECKS = 4, 3
ARTICLE = "《Mistral AI：欧洲AI新贵如何用开源挑战OpenAI？》"
TAGS = {template.SETUP_TAG, "nbval-ignore-output", "nbval-check-output", "raises-exception"}

# Paths that are true on one machine only. No URL matches, because in a URL a letter or a slash precedes the path.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/~-])/(?:root|home|Users|tmp|work|opt|usr|var|mnt|private|content|kaggle)/[\w.-]+|\b[A-Z]:\\\w+"
)

CHECK = re.compile(r"^\w+ = checks\.\w+\(\w+\)$", re.MULTILINE)

Problems = Iterator[str]


def read(path: Path) -> NotebookNode:
    """Read a notebook exactly as it is in its file; nbformat.read would repair what a rule should find."""
    return nbformat.reader.reads(path.read_text(encoding="utf-8"))


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
    """A lesson stays below 1 MB, and is read in one sitting."""
    size = len(nbformat.writes(notebook).encode())
    if size >= MAX_BYTES:
        number, _ = max(enumerate(notebook.cells, 1), key=lambda pair: len(str(pair[1])))
        yield f"notebook: {size:,} bytes, expected fewer than {MAX_BYTES:,}; the largest is cell {number}"
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


def known_names(cell: NotebookNode) -> set[str]:
    """The names that a later cell can use: what this one imports and defines."""
    aliases = [
        alias for node in body(cell) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
    ]
    return bound_names(body(cell)) | {(alias.asname or alias.name).split(".")[0] for alias in aliases}


def inner_names(cell: NotebookNode) -> set[str]:
    """The names that are bound somewhere inside: arguments of functions, and what comprehensions run over."""
    nodes = list(ast.walk(ast.parse(cell.source)))
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.arg for node in nodes if isinstance(node, ast.arg)}


def main_path(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells before "Dig deeper"; the references after it are looked up, not read."""
    deeper = notebook_files.deeper_cells(notebook)
    return notebook.cells[: notebook.cells.index(deeper[0])] if deeper else notebook.cells


def code_lines(cell: NotebookNode) -> int:
    """How many lines of a cell are not blank."""
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def is_picture(output: NotebookNode) -> bool:
    """Whether an output shows a picture."""
    return any(kind.startswith("image/") for kind in output.get("data", {}))


def is_explorer(cell: NotebookNode) -> bool:
    """Whether a cell's last line displays an explorer."""
    return cell.cell_type == "code" and cell.source.rstrip().rpartition("\n")[2].startswith("explorers.")


def practice_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells of the sections that PRACTICE names, their headings included."""
    found, inside = [], False
    for cell in notebook.cells:
        heading = cell.source.startswith("## ") and cell.cell_type == "markdown"
        inside = cell.source.startswith(PRACTICE) if heading else inside
        if inside:
            found.append(cell)
    return found


def words_in(cells: list[NotebookNode]) -> int:
    """Count the words of prose, folded solutions included except for their code."""
    return sum(count_words(cell.source) for cell in cells if cell.cell_type == "markdown")


def count_words(markdown: str) -> int:
    """Count the words that a reader sees, without code blocks, tags and the addresses of links."""
    text = re.sub(r"^```.*?^```|</?[a-zA-Z!][^<>]*>|\]\([^)]*\)", " ", markdown, flags=re.DOTALL | re.MULTILINE)
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


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


def own_text(cell: NotebookNode) -> str:
    """The text that a cell prints or returns, without what stands in or below its pictures."""
    shown = [output.get("data", {}) for output in cell.outputs]
    returned = [
        data.get("text/plain", "")
        for data in shown
        if "text/markdown" not in data and not any(kind.startswith("image/") for kind in data)
    ]
    return "".join([printed_text(cell), *returned]).strip()


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


def code_cells(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    """Each code cell with its number."""
    return [(number, cell) for number, cell in enumerate(notebook.cells, 1) if cell.cell_type == "code"]


def body(cell: NotebookNode) -> list[ast.stmt]:
    """The statements of a cell; none where it is not plain Python, as in the set-up cell."""
    try:
        return ast.parse(cell.source).body
    except SyntaxError:
        return []


def called(statement: ast.stmt) -> str | None:
    """The last part of the name that a statement calls: 'show' for `figures.show(figure, alt)`."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return ast.unparse(statement.value.func).rpartition(".")[2]
    return None


def printed_text(cell: NotebookNode) -> str:
    """What a cell printed."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def output_text(output: NotebookNode) -> str:
    """All text of an output in any form, pictures excluded."""
    data = output.get("data", {})
    shown = [str(value) for kind, value in data.items() if not kind.startswith("image/") or kind == "image/svg+xml"]
    return "\n".join([output.get("text", ""), *shown, *output.get("traceback", [])])


def alt_text(output: NotebookNode) -> str:
    """A picture's alt text, where nbconvert and GitHub look for it."""
    by_kind = [output.metadata[kind] for kind in output.data if kind.startswith("image/") and kind in output.metadata]
    return next((entry["alt"] for entry in [*by_kind, output.metadata] if "alt" in entry), "")


@cache
def exported_names(package: Path) -> dict[str, str]:
    """The public functions, classes and constants of the package, each with its file; those of `training` aside."""
    exported = {}
    for path in sorted(set(package.rglob("[!_]*.py")) - set((package / "training").rglob("*"))):
        module = ast.parse(path.read_text(encoding="utf-8")).body
        defined = bound_names([node for node in module if not isinstance(node, ast.Import | ast.ImportFrom)])
        functions = {node.name for node in module if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for name in defined:
            if not name.startswith("_") and (name in functions or name.isupper()):
                exported[name] = path.name
    return exported


def bound_names(statements: list[ast.stmt]) -> set[str]:
    """The names that statements define in their own scope; importing a name from the package does not define it."""
    bound = set()
    pending: list[ast.AST] = list(statements)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            if not (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mistral_lab"):
                bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Store):
                bound.add(node.id)
        elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            pending += ast.iter_child_nodes(node)
    return bound
