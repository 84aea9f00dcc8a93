"""What the cells of a notebook hold: their statements, their names, their words, what they print and show."""

import ast
import re
from functools import cache
from pathlib import Path

import nbformat
from nbformat import NotebookNode


def read(path: Path) -> NotebookNode:
    """Read a notebook exactly as it is in its file; nbformat.read would repair what a rule should find."""
    return nbformat.reader.reads(path.read_text(encoding="utf-8"))


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


def own_text(cell: NotebookNode) -> str:
    """The text that a cell prints or returns, without what stands in or below its pictures."""
    shown = [output.get("data", {}) for output in cell.outputs]
    returned = [
        data.get("text/plain", "")
        for data in shown
        if "text/markdown" not in data and not any(kind.startswith("image/") for kind in data)
    ]
    return "".join([printed_text(cell), *returned]).strip()


def output_text(output: NotebookNode) -> str:
    """All text of an output in any form, pictures excluded."""
    data = output.get("data", {})
    shown = [str(value) for kind, value in data.items() if not kind.startswith("image/") or kind == "image/svg+xml"]
    return "\n".join([output.get("text", ""), *shown, *output.get("traceback", [])])


def alt_text(output: NotebookNode) -> str:
    """A picture's alt text, where nbconvert and GitHub look for it."""
    by_kind = [output.metadata[kind] for kind in output.data if kind.startswith("image/") and kind in output.metadata]
    return next((entry["alt"] for entry in [*by_kind, output.metadata] if "alt" in entry), "")


def is_picture(output: NotebookNode) -> bool:
    """Whether an output shows a picture."""
    return any(kind.startswith("image/") for kind in output.get("data", {}))


def is_explorer(cell: NotebookNode) -> bool:
    """Whether a cell's last line displays an explorer."""
    return cell.cell_type == "code" and cell.source.rstrip().rpartition("\n")[2].startswith("explorers.")


def code_lines(cell: NotebookNode) -> int:
    """How many lines of a cell are not blank."""
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def words_in(cells: list[NotebookNode]) -> int:
    """Count the words of prose, folded solutions included except for their code."""
    return sum(count_words(cell.source) for cell in cells if cell.cell_type == "markdown")


def count_words(markdown: str) -> int:
    """Count the words that a reader sees, without code blocks, tags and the addresses of links."""
    text = re.sub(r"^```.*?^```|</?[a-zA-Z!][^<>]*>|\]\([^)]*\)", " ", markdown, flags=re.DOTALL | re.MULTILINE)
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


def known_names(cell: NotebookNode) -> set[str]:
    """The names that a later cell can use: what this one imports and defines."""
    aliases = [alias for node in body(cell) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    return bound_names(body(cell)) | {(alias.asname or alias.name).split(".")[0] for alias in aliases}


def inner_names(cell: NotebookNode) -> set[str]:
    """The names that are bound somewhere inside: arguments of functions, and what comprehensions run over."""
    nodes = list(ast.walk(ast.parse(cell.source)))
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.arg for node in nodes if isinstance(node, ast.arg)}


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
