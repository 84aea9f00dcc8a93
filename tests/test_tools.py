"""The commands behind `make lessons`, `make outputs` and `make address`."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import address
import lessons
import notebook_files
import outputs
import template
from execute import Run, bundled_environment, execute
from mistral_lab.files import write_whole


@pytest.fixture
def notebook_of(tmp_path):
    """Writes a notebook with these code cells, after one of prose."""

    def write(*sources: str, name: str = "01_trial"):
        cells = [new_markdown_cell("Prose."), *map(new_code_cell, sources)]
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(new_notebook(cells=cells, metadata={"language_info": {"name": "python", "version": "3"}}), path)
        return path

    return write


def test_a_run_has_outputs_seconds_and_peak_memory(notebook_of, capsys):
    path = notebook_of("block = bytearray(200 * 2**20); size = len(block)", "print(1)\nprint(2)\nsize // 2**20")
    run = execute(path, environment=bundled_environment())
    assert run.error is None
    assert run.code_cells == 2
    printed, result = run.notebook.cells[2].outputs
    assert (printed.text, result.data["text/plain"]) == ("1\n2\n", "200")
    assert [cell.execution_count for cell in run.notebook.cells[1:]] == [1, 2]
    assert len(run.notebook.cells) == 3  # the cell that asks for the peak is gone
    assert 200 * 2**20 < run.peak_bytes < 500 * 2**20  # the block, and a bare kernel of 50 to 100 MiB
    assert 0 < run.seconds < 60
    progress = capsys.readouterr().out.splitlines()
    assert [line.split(" ...")[0] for line in progress] == ["01_trial, cell 2 of 3", "01_trial, cell 3 of 3"]


def test_what_runs_before_a_lesson_is_no_part_of_it(notebook_of, capsys):
    run = execute(notebook_of("print(answer)"), environment=bundled_environment(), before="answer = 42")
    assert run.notebook.cells[1].outputs[0].text == "42\n"
    assert len(run.notebook.cells) == 2
    assert capsys.readouterr().out.startswith("01_trial, cell 2 of 2 ...")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise ValueError('one\\ntwo')", "ValueError: one"),
        ("import os; os._exit(1)", "the kernel died, perhaps because memory ran out"),
    ],
)
def test_a_failing_cell_is_one_line_and_ends_the_lesson(notebook_of, source, error):
    run = execute(notebook_of("print(1)", source, "print(3)"), environment=bundled_environment())
    assert run.error == f"01_trial, cell 3 of 4: {error}"
    assert run.notebook.cells[3].execution_count is None
    assert run.peak_bytes is None


def test_lessons_run_on_the_bundled_model_whatever_the_reader_chose(monkeypatch):
    monkeypatch.setenv("MISTRAL_LAB_MODEL", "mistralai/Mistral-7B-v0.1")
    assert "MISTRAL_LAB_MODEL" not in bundled_environment()
    assert bundled_environment()["HF_HUB_OFFLINE"] == "1"


def test_the_table_has_a_line_a_lesson():
    runs = [Run("01_a", None, 30, 21.25, 512 * 2**20, None), Run("02_longer_name", None, 7, 3.0, None, "failed")]
    assert [line.split() for line in lessons.table(runs).splitlines()] == [
        ["lesson", "cells", "seconds", "peak", "MiB"],
        ["01_a", "30", "21.2", "512"],
        ["02_longer_name", "7", "3.0", "-"],
    ]


def test_other_lessons_run_after_one_failed(notebook_of, monkeypatch, tmp_path, capsys):
    paths = [notebook_of("1 / 0", name="01_fails"), notebook_of("print('well')", name="02_passes")]
    monkeypatch.setattr(notebook_files, "ROOT", tmp_path)
    monkeypatch.setattr(lessons, "BUILD", tmp_path / "build")
    monkeypatch.setattr(sys, "argv", ["lessons.py", *map(str, paths)])
    with pytest.raises(SystemExit) as exit_info:
        lessons.main()
    assert exit_info.value.code == "FAILED 01_fails, cell 2 of 2: ZeroDivisionError: division by zero"
    assert "02_passes" in capsys.readouterr().out.split("lesson", 1)[1]
    assert "well" in (tmp_path / "build" / "02_passes.html").read_text()
    assert nbformat.read(tmp_path / "build" / "02_passes.ipynb", as_version=4).cells[1].outputs[0].text == "well\n"


def test_the_page_carries_the_sentence_of_a_picture(notebook_of, monkeypatch, tmp_path):
    alt = "Two bars, the second <twice> as high & wide."
    source = f"from mistral_lab import figures\nfigures.show(figures.new_figure()[0], {alt!r}, 'Look at the second.')"
    monkeypatch.setattr(lessons, "BUILD", tmp_path / "build")
    lessons.save(execute(notebook_of(source), environment=bundled_environment()))
    page = (tmp_path / "build" / "01_trial.html").read_text()
    assert page.count('<img alt="Two bars, the second &lt;twice&gt; as high &amp; wide."') == 1
    assert "No description has been provided" not in page


def test_outputs_are_kept_and_a_second_run_changes_nothing(notebook_of):
    path = notebook_of("print('kept')")
    assert outputs.refresh(path) is None
    first = path.read_text()
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[1].outputs[0].text == "kept\n"
    assert notebook.cells[1].execution_count == 1
    assert notebook.cells[1].metadata == {}
    assert notebook.metadata == notebook_files.METADATA
    assert outputs.refresh(path) is None
    assert path.read_text() == first


def test_a_lesson_that_fails_keeps_its_outputs(notebook_of):
    path = notebook_of("print('new')", "1 / 0")
    before = path.read_bytes()
    assert outputs.refresh(path) == "01_trial, cell 3 of 3: ZeroDivisionError: division by zero"
    assert path.read_bytes() == before


def test_an_interrupted_lesson_keeps_its_outputs(notebook_of, tmp_path):
    path = notebook_of("from pathlib import Path\nPath('started').touch()\nimport time\ntime.sleep(60)")
    before = path.read_bytes()
    command = [sys.executable, notebook_files.ROOT / "tools" / "outputs.py", path]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error == "\ninterrupted: the lesson that was running stays as it was\n"
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["01_trial.ipynb", "started"]


def test_an_unfinished_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "01_trial.ipynb"
    path.write_text("old")

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("01_trial.ipynb", "old")]


def test_the_set_up_cell_installs_three_packages_and_nothing_they_depend_on(monkeypatch):
    ran = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # a machine that has none of them
    source = re.sub(r"%pip install (.*)", r"ran.append(f'\1')", template.setup_source("https://github.com/a/b"))
    exec(source, {"ran": ran})
    assert ran == [f"--quiet --no-deps {name}" for name in ("git+https://github.com/a/b", "bitsandbytes", "peft")]


@pytest.mark.parametrize(
    "slug",
    [
        "",
        "lab",
        "owner/",
        "/lab",
        "a/b/c",
        "https://github.com/a/b",
        "-a/b",
        "a_b/c",
        "a/b c",
        "a/..",
        "a/b.git",
        "a/b\n",
    ],
)
def test_an_address_that_github_cannot_have_is_refused(slug):
    with pytest.raises(ValueError, match=r"\AREPO is owner/name as on GitHub.*\Z"):
        address.parse(slug)


def test_a_new_address_reaches_project_badge_and_set_up():
    elsewhere = address.parse("Some-One/lab.v2_x")
    assert elsewhere == "https://github.com/Some-One/lab.v2_x"
    lesson = template.new_lesson("02_a", "Title", notebook_files.repository())
    lesson.cells[0].source += "\n\nProse below the badge."
    address.readdress(lesson, "02_a", elsewhere)
    expected = template.new_lesson("02_a", "Title", elsewhere)
    assert lesson.cells[0].source == expected.cells[0].source + "\n\nProse below the badge."
    assert lesson.cells[1].source == expected.cells[1].source
    assert "git+https://github.com/Some-One/lab.v2_x\n" in lesson.cells[1].source
    before = notebook_files.PYPROJECT.read_text()
    after = address.readdress_project(before, elsewhere)
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert changed == ['Repository = "https://github.com/Some-One/lab.v2_x"']


def test_a_notebook_without_badge_or_set_up_is_refused():
    lesson = template.new_lesson("02_a", "Title", notebook_files.repository())
    lesson.cells[1].metadata.tags = []
    with pytest.raises(ValueError, match=r"\A02_a: expected one Colab badge in cell 1 and the set-up cell"):
        address.readdress(lesson, "02_a", "https://github.com/a/b")
    lesson = template.new_lesson("02_a", "Title", notebook_files.repository())
    lesson.cells[0].source = "# 2 · Title"
    with pytest.raises(ValueError, match=r"\A02_a: expected one Colab badge"):
        address.readdress(lesson, "02_a", "https://github.com/a/b")
