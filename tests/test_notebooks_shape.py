"""Each rule of how a lesson is laid out notices when it is broken, in either edition."""

import re

import notebook_rules
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from notebook_cells import count_words
from small_lessons import FIRST, SECOND, first_lesson, output, printed, rewrite, second_lesson

import notebook_files


@pytest.fixture
def second() -> NotebookNode:
    return second_lesson()


def test_a_good_lesson_of_the_second_edition_has_no_problem(second):
    assert notebook_rules.problems(second, SECOND) == []


FIRST_BREAKAGES = {
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
}


@pytest.mark.parametrize("breakage", FIRST_BREAKAGES)
def test_a_rule_of_the_first_edition_notices_when_it_is_broken(breakage):
    lesson, (breaks, message) = first_lesson(), FIRST_BREAKAGES[breakage]
    breaks(lesson)
    assert any(re.search(message, problem) for problem in notebook_rules.problems(lesson, FIRST))


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
    "late checks": (
        lambda lesson: [lesson.cells.insert(15, lesson.cells.pop(n)) for n in (7, 8)],
        r"notebook: checks in cells \[10, 15, 16\] of 18, expected 3, one in the first half",
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
    assert any(re.search(message, problem) for problem in notebook_rules.problems(second, SECOND))


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
    assert [problem for problem in notebook_rules.problems(second, SECOND) if "needs" in problem] == expected


def test_an_inequality_hides_no_words():
    assert count_words("if $i - j < W$, seen > unseen <details><summary>Solution</summary>") == 7


def test_code_and_addresses_are_no_words():
    assert count_words("Read [the paper](https://a.b/c d) <b>now</b>.\n```\nx = 1\n```\n– four") == 5
