"""Every lesson keeps the rules of notebook_rules.py, and each rule notices when it is broken."""

import copy
import re

import notebook_cells
import notebook_rules
import pytest
from nbformat import NotebookNode, from_dict
from nbformat.v4 import new_output
from small_lessons import ALT, FIRST, caption, figure, first_lesson, output, printed, rewrite

import notebook_files
import template


@pytest.mark.parametrize("path", notebook_files.lessons(), ids=lambda path: path.stem)
def test_lesson_keeps_the_rules(path):
    found = notebook_rules.problems(notebook_cells.read(path), path.stem)
    assert not found, "\n".join([f"{path.name}:", *found])


def test_there_is_a_lesson():
    assert notebook_files.lessons(), "notebooks/ holds no lesson"


@pytest.fixture
def lesson() -> NotebookNode:
    return first_lesson()


def test_a_good_lesson_has_no_problem(lesson):
    assert notebook_rules.problems(lesson, FIRST) == []


def tag(lesson: NotebookNode, numbers: list[int], *tags: str) -> None:
    for number in numbers:
        lesson.cells[number - 1].metadata.tags = list(tags)


def from_another_repository(lesson: NotebookNode) -> None:
    elsewhere = template.new_lesson(FIRST, "Mixture of experts", "https://github.com/someone/else")
    lesson.cells[0].source = elsewhere.cells[0].source
    lesson.cells[1].source = elsewhere.cells[1].source


def bare_figure(metadata: dict) -> NotebookNode:
    return new_output("display_data", data={"image/png": "iVBORw0KGgo="}, metadata=metadata)


BREAKAGES = {
    "no id": (lambda lesson: lesson.cells[6].pop("id"), "cell 7: 'id' is a required property"),
    "an id twice": (lambda lesson: lesson.cells[6].update(id="prose-0"), "cell 7: has the same id as another cell"),
    "a cell of no type": (lambda lesson: lesson.cells[6].update(cell_type="prose"), "cell 7: is of type 'prose'"),
    "an output without data": (
        lambda lesson: lesson.cells[12].outputs[0].pop("data"),
        "cell 13: 'data' is a required property",
    ),
    "an old format": (lambda lesson: lesson.update(nbformat_minor=4), r"format 4\.4, expected 4\.5"),
    "no title": (rewrite(1, "Welcome."), "cell 1: expected Markdown that starts with the title"),
    "no badge": (rewrite(1, "# 4 · Mixture of experts"), "cell 1: expected one line with this badge"),
    "badge of another repository": (from_another_repository, "cell 1: expected one line with this badge"),
    "set-up of another repository": (from_another_repository, "cell 2: expected the set-up cell"),
    "set-up replaces torch": (rewrite(2, "%pip install torch"), "cell 2: expected the set-up cell"),
    "set-up not skipped": (lambda lesson: tag(lesson, [2]), "cell 2: expected nbval-skip as its only tag"),
    "set-up prints": (output(2, printed("installed\n")), "cell 2: has an output"),
    "another letter": (rewrite(7, "For gate `(2h, d)`."), r"cell 7: '\(2h, d\)', expected f"),
    "too large": (output(15, printed("0" * 1_000_000)), r"notebook: .* bytes, .* the largest is cell 15"),
    "not run": (lambda lesson: lesson.cells[14].update(execution_count=None), "cell 15: was not run"),
    "run twice": (
        lambda lesson: lesson.cells[14].update(execution_count=9),
        "cell 15: execution count 9, expected 4",
    ),
    "empty cell": (rewrite(16, " \n"), "cell 16: is an empty code cell"),
    "widget state": (
        lambda lesson: lesson.metadata.update(widgets={}),
        r"notebook: keeps widget state in metadata\.widgets",
    ),
    "the view of a widget": (
        output(13, new_output("display_data", data={notebook_files.WIDGET_VIEW: {"model_id": "1"}, "text/plain": ALT})),
        "cell 13: keeps the view of a widget",
    ),
    "another kernel": (
        lambda lesson: lesson.metadata.kernelspec.update(name="conda-env-py"),
        "notebook: metadata .*conda-env-py",
    ),
    "a cell's timing": (
        lambda lesson: lesson.cells[15].metadata.update(execution={"iopub.status.busy": "2024"}),
        r"cell 16: metadata has \['execution'\]",
    ),
    "a mistyped tag": (lambda lesson: tag(lesson, [16], "nbval-ignore-ouput"), "cell 16: unknown tags"),
    "skipped outside set-up": (lambda lesson: tag(lesson, [16], "nbval-skip"), "cell 16: is tagged nbval-skip"),
    "a comment for nbval": (rewrite(16, "# NBVAL_IGNORE_OUTPUT\nprint(2)"), "cell 16: controls nbval with a comment"),
    "no output": (output(17), "cell 17: prints or shows something, but has no output"),
    "no figure": (output(13), "cell 13: prints or shows something, but has no output"),
    "an error": (
        output(17, new_output("error", ename="NameError", evalue="name 'x'", traceback=[])),
        "cell 17: has an error as output, NameError: name 'x'",
    ),
    "a warning": (
        output(17, new_output("stream", name="stderr", text="UserWarning: slow")),
        "cell 17: prints to standard error: 'UserWarning: slow'",
    ),
    "a path in an output": (output(17, printed("saved to /home/ann/model\n")), "cell 17: shows a path .*/home/ann"),
    "a path in a table": (
        output(17, new_output("display_data", data={"text/html": "<td>/root/lab</td>"})),
        "cell 17: shows a path .*/root/lab",
    ),
    "a path in prose": (rewrite(4, "Look at `/Users/ann/lab`."), "cell 4: shows a path .*/Users/ann"),
    "a Windows path": (rewrite(17, r"print(r'C:\lab')"), r"cell 17: shows a path .*C:"),
    "a figure without alt text": (
        output(13, bare_figure({}), printed(ALT)),
        "cell 13: a picture's alt text is no sentence",
    ),
    "an alt text of one word": (
        output(13, bare_figure({"image/png": {"alt": "bars"}}), printed("bars")),
        "cell 13: a picture's alt text is no sentence: 'bars'",
    ),
    "a picture without a caption": (output(13, figure()), "cell 13: a picture has no caption below it"),
    "a caption that is the alt text": (output(13, figure(), caption(ALT)), "cell 13: a caption repeats the alt text"),
    "an alt text that is printed": (
        output(13, figure(), caption(), printed(ALT)),
        "cell 13: prints a picture's alt text again",
    ),
    "most text ignored": (
        lambda lesson: tag(lesson, [14, 15, 16, 17], "nbval-ignore-output"),
        r"notebook: nbval ignores 4 of 7 cells that print text: cells \[14, 15, 16, 17\]",
    ),
    "a function of the package": (rewrite(18, "def load():\n    pass"), "cell 18: defines 'load' again"),
    "a name of the package": (rewrite(18, "PRESETS = {}"), "cell 18: defines 'PRESETS' again"),
    "another package's load": (rewrite(18, "from pickle import load"), "cell 18: defines 'load' again"),
    "a loop over a name of the package": (
        rewrite(18, "for load in range(3):\n    print(load)"),
        "cell 18: defines 'load' again",
    ),
    "a magic": (rewrite(19, "%timeit 1"), "cell 19: holds a magic or shell command"),
    "a shell command": (rewrite(19, "if True:\n    !ls"), "cell 19: holds a magic or shell command"),
    "a semicolon": (rewrite(19, "print(1);"), "cell 19: ends with a semicolon"),
    "a syntax error": (rewrite(19, "print(1"), "cell 19: is not Python"),
}


@pytest.mark.parametrize(("breakage", "message"), BREAKAGES.values(), ids=BREAKAGES.keys())
def test_a_breakage_is_caught(lesson, breakage, message):
    broken = from_dict(copy.deepcopy(lesson))
    breakage(broken)
    found = "\n".join(notebook_rules.problems(broken, FIRST))
    assert re.search(message, found), f"expected {message!r} among:\n{found}"


def test_an_expected_error_is_allowed(lesson):
    output(17, new_output("error", ename="ValueError", evalue="bits=3", traceback=[]))(lesson)
    tag(lesson, [17], "raises-exception")
    assert notebook_rules.problems(lesson, FIRST) == []


def test_importing_from_the_package_is_allowed(lesson):
    rewrite(18, "from mistral_lab import load\nfrom mistral_lab.config import PRESETS\nprint(PRESETS)")(lesson)
    assert notebook_rules.problems(lesson, FIRST) == []


def test_a_url_is_no_path():
    assert not notebook_rules.MACHINE_PATH.search("https://example.org/home/ann and a/tmp/b and ~/work/x")
