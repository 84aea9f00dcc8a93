"""The commands behind `make test-colab`, `make test-latest` and `make test-oldest`, and who calls make."""

import re
import subprocess
import sys

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook, new_output
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import environments
import notebook_files
import template
from execute import Run, bundled_environment, execute

TARGETS = set(re.findall(r"^([a-z-]+):", (notebook_files.ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_oldest_versions_are_the_lower_bounds_and_satisfy_them():
    declared = environments.declared()
    for requirement, line in zip(declared, environments.oldest(declared, torch=None), strict=True):
        name, version = line.split("==")
        assert name == requirement.name
        assert requirement.specifier.contains(version)
        assert str(requirement.specifier) == f">={version}"
    assert {"torch", "peft", "pytest", "ipykernel"} <= {requirement.name for requirement in declared}


def test_the_newest_versions_have_no_bound():
    requirements = [Requirement("torch>=2.8"), Requirement("peft>=0.18")]
    assert environments.latest(requirements, torch=None) == ["torch", "peft"]
    assert environments.latest(requirements, torch="2.13.0") == ["torch==2.13.0", "peft"]


def test_colab_is_exact_versions_and_lacks_what_the_set_up_cell_brings():
    lines = environments.colab()
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in lines), lines
    names = {canonicalize_name(line.split("==")[0]) for line in lines}
    assert len(names) == len(lines)
    assert {"torch", "transformers", "peft"} <= names
    assert not names & {"mistral-lab", "bitsandbytes"}


def test_a_copied_lesson_installs_from_the_clone_and_is_otherwise_the_same(tmp_path):
    lesson = notebook_files.lessons()[0]
    copied = nbformat.read(environments.copy(lesson, tmp_path, "file:///some/clone"), as_version=4)
    original = nbformat.read(lesson, as_version=4)
    assert copied.cells[1].source == template.setup_source("file:///some/clone")
    copied.cells[1].source = original.cells[1].source
    assert copied == original


def test_a_lesson_that_installs_something_else_is_refused(tmp_path):
    path = tmp_path / "01_other.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1"), new_code_cell("2")]), path)
    with pytest.raises(ValueError, match=r"\A01_other.ipynb: expected git\+https://.* in the set-up cell, as cell 2\Z"):
        environments.copy(path, tmp_path, "file:///some/clone")


def test_the_clone_is_the_work_tree_without_what_git_ignores(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, text in ((".gitignore", "build/\n"), ("committed_or_not.py", "new"), ("with space.py", "")):
        (tree / name).write_text(text)
    (tree / "build").mkdir()
    (tree / "build" / "large").write_text("")
    monkeypatch.setattr(notebook_files, "ROOT", tree)
    address = environments.clone(tmp_path / "a clone")
    assert address == f"file://{tmp_path}/a%20clone"
    subprocess.run(["git", "clone", "--quiet", address, tmp_path / "again"], check=True)
    there = {path.name for path in (tmp_path / "again").iterdir()}
    assert there == {".git", ".gitignore", "committed_or_not.py", "with space.py"}
    assert not (tree / ".git").exists()


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment whose interpreter, like the one that makes it, only writes down how it was called."""

    def stand_in(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        listed = "peft==0.20.0\\nmistral-lab==0.1.0\\nbitsandbytes==0.50.2"
        path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ "$3" != list ] || printf "{listed}\\n"\n')
        path.chmod(0o755)
        return path

    monkeypatch.setattr(sys, "executable", str(stand_in(tmp_path / "python")))
    made = environments.Environment(tmp_path / "lab", ["numpy==2.1", "peft==0.20.0"])
    stand_in(made.python)
    return made


def calls(environment) -> list[str]:
    log = environment.folder.parent / "calls"
    text = log.read_text() if log.exists() else ""
    log.unlink(missing_ok=True)
    return [re.sub(r"^-m (pip )?| --?[a-z-]+| /.*", "", line) for line in text.splitlines()]


def test_an_environment_is_made_once_and_again_where_its_requirements_changed(environment):
    environment.install(again=False)
    assert calls(environment) == ["venv", "install", "list freeze", "uninstall bitsandbytes mistral-lab"]
    environment.install(again=False)
    assert calls(environment) == ["list freeze", "uninstall bitsandbytes mistral-lab"]
    environment.install(again=True)
    assert calls(environment) == ["install", "list freeze", "uninstall bitsandbytes mistral-lab"]
    environment.requirements = ["numpy==2.2", "peft==0.20.0", "bitsandbytes==0.49"]
    environment.install(again=False)
    assert calls(environment) == ["venv", "install", "list freeze", "uninstall mistral-lab"]
    assert (environment.folder / "requirements.txt").read_text() == "numpy==2.2\npeft==0.20.0\nbitsandbytes==0.49\n"


def test_an_interrupted_install_is_no_environment(environment):
    environment.python.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        environment.install(again=False)
    assert not (environment.folder / "installed").exists()


def test_what_will_be_removed_is_said_once():
    warning = "/x/y.py:3: FutureWarning: `a` goes in 6.0.\n  warn()\n"
    streams = {"stderr": f"{warning}Loaded\n{warning}`b` is deprecated\n", "stdout": "FutureWarning: only printed"}
    cells = [new_code_cell("1", outputs=[new_output("stream", name=name, text=streams[name]) for name in streams])]
    run = Run("01_a", new_notebook(cells=cells), 1, 1.0, None, None)
    assert environments.removals(run) == {"FutureWarning: `a` goes in 6.0.", "`b` is deprecated"}


def test_a_lesson_runs_on_the_interpreter_that_it_is_given(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nCHOSEN=yes exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    path = tmp_path / "01_trial.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("import os; os.environ['CHOSEN']")]), path)
    run = execute(path, environment=bundled_environment(), python=str(python))
    assert run.error is None
    assert run.notebook.cells[0].outputs[0].data["text/plain"] == "'yes'"


def workflows() -> dict[str, dict]:
    folder = notebook_files.ROOT / ".github" / "workflows"
    return {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.yml"))}


def test_workflows_run_what_make_has():
    ran = []
    for workflow in workflows().values():
        for job in workflow["jobs"].values():
            for cell in job["strategy"]["matrix"].get("include", [{}]):
                commands = [step["run"] for step in job["steps"] if "run" in step]
                ran += [command.replace("${{ matrix.target }}", cell.get("target", "")) for command in commands]
    assert ran == ["make test", "make test-device", "make test-colab", "make test-latest", "make test-oldest"]
    assert {command.removeprefix("make ") for command in ran} <= TARGETS


def test_workflows_run_the_pythons_that_the_project_allows():
    pythons = workflows()["test.yml"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13"]
    others = workflows()["versions.yml"]["jobs"]["versions"]["strategy"]["matrix"]["include"]
    assert {cell["python"] for cell in others} <= set(pythons)


def test_the_local_run_checks_other_versions_too():
    script = (notebook_files.ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.findall(r"^make ([a-z-]+)", script, re.MULTILINE)
    assert commands[0] == "test"
    assert {"test-device", "test-colab", "test-latest", "test-oldest"} <= set(commands) <= TARGETS
