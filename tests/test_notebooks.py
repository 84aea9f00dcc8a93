"""Every lesson keeps the rules of notebook_rules.py, and each rule notices when it is broken."""

import copy
import re

import notebook_rules
import pytest
from nbformat import NotebookNode, from_dict
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

import notebook_files
import template

NAME = "02_grouped_query_attention"
FIRST = "04_mixture_of_experts"  # a lesson whose second edition is still to come
ALT = "Bars of four heights, the third one the tallest."


@pytest.mark.parametrize("path", notebook_files.lessons(), ids=lambda path: path.stem)
def test_lesson_keeps_the_rules(path):
    found = notebook_rules.problems(notebook_rules.read(path), path.stem)
    assert not found, "\n".join([f"{path.name}:", *found])


@pytest.mark.parametrize(
    ("source", "needed"),
    [
        ("import math\n\nprint(math.pi, size)", "size"),
        ("print([n * shape for n in range(3)])", "shape"),
        ("print([len(name) for name in dir(given)])", None),
        ("def twice(x):\n    return 2 * x\n\n\nprint(twice(len(lab)))", None),
    ],
)
def test_a_part_that_needs_more_than_the_loading_is_noticed(second, source, needed):
    second.cells[3].source = "import torch\n\ngiven = 1"
    second.cells[5].source = "lab = [given]"
    second.cells[7].source = "size = shape = 2"
    second.cells[21].source = source
    expected = [f"cell 'cell-22': needs {needed} from another part of the lesson"] if needed else []
    assert [problem for problem in notebook_rules.problems(second, NAME) if "needs" in problem] == expected


def test_an_inequality_hides_no_words():
    assert notebook_rules.count_words("if $i - j < W$, seen > unseen <details><summary>Solution</summary>") == 7


def test_there_is_a_lesson():
    assert notebook_files.lessons(), "notebooks/ holds no lesson"


def figure() -> NotebookNode:
    data = {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 640x480>"}
    return new_output("display_data", data=data, metadata={"image/png": {"alt": ALT}})


def caption(text: str = "Look at the third bar.") -> NotebookNode:
    data = {"text/markdown": text, "text/plain": "<IPython.core.display.Markdown object>"}
    return new_output("display_data", data=data)


def printed(text: str) -> NotebookNode:
    return new_output("stream", name="stdout", text=text)


@pytest.fixture
def lesson() -> NotebookNode:
    """A lesson of 20 cells that keeps every rule: cells 3 to 12 are prose, 13 draws, 14 to 20 print."""
    notebook = template.new_lesson(FIRST, "Mixture of experts", notebook_files.repository())
    notebook.cells[1].execution_count = 1
    notebook.cells += [new_markdown_cell(f"Prose, paragraph {n}.", id=f"prose-{n}") for n in range(10)]
    drawing = new_code_cell("figures.show(figure, alt, caption)", id="figure", execution_count=2)
    drawing.outputs = [figure(), caption()]
    notebook.cells.append(drawing)
    for n in range(7):
        cell = new_code_cell(f"print({n})", id=f"code-{n}", execution_count=n + 3, outputs=[printed(f"{n}\n")])
        notebook.cells.append(cell)
    return notebook


def test_a_good_lesson_has_no_problem(lesson):
    assert notebook_rules.problems(lesson, FIRST) == []


def tag(lesson: NotebookNode, numbers: list[int], *tags: str) -> None:
    for number in numbers:
        lesson.cells[number - 1].metadata.tags = list(tags)


def rewrite(number: int, source: str):
    """A breakage: cell `number` gets another source."""
    return lambda lesson: lesson.cells[number - 1].update(source=source)


def output(number: int, *outputs: NotebookNode):
    """A breakage: cell `number` gets other outputs."""
    return lambda lesson: lesson.cells[number - 1].update(outputs=list(outputs))


def from_another_repository(lesson: NotebookNode) -> None:
    elsewhere = template.new_lesson(FIRST, "Mixture of experts", "https://github.com/someone/else")
    lesson.cells[0].source = elsewhere.cells[0].source
    lesson.cells[1].source = elsewhere.cells[1].source


def bare_figure(metadata: dict) -> NotebookNode:
    return new_output("display_data", data={"image/png": "iVBORw0KGgo="}, metadata=metadata)


@pytest.fixture
def second() -> NotebookNode:
    """A lesson of the second edition that keeps every rule: 4 draws, 6 explores, 8, 10 and 12 check, 20 is folded."""
    notebook = template.new_lesson(NAME, "Grouped-query attention", notebook_files.repository())
    notebook.cells[1].execution_count = 1

    def add(cell: NotebookNode) -> None:
        cell.id = f"cell-{len(notebook.cells) + 1}"
        if cell.cell_type == "code":
            cell.execution_count = sum(other.cell_type == "code" for other in notebook.cells) + 1
        notebook.cells.append(cell)

    add(new_markdown_cell(f"How many? The article is {notebook_rules.ARTICLE}."))
    add(new_code_cell("figures.show(figure, alt, caption)", outputs=[figure(), caption()]))
    add(new_markdown_cell("Move it."))
    add(new_code_cell("explorers.heads()", outputs=explorer()))
    for _ in range(3):
        add(new_markdown_cell("### Build it (5 minutes)"))
        add(new_code_cell("my_x = checks.x(my_x)", outputs=[printed("x: not tried yet\n")]))
    for n in range(6):
        add(new_markdown_cell(f"Prose, paragraph {n}."))
    add(new_markdown_cell("## Dig deeper"))
    add(new_markdown_cell("### Rotary positions"))
    add(new_markdown_cell("Each pair turns."))
    add(new_code_cell("print(0)", outputs=[printed("0\n")]))
    add(new_markdown_cell("## References"))
    notebook_files.fold_deeper(notebook)
    return notebook


def explorer() -> list[NotebookNode]:
    return [figure(), new_output("display_data", data={"text/markdown": "Two heads share one."})]


def test_a_good_lesson_of_the_second_edition_has_no_problem(second):
    assert notebook_rules.problems(second, NAME) == []


SECOND_BREAKAGES = {
    "too many words": (rewrite(5, "word " * 1500), r"notebook: 15\d\d words on the main path, expected at most 1500"),
    "too much code": (
        lambda lesson: [lesson.cells[n].update(source="x = 1\n" * 90) for n in (3, 5, 7)],
        r"notebook: 27\d lines of code on the main path, expected at most 250",
    ),
    "a long cell": (rewrite(22, "print(0)\n\n" * 10 + "x = 1"), "cell 22: 21 lines, expected at most 20"),
    "a wide cell": (rewrite(22, f"x = '{'w' * 87}'"), "cell 22: a line of 93 characters, expected at most 92"),
    "a late picture": (output(4, printed("2\n")), r"notebook: the first picture is in cell \[6\]"),
    "no picture": (
        lambda lesson: [lesson.cells[n].update(outputs=[printed("2\n")]) for n in (3, 5)],
        r"notebook: the first picture is in cell \[\]",
    ),
    "no explorer": (rewrite(6, "print(2)"), r"notebook: the first explorer is cell \[\] of 18"),
    "a late explorer": (
        lambda lesson: lesson.cells.insert(5, lesson.cells.pop(17)),
        r"notebook: the first explorer is cell \[7\] of 18",
    ),
    "two checks": (rewrite(8, "print(1)"), r"notebook: checks in cells \[10, 12\] of 18, expected 3"),
    "all checks late": (
        lambda lesson: lesson.cells.__setitem__(slice(6, 18), lesson.cells[12:18] + lesson.cells[6:12]),
        r"notebook: checks in cells \[14, 16, 18\] of 18, expected 3, one in the first half",
    ),
    "nothing to dig": (rewrite(19, "## More"), "notebook: no section '## Dig deeper'"),
    "too much to dig": (rewrite(21, "word " * 800), r"notebook: 80\d words to dig deeper, expected at most 800"),
    "text beside a folded heading": (
        rewrite(20, "### Rotary positions\n\nEach pair turns."),
        "cell 'cell-20': holds more than the heading",
    ),
    "a heading that is not folded": (lambda lesson: lesson.cells[19].update(metadata={}), "run `make outputs`"),
    "a folded cell elsewhere": (
        lambda lesson: lesson.cells[6].metadata.update({notebook_files.FOLDED: True}),
        "run `make outputs`",
    ),
    "no article": (rewrite(3, "How many?"), "notebook: does not name the article"),
}


@pytest.mark.parametrize("breakage", SECOND_BREAKAGES)
def test_a_rule_of_the_second_edition_notices_when_it_is_broken(breakage, second):
    breaks, message = SECOND_BREAKAGES[breakage]
    breaks(second)
    assert any(re.search(message, problem) for problem in notebook_rules.problems(second, NAME))


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
    "too few cells": (lambda lesson: lesson.cells.pop(3), "notebook: 19 cells, expected 20 to 45"),
    "too many cells": (
        lambda lesson: lesson.cells.extend(new_markdown_cell("More.", id=f"more-{n}") for n in range(26)),
        "notebook: 46 cells, expected 20 to 45",
    ),
    "too many words": (rewrite(5, "word " * 1800), r"notebook: 18\d\d words of prose, expected at most 1800"),
    "too many words of practice": (
        rewrite(12, "## Exercises\n" + "word " * 700),
        r"notebook: 70\d words to explore and practise, expected at most 700",
    ),
    "too many cells of practice": (
        lambda lesson: lesson.cells.extend(
            [new_markdown_cell("## Explore", id="explore")]
            + [new_markdown_cell("More.", id=f"more-{n}") for n in range(14)]
        ),
        "notebook: 15 cells to explore and practise, expected at most 14",
    ),
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


def test_code_and_addresses_are_no_words():
    assert notebook_rules.count_words("Read [the paper](https://a.b/c d) <b>now</b>.\n```\nx = 1\n```\n– four") == 5


def test_a_url_is_no_path():
    assert not notebook_rules.MACHINE_PATH.search("https://example.org/home/ann and a/tmp/b and ~/work/x")
