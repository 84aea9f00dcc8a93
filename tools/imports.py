"""What a Python file imports, read without running it: tests/test_imports.py and `make quick` use it."""

import ast
from pathlib import Path


def imported_names(path: Path, package: str) -> set[str]:
    """The full dotted names that a file imports, at any depth of code.

    `from .moe import route_top_k` in a file of `mistral_lab` gives 'mistral_lab.moe.route_top_k'.

    Args:
        path: the file.
        package: the package that it stands in ('mistral_lab', 'mistral_lab.training', ...), for its relative imports.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found
