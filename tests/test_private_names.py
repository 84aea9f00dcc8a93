"""Private names stay where they are: a library's in a file compat.py, a file's own in that file.

Looked through are the package, the tools, the benchmarks and the code of the lessons. Tests may look inside.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent

# Names without an underscore that their libraries do not document, or only for work on the library itself.
UNDOCUMENTED = {
    "Bnb4BitHfQuantizer",
    "Bnb4bitDeserialize",
    "Bnb4bitParametrization",
    "ConversionOps",
    "ScriptObject",
    "WeightConverter",
    "WeightRenaming",
    "are_symlinks_supported",
    "cextension",
    "core_model_loading",
    "distributed_c10d",
    "http_get",
    "packing_format_for_cpu",
    "repo_folder_name",
    "source_cls",
    "support_avx512bf16_for_cpu",
}
# (file, name): why it may stand there.
ALLOWED = {
    ("notebooks/09_more_than_one_machine.ipynb", "core_model_loading"): "the lesson reads this source with its readers",
}


def is_private(name: str) -> bool:
    """`_name`; not `__name__`, nor a protocol's name such as `_repr_html_`, nor `_` alone."""
    return name.startswith("_") and not name.endswith("_")


def defined(tree: ast.AST) -> set[str]:
    """The private names that a file defines: functions, classes, variables, and attributes of self and cls."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif stored_on_self(node):
            found.add(node.attr)
    return set(filter(is_private, found))


def stored_on_self(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    )


def imports(tree: ast.AST, package: str) -> dict[str, str]:
    """Local name -> the full name that it was imported under."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full = [alias.name if alias.asname else alias.name.partition(".")[0] for alias in node.names]
            found |= {alias.asname or name: name for alias, name in zip(node.names, full, strict=True)}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*parts, *([node.module] if node.module else [])])
            found |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names}
    return found


@lru_cache
def imported(name: str) -> object:
    """The object with a full name such as "torch.nn.Module"; None where there is none."""
    module, _, rest = name, "", []
    while module:
        try:
            found = importlib.import_module(module)
        except ImportError:
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
            continue
        for part in rest:
            found = getattr(found, part, None)
        return found
    return None


def overridden(node: ast.ClassDef, tree: ast.AST, names: dict[str, str]) -> set[str]:
    """The private names of a class that a base class from a library, or from a compat.py, defines too."""
    own = {part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
    own |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    own |= {part.attr for part in ast.walk(node) if stored_on_self(part)}
    own = set(filter(is_private, own))
    if not own:
        return set()  # before any library is imported
    classes = {part.name: part for part in ast.walk(tree) if isinstance(part, ast.ClassDef)}
    found, bases = set(), list(node.bases)
    while bases:
        start, _, rest = ast.unparse(bases.pop()).partition(".")
        if start in classes:
            bases += [base for base in classes[start].bases if start != node.name]
            continue
        base = imported(f"{names[start]}.{rest}".rstrip(".")) if start in names else None
        for ancestor in getattr(base, "__mro__", ()):
            module = ancestor.__module__
            if not module.startswith("mistral_lab") or module.endswith(".compat"):
                found |= own & vars(ancestor).keys()
    return found


def touches(tree: ast.AST, own: set[str], *, package: str = "") -> Iterator[tuple[int, str]]:
    """Line and name of every private name that is not the file's own, and of every undocumented one.

    Args:
        tree: of a file or of a cell.
        own: private names that the file, or any cell of the lesson, defines.
        package: of the file.
    """
    names = imports(tree, package)
    for node in ast.walk(tree):
        used: list[str] = []
        if isinstance(node, ast.ImportFrom):
            used += {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            used += {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.Attribute):
            used += {node.attr} - own
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            used += {arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)} - own
        elif isinstance(node, ast.ClassDef):
            used += overridden(node, tree, names)
        for name in used:
            if is_private(name) or name in UNDOCUMENTED:
                yield node.lineno, name


def in_file(path: Path, root: Path = ROOT) -> set[tuple[str, int, str]]:
    where = path.relative_to(root)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ".".join(where.parent.parts)
    return {(str(where), *touch) for touch in touches(tree, defined(tree), package=package)}


def in_lesson(path: Path, root: Path = ROOT) -> set[tuple[str, str, str]]:
    """As `in_file`, with the cell's id in place of the line."""
    cells = [
        cell
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code" and "nbval-skip" not in cell.metadata.get("tags", [])  # the set-up: no Python
    ]
    trees = {cell.id: ast.parse(cell.source) for cell in cells}
    own = set().union(*map(defined, trees.values()))
    where = str(path.relative_to(root))
    return {(where, cell, name) for cell, tree in trees.items() for _, name in touches(tree, own)}


def compat_files() -> list[Path]:
    return sorted({*ROOT.glob("mistral_lab/**/compat.py"), *ROOT.glob("benchmarks/compat.py")})


def all_touches() -> set[tuple[str, int | str, str]]:
    files = {path for folder in ("mistral_lab", "tools", "benchmarks") for path in ROOT.glob(f"{folder}/**/*.py")}
    found = set().union(*map(in_file, files - set(compat_files())))
    return found.union(*map(in_lesson, ROOT.glob("notebooks/*.ipynb")))


def test_a_private_name_is_used_in_its_own_file_or_in_a_compat_file():
    found = sorted(all_touches(), key=str)
    wrong = [f"{file}, {place}: {name}" for file, place, name in found if (file, name) not in ALLOWED]
    assert not wrong, (
        "private or undocumented names; a library's belongs into the module's compat.py, with the versions it was seen "
        "in, and what another file uses of ours is public:\n" + "\n".join(wrong)
    )


def test_nothing_is_excepted_in_vain():
    assert set(ALLOWED) <= {(file, name) for file, _, name in all_touches()}


@pytest.mark.parametrize("path", compat_files(), ids=lambda path: path.parent.name)
def test_a_compat_file_says_which_versions_were_seen(path):
    text = path.read_text(encoding="utf-8")
    assert re.search(
        r"\b(PyTorch|transformers|bitsandbytes|huggingface_hub) \d+\.\d+\.\d+ (to|and) \d+\.\d+\.\d+", text
    )


BREAKAGES = {
    "a private module": ("from torch.utils._pytree import tree_map", "_pytree"),
    "a private name": ("from accelerate.utils import _filter", "_filter"),
    "a private module, imported whole": ("import torch._dynamo", "_dynamo"),
    "an undocumented module": ("from transformers.core_model_loading import Other", "core_model_loading"),
    "an undocumented class": ("from transformers import ConversionOps", "ConversionOps"),
    "an undocumented attribute": ("state.packing_format_for_cpu = True", "packing_format_for_cpu"),
    "an attribute, read": ("print(model._modules)", "_modules"),
    "an attribute, written": ("model._is_hf_initialized = True", "_is_hf_initialized"),
    "an attribute of a call": ("tensor.untyped_storage()._cdata", "_cdata"),
    "an attribute of self that no file of ours defines": ("def f(self):\n    return self._parameters", "_parameters"),
    "an attribute by getattr": ("getattr(model, '_no_split_modules', [])", "_no_split_modules"),
    "an attribute by setattr": ("setattr(model, '_no_split_modules', [])", "_no_split_modules"),
    "a hook of a base class": (
        "from torch import nn\nclass Mine(nn.Linear):\n    def _apply(self, fn):\n        return self",
        "_apply",
    ),
    "a hook of a base class's base class": (
        "from torch import nn\nclass A(nn.Module):\n    pass\nclass B(A):\n    def _apply(self, fn):\n        pass",
        "_apply",
    ),
    "a hook that a compat file overrides already": (
        "from mistral_lab.four_bit.compat import RestoringLinear4bit as R\n"
        "class Mine(R):\n    def _apply(self, fn):\n        return self",
        "_apply",
    ),
    "a class attribute of a library's model": (
        "import transformers\nclass Mine(transformers.PreTrainedModel):\n    _no_split_modules = []",
        "_no_split_modules",
    ),
    "our own, from another file": ("from .hub import _fetch", "_fetch"),
    "our own, through its module": ("from mistral_lab import hub\nhub._fetch()", "_fetch"),
    "our own module": ("from .checks._values import brief", "_values"),
}


@pytest.mark.parametrize(("source", "name"), BREAKAGES.values(), ids=BREAKAGES)
def test_every_form_of_a_touch_is_found(source, name):
    tree = ast.parse(source)
    found = list(touches(tree, defined(tree), package="mistral_lab"))
    assert {touch for _, touch in found} == {name}
    assert all(name in source.splitlines()[line - 1] or "class" in source.splitlines()[line - 1] for line, _ in found)


def test_what_is_found_is_named_by_file_line_and_name(tmp_path):
    (tmp_path / "example.py").write_text("x = 1\n\nprint(x._real)\n", encoding="utf-8")
    assert in_file(tmp_path / "example.py", tmp_path) == {("example.py", 3, "_real")}


def test_a_lesson_is_looked_through_too(tmp_path):
    sources = {"one": "class A:\n    _own = 1", "two": "A._own, m._x"}
    cells = [nbformat.v4.new_code_cell(source, id=name) for name, source in sources.items()]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "lesson.ipynb")
    assert in_lesson(tmp_path / "lesson.ipynb", tmp_path) == {("lesson.ipynb", "two", "_x")}


def test_what_is_our_own_is_left_alone():
    source = """
from __future__ import annotations
from torch import nn, __version__
from .values import brief

class Mine(nn.Module):
    _count = 0

    def _helper(self):
        self._cache = self._count
        return self._cache, type(self).__name__, other._cache

    def _repr_html_(self):
        return self._helper()
"""
    tree = ast.parse(source)
    assert list(touches(tree, defined(tree), package="mistral_lab.checks")) == []
