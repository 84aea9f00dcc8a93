"""Importing the package is light, and each module imports only those that the plan lets it."""

import subprocess
import sys
from pathlib import Path

import pytest

import mistral_lab
from imports import imported_names

PACKAGE = Path(mistral_lab.__file__).parent

# The plan: four groups, from the ground up, and in each the modules with what they may import. A module imports from
# its own group and from those above it, never from one below and never in a circle.
GROUPS = {
    "ground": {
        "lazy": set(),
        "arguments": set(),
        "files": set(),
        "hub": {"files"},
        "checkpoints": {"files", "hub"},
    },
    "mechanisms": {
        "config": {"arguments", "checkpoints"},
        "masks": {"arguments"},
        "attention": {"arguments", "masks"},
        "sampling": set(),
        "cache": {"arguments", "config"},
        "moe": {"arguments"},
        "transformer": {"arguments", "files", "checkpoints"}
        | {"config", "masks", "attention", "sampling", "cache", "moe"},
        "nf4": {"arguments"},
    },
    "running": {
        "four_bit": {"files"},
        "memory": {"arguments", "config"},
        "loading": {"lazy", "arguments", "files", "checkpoints", "config", "sampling", "cache", "four_bit", "memory"},
        "measure": {"arguments", "files", "loading"},  # of loading the type `Loaded` alone
        "finetune": {"arguments", "files", "checkpoints", "config", "four_bit", "memory", "loading"},
        "distributed": {"lazy", "arguments", "checkpoints", "config", "four_bit", "memory", "loading"},
    },
    "teaching": {
        "figures": set(),
        "checks": {"config", "masks", "attention", "sampling", "cache", "moe", "nf4", "memory"},
        "explorers": {"figures", "config", "masks", "attention", "sampling", "cache", "moe", "transformer", "nf4"}
        | {"memory", "finetune"},  # of finetune the arithmetic of its cost alone
        "training": {"arguments", "files", "checkpoints", "config", "measure", "finetune", "loading", "moe"},
        "experiments": {"lazy", "arguments", "files", "checkpoints"}
        | {"config", "masks", "attention", "sampling", "cache", "moe", "transformer", "nf4"}
        | {"four_bit", "memory", "loading", "measure"}
        | {"training"},  # its texts and how they are evaluated
    },
}
MAY_IMPORT = {module: allowed for group in GROUPS.values() for module, allowed in group.items()}
# `__main__` uses what it needs (but figures), and nothing uses it.
USED_BY_NOBODY = {"__main__"}


def modules() -> dict[str, list[Path]]:
    """Each module with its files; a folder of Python files is one module."""
    found = {path.stem: [path] for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    found |= {path.parent.name: sorted(path.parent.rglob("*.py")) for path in PACKAGE.glob("*/__init__.py")}
    return found


def imported_modules(path: Path, package: str) -> set[str]:
    """The modules that a file of `package` ('mistral_lab', 'mistral_lab.training', ...) imports, however deep."""
    parts = [name.split(".") + [""] for name in imported_names(path, package)]
    # `from mistral_lab import load` names no module; it stands in loading.
    return {mistral_lab.EXPORTS.get(part[1], part[1]) for part in parts if part[0] == "mistral_lab"}


def test_the_parser_sees_every_form_of_import(tmp_path):
    source = """
import mistral_lab.figures
from mistral_lab import masks as m, load
from . import cache
from .moe import route_top_k
from .training.corpus import document
def late():
    from mistral_lab.nf4 import CODEBOOK
"""
    path = tmp_path / "module.py"
    path.write_text(source)
    expected = {"figures", "masks", "loading", "cache", "moe", "training", "nf4"}
    assert imported_modules(path, "mistral_lab") == expected
    path.write_text("from ..config import ModelConfig\nfrom .corpus import document\nimport torch")
    assert imported_modules(path, "mistral_lab.training") == {"config", "training"}


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_what_it_may(module):
    assert module in MAY_IMPORT or module in USED_BY_NOBODY, f"{module}: say in GROUPS which modules it may import"
    allowed = MAY_IMPORT.get(module, MAY_IMPORT.keys() - {"figures"})
    for path in modules()[module]:
        package = ".".join(["mistral_lab", *path.relative_to(PACKAGE).parts[:-1]])
        forbidden = imported_modules(path, package) - allowed - {module}
        assert not forbidden, (
            f"{path.relative_to(PACKAGE)} imports {sorted(forbidden)}, it may import {sorted(allowed)}"
        )


def test_the_plan_has_no_arrow_upwards_and_no_circle():
    above: set[str] = set()
    for group in GROUPS.values():
        placed: set[str] = set()
        while placed != group.keys():  # modules whose own group's imports are all placed come next
            ready = {module for module, allowed in group.items() if allowed & group.keys() <= placed} - placed
            assert ready, f"a circle among {sorted(group.keys() - placed)}"
            placed |= ready
        for module, allowed in group.items():
            assert allowed <= above | group.keys(), f"{module} may import {sorted(allowed - above - group.keys())}"
        above |= placed


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_importing_the_package_imports_nothing_heavy():
    heavy = {"torch", "transformers", "bitsandbytes", "accelerate", "numpy", "matplotlib", "ipywidgets"}
    done = run_python(f"import mistral_lab, sys; print(sorted({heavy} & sys.modules.keys()))")
    assert done.stdout == "[]\n", done.stderr or done.stdout


def test_what_others_type_their_arguments_with_imports_no_loader():
    heavy = {"mistral_lab.loading.loader", "mistral_lab.loading.reading", "mistral_lab.four_bit", "bitsandbytes"}
    heavy |= {"transformers.modeling_utils"}
    done = run_python(
        "import sys\n"
        "from mistral_lab.loading.loaded import Loaded\n"
        "from mistral_lab import loading\n"
        "assert loading.Loaded is Loaded\n"
        "assert {'Loaded', 'load', 'quantized_copy'} <= set(dir(loading))\n"
        f"print(sorted({heavy} & sys.modules.keys()))"
    )
    assert done.stdout == "[]\n", done.stderr or done.stdout


def test_names_and_modules_are_imported_when_first_used():
    done = run_python(
        "import mistral_lab, sys\n"
        "assert 'mistral_lab.config' not in sys.modules\n"
        "assert mistral_lab.config is sys.modules['mistral_lab.config']\n"
        "assert mistral_lab.ModelConfig is mistral_lab.config.ModelConfig\n"
        "assert 'mistral_lab.memory' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr


def test_every_name_that_the_package_lists_is_there():
    assert mistral_lab.load is mistral_lab.loading.load
    for name in mistral_lab.__all__:
        assert getattr(mistral_lab, name) is not None
    assert {"load", "config", "loading", "figures"} <= set(dir(mistral_lab))


def test_an_unknown_name_is_one_clear_line():
    with pytest.raises(AttributeError, match=r"'mistral_lab.loading' has no attribute 'laod'; it has Loaded, load, qu"):
        mistral_lab.loading.laod  # noqa: B018
    with pytest.raises(
        AttributeError, match=r"\Amodule 'mistral_lab' has no attribute 'laod'; it has [^\n]*load[^\n]*\Z"
    ):
        mistral_lab.laod  # noqa: B018
