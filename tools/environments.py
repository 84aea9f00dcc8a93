"""`make test-colab`, `make test-latest`, `make test-oldest`: run the lessons with other versions of the libraries.

Each environment is a virtual environment of its own under build/. The lessons run outside the repository, and their
set-up cell installs the package as on Colab, except that it does so from a clone on this disk.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

import nbformat
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import notebook_files
from execute import Run, bundled_environment, execute
from lessons import table

COLAB = notebook_files.ROOT / "tests" / "environments" / "colab.txt"
CONSTRAINTS = notebook_files.ROOT / "constraints.txt"

RUNNERS = {"hypothesis", "ipykernel", "pytest"}  # the development tools that lessons and tests need to run
# Tests of what depends on the libraries.
TESTS = ["hub", "test_cache.py", "test_four_bit.py", "test_four_bit_kernel_layout.py"]
TESTS += ["test_four_bit_linear.py", "test_loading.py", "test_loading_attending.py", "test_loading_one_row.py"]
TESTS += ["test_four_bit_packed.py", "test_loading_outside.py", "test_outside.py", "test_outside_paging.py"]
TESTS += ["test_sampling.py"]
TESTS += ["test_transformer.py", "test_transformer_generation.py", "test_transformer_weights.py"]
SET_UP = {"mistral-lab", "bitsandbytes", "peft"}  # what the set-up cell may install

# A warning, without the place where it comes from, or a line that a library logs.
_REMOVAL = re.compile(
    r"\b(?:Future|(?:Pending)?Deprecation)Warning: .*|^(?!.*Warning: ).*(?:deprecated|will be removed).*$", re.MULTILINE
)


def declared() -> list[Requirement]:
    """The requirements in pyproject.toml that lessons and library tests need, those of fine-tuning included."""
    project = tomllib.loads(notebook_files.PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["finetune"]]
    lines += [line for line in extras["dev"] if Requirement(line).name in RUNNERS]
    return [Requirement(line) for line in lines]


def colab() -> list[str]:
    """The versions that Colab has, with the version of torch that this project pins."""
    pins = re.findall(r"^(?:torch==.*)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    return sorted(pins + re.findall(r"^[^#\n]+", COLAB.read_text(encoding="utf-8"), re.MULTILINE))


def latest(requirements: Iterable[Requirement], torch: str | None) -> list[str]:
    """Ask for the newest version of everything, except that `torch` is the version of torch where it is given."""
    return [f"torch=={torch}" if torch and each.name == "torch" else each.name for each in requirements]


def oldest(requirements: Iterable[Requirement], torch: str | None) -> list[str]:
    """Ask for the lowest version that each bound allows, except that `torch` is the version of torch where it is given.

    >>> oldest([Requirement("numpy>=2.1"), Requirement("torch>=2.8")], torch="2.13.0")
    ['numpy==2.1', 'torch==2.13.0']
    """
    lines = []
    for each in requirements:
        (bound,) = each.specifier
        lines.append(f"{each.name}=={torch if torch and each.name == 'torch' else bound.version}")
    return lines


class Environment:
    """A virtual environment with what a list of requirements names.

    Args:
        folder: where it is, or will be.
        requirements: lines for pip.
    """

    def __init__(self, folder: Path, requirements: list[str]) -> None:
        self.folder, self.requirements = folder, requirements
        self.python = folder / ".venv" / "bin" / "python"

    def pip(self, *arguments: str) -> str:
        """Run pip and return what it prints; its standard error is shown."""
        command = [self.python, "-m", "pip", *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def install(self, *, again: bool) -> None:
        """Install the requirements where they have changed since the last time, or where `again` is true.

        What set-up cells installed in an earlier run is uninstalled in any case.
        """
        installed, wanted = self.folder / "installed", "\n".join(self.requirements) + "\n"
        same = installed.is_file() and installed.read_text() == wanted
        if not same or again:
            self.folder.mkdir(parents=True, exist_ok=True)
            installed.unlink(missing_ok=True)
            (self.folder / "requirements.txt").write_text(wanted)
            if not same:
                subprocess.run([sys.executable, "-m", "venv", "--clear", self.folder / ".venv"], check=True)
            self.pip("install", "--quiet", "--upgrade", "--requirement", str(self.folder / "requirements.txt"))
            installed.write_text(wanted)
        listed = {canonicalize_name(Requirement(line).name) for line in self.requirements}
        brought = (SET_UP - listed) & self.versions().keys()
        if brought:
            self.pip("uninstall", "--quiet", "--yes", *sorted(brought))

    def versions(self) -> dict[str, str]:
        """The installed versions by name."""
        lines = self.pip("list", "--format", "freeze").splitlines()
        return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def clone(destination: Path) -> str:
    """Make a repository with one commit, the work tree as it is now, and return its address for pip."""
    tree = notebook_files.ROOT
    git = ["git", "--git-dir", destination / ".git", "--work-tree", tree]
    author = ["-c", "user.name=Mistral Lab", "-c", "user.email=lab@localhost"]
    subprocess.run(["git", "init", "--quiet", destination], check=True)
    subprocess.run([*git, "add", "--all", "."], check=True, cwd=tree)
    subprocess.run([*git, *author, "commit", "--quiet", "--message", "The work tree"], check=True, cwd=tree)
    return destination.as_uri()


def copy(path: Path, folder: Path, address: str) -> Path:
    """Copy a lesson, with `address` in its set-up cell instead of the public address."""
    notebook = nbformat.read(path, as_version=4)
    setup = notebook.cells[1]
    public = notebook_files.repository()
    if f"git+{public}" not in setup.source:
        raise ValueError(f"{path.name}: expected git+{public} in the set-up cell, as cell 2")
    setup.source = setup.source.replace(public, address)
    nbformat.write(notebook, folder / path.name)
    return folder / path.name


def removals(run: Run) -> set[str]:
    """Collect what a lesson's warnings say about future changes, each once."""
    streams = (
        output.text
        for cell in run.notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stderr"
    )
    return {line.strip() for text in streams for line in _REMOVAL.findall(text)}


def run_lessons(environment: Environment, paths: list[Path]) -> list[Run]:
    """Run lessons outside the repository; the first one's set-up cell installs the package."""
    before = environment.versions()
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        variables = bundled_environment() | {
            "MISTRAL_LAB_CACHE": str(there / "quantised"),  # a copy that other versions made must not be used
            "PYTHONWARNINGS": "default",
        }
        variables.pop("PYTHONPATH", None)
        address = clone(there / "clone")
        (there / "content").mkdir()
        copies = [copy(path, there / "content", address) for path in paths]
        runs = [execute(path, environment=variables, python=str(environment.python)) for path in copies]
    after = environment.versions()
    changed = {name for name in before | after if before.get(name) != after.get(name)} - SET_UP
    if changed:
        sys.exit(f"FAILED the lessons have changed what was installed: {', '.join(sorted(changed))}")
    return runs


def run_tests(environment: Environment) -> int:
    """Run the library tests on the work tree, and return the exit status of pytest."""
    command = [environment.python, "-m", "pytest", "-q", *(f"tests/{name}" for name in TESTS)]
    return subprocess.run(command, cwd=notebook_files.ROOT, env=os.environ | {"PYTHONPATH": ""}, check=False).returncode


def main() -> None:
    """Run the lessons in one environment, and the tests too except in Colab's; exit with 1 where one failed."""
    parser = argparse.ArgumentParser(description="Run the lessons where other versions are installed.")
    parser.add_argument("name", choices=["colab", "latest", "oldest"])
    parser.add_argument("lessons", nargs="*", type=Path, help="lessons to run (default: all)")
    parser.add_argument("--torch", help="the version of torch for latest and oldest, where theirs cannot be installed")
    arguments = parser.parse_intermixed_args()
    lines = {
        "colab": colab,
        "latest": lambda: latest(declared(), arguments.torch),
        "oldest": lambda: oldest(declared(), arguments.torch),
    }[arguments.name]()
    environment = Environment(notebook_files.ROOT / "build" / arguments.name, lines)
    environment.install(again=arguments.name == "latest")
    runs = run_lessons(environment, arguments.lessons or notebook_files.lessons())
    versions = environment.versions()
    names = sorted(canonicalize_name(each.name) for each in declared())
    print(f"\n{table(runs)}\n\n{', '.join(f'{name} {versions[name]}' for name in names if name in versions)}")
    for warning in sorted(set().union(*map(removals, runs))):
        print(f"warning: {warning}")
    failures = [run.error for run in runs if run.error]
    for failure in failures:
        print(f"FAILED {failure}")
    print(f"\n{len(runs) - len(failures)} passed, {len(failures)} failed", flush=True)
    tests_failed = arguments.name != "colab" and run_tests(environment)
    sys.exit(1 if failures or tests_failed else 0)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"FAILED {' '.join(map(str, error.cmd))}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
