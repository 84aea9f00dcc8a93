"""`make test-colab`, `make test-latest`, `make test-oldest`: the lessons where other versions are installed.

Each environment is a virtual environment under build/, apart from .venv. The lessons run outside the repository, and
their set-up cell installs the package, as on Colab; only the address in it is that of a clone on this disk.
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

import template
from execute import Run, bundled_environment, execute
from lessons import table

COLAB = template.ROOT / "tests" / "environments" / "colab.txt"
CONSTRAINTS = template.ROOT / "constraints.txt"

RUNNERS = {"hypothesis", "ipykernel", "pytest"}  # of the development tools, what a lesson or a test runs in
# Tests of what libraries do.
TESTS = ["hub", "test_cache.py", "test_four_bit.py", "test_four_bit_packing.py"]
TESTS += ["test_loading.py", "test_sampling.py"]
TESTS += ["test_transformer.py", "test_transformer_generation.py", "test_transformer_weights.py"]
SET_UP = {"mistral-lab", "bitsandbytes", "peft"}  # what the set-up cell may install

# A warning without the place that it comes from, or a line that a library logs.
_REMOVAL = re.compile(
    r"\b(?:Future|(?:Pending)?Deprecation)Warning: .*|^(?!.*Warning: ).*(?:deprecated|will be removed).*$", re.MULTILINE
)


def declared() -> list[Requirement]:
    """What pyproject.toml declares for lessons and library tests, fine-tuning and their runners included."""
    project = tomllib.loads(template.PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["finetune"]]
    lines += [line for line in extras["dev"] if Requirement(line).name in RUNNERS]
    return [Requirement(line) for line in lines]


def colab() -> list[str]:
    """What Colab has, with torch as this project pins it."""
    pins = re.findall(r"^(?:torch==.*)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    return sorted(pins + re.findall(r"^[^#\n]+", COLAB.read_text(encoding="utf-8"), re.MULTILINE))


def latest(requirements: Iterable[Requirement], torch: str | None) -> list[str]:
    """The newest of everything, but `torch` where it is given."""
    return [f"torch=={torch}" if torch and each.name == "torch" else each.name for each in requirements]


def oldest(requirements: Iterable[Requirement], torch: str | None) -> list[str]:
    """The lowest version of each that satisfies its bound, but `torch` where it is given.

    >>> oldest([Requirement("numpy>=2.1"), Requirement("torch>=2.8")], torch="2.13.0")
    ['numpy==2.1', 'torch==2.13.0']
    """
    lines = []
    for each in requirements:
        (bound,) = each.specifier
        lines.append(f"{each.name}=={torch if torch and each.name == 'torch' else bound.version}")
    return lines


class Environment:
    """A virtual environment that holds what a list of requirements asks for.

    Args:
        folder: where it is, or will be.
        requirements: lines for pip.
    """

    def __init__(self, folder: Path, requirements: list[str]) -> None:
        self.folder, self.requirements = folder, requirements
        self.python = folder / ".venv" / "bin" / "python"

    def pip(self, *arguments: str) -> str:
        """Run pip; what it prints. What it says on standard error is shown."""
        command = [self.python, "-m", "pip", *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def install(self, *, again: bool) -> None:
        """Make it so, unless it is: pip is asked only where the requirements changed, or `again`.

        What set-up cells have installed in an earlier run is taken away in any case.
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
        """What is installed, by name."""
        lines = self.pip("list", "--format", "freeze").splitlines()
        return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def clone(destination: Path) -> str:
    """Make a repository with one commit, the work tree as it is now; its address for pip."""
    git = ["git", "--git-dir", destination / ".git", "--work-tree", template.ROOT]
    author = ["-c", "user.name=Mistral Lab", "-c", "user.email=lab@localhost"]
    subprocess.run(["git", "init", "--quiet", destination], check=True)
    subprocess.run([*git, "add", "--all", "."], check=True, cwd=template.ROOT)
    subprocess.run([*git, *author, "commit", "--quiet", "--message", "The work tree"], check=True, cwd=template.ROOT)
    return destination.as_uri()


def copy(path: Path, folder: Path, address: str) -> Path:
    """Copy a lesson, with `address` in its set-up cell in place of the public one."""
    notebook = nbformat.read(path, as_version=4)
    setup = notebook.cells[1]
    public = template.repository()
    if f"git+{public}" not in setup.source:
        raise ValueError(f"{path.name}: expected git+{public} in the set-up cell, as cell 2")
    setup.source = setup.source.replace(public, address)
    nbformat.write(notebook, folder / path.name)
    return folder / path.name


def removals(run: Run) -> set[str]:
    """What a lesson's warnings say about changes to come, each once."""
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
            "MISTRAL_LAB_CACHE": str(there / "quantised"),  # what other versions have quantised proves nothing here
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
    """Run the library tests on the work tree; pytest's exit status."""
    command = [environment.python, "-m", "pytest", "-q", *(f"tests/{name}" for name in TESTS)]
    return subprocess.run(command, cwd=template.ROOT, env=os.environ | {"PYTHONPATH": ""}, check=False).returncode


def main() -> None:
    """Run the lessons in one environment, and in all but Colab's the tests; exit with 1 where one failed."""
    parser = argparse.ArgumentParser(description="Run the lessons where other versions are installed.")
    parser.add_argument("name", choices=["colab", "latest", "oldest"])
    parser.add_argument("lessons", nargs="*", type=Path, help="all, unless named")
    parser.add_argument("--torch", help="a version of torch for latest and oldest, where theirs cannot be had")
    arguments = parser.parse_intermixed_args()
    lines = {
        "colab": colab,
        "latest": lambda: latest(declared(), arguments.torch),
        "oldest": lambda: oldest(declared(), arguments.torch),
    }[arguments.name]()
    environment = Environment(template.ROOT / "build" / arguments.name, lines)
    environment.install(again=arguments.name == "latest")
    runs = run_lessons(environment, arguments.lessons or template.lessons())
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
