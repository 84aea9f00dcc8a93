"""Every lesson's exercises: stubs that say so, solutions that pass their checks, minutes, and an open end."""

import ast
import copy
import re
from typing import NamedTuple

import notebook_rules
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import notebook_files
from mistral_lab import checks

HEADING = "## Exercises"
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)\n```\n\n</details>", re.DOTALL)
MINUTES = re.compile(r"\((\d+) minutes(, open)?\)$")


class Exercise(NamedTuple):
    """One exercise of a lesson."""

    title: str
    solution: str | None  # Python
    attempt: str | None  # the code cell below: a stub, and its check as last line


def exercises(notebook: NotebookNode) -> list[Exercise]:
    """Those of the section "## Exercises", which the next heading of its level ends."""
    found, inside = [], False
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            inside = cell.source.startswith(HEADING)
        elif inside and cell.cell_type == "markdown" and cell.source.startswith("### "):
            solution = SOLUTION.search(cell.source)
            found.append(Exercise(cell.source.splitlines()[0], solution and solution[1], None))
        elif inside and cell.cell_type == "code" and found:
            found[-1] = found[-1]._replace(attempt=cell.source)
    return found


def problems(notebook: NotebookNode) -> list[str]:
    """What is wrong with the exercises of a lesson that has some, one line each."""
    found = exercises(notebook)
    wrong = [] if 3 <= len(found) <= 5 else [f"{len(found)} exercises, expected 3 to 5"]
    minutes = [MINUTES.search(exercise.title) for exercise in found]
    wrong += [f"{e.title}: says no minutes" for e, match in zip(found, minutes, strict=True) if match is None]
    stated = [int(match[1]) for match in minutes if match]
    if stated != sorted(stated):
        wrong.append(f"minutes {stated}: expected easy to hard")
    if minutes and minutes[-1] and not minutes[-1][2]:
        wrong.append(f"{found[-1].title}: the last exercise is open, '(... minutes, open)'")
    for exercise in found[:-1]:
        wrong += [f"{exercise.title}: {what}" for what in problems_of(exercise)]
    return wrong


def problems_of(exercise: Exercise) -> list[str]:
    """What is wrong with an exercise that has a check."""
    if exercise.solution is None:
        return ["has no folded solution"]
    if exercise.attempt is None:
        return ["has no code cell to try it in"]
    last = ast.parse(exercise.attempt).body[-1]
    called = re.fullmatch(r"checks\.(\w+)\((\w+)\)", ast.unparse(last))
    if called is None or called[1] not in checks.__all__:
        return [f"ends with {ast.unparse(last)!r}, expected checks.x(my_function)"]
    _, function = called.groups()
    for where, source in (("stub", exercise.attempt), ("solution", exercise.solution)):
        defined = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
        if function not in [node.name for node in defined]:
            return [f"the {where} does not define {function}"]
        if where == "stub" and [ast.unparse(x) for node in defined for x in node.body] != ["return NotImplemented"]:
            return ["the stub does more than return NotImplemented"]
    arguments = {
        ast.unparse(node.args)
        for source in (exercise.attempt, exercise.solution)
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    }
    return [] if len(arguments) == 1 else [f"stub and solution take {sorted(arguments)}"]


def at_hand(notebook: NotebookNode) -> dict:
    """What a solution may use: the lesson's imports and functions, not what its cells compute."""
    names: dict = {}
    for _, cell in notebook_rules.code_cells(notebook)[1:]:
        kept = [n for n in notebook_rules.body(cell) if isinstance(n, ast.Import | ast.ImportFrom | ast.FunctionDef)]
        exec(compile(ast.Module(kept, []), "<lesson>", "exec"), names)
    return names


def tried(notebook: NotebookNode, exercise: Exercise, capsys) -> tuple[str, str]:
    """What the check prints on the stub, and on the solution."""
    names = at_hand(notebook)
    capsys.readouterr()
    exec(exercise.attempt, names)
    stub = capsys.readouterr().out
    exec(exercise.solution, names)
    exec(exercise.attempt.splitlines()[-1], names)
    return stub, capsys.readouterr().out


LESSONS = {path.stem: notebook_rules.read(path) for path in notebook_files.lessons()}


@pytest.fixture(params=LESSONS)
def lesson(request) -> NotebookNode:
    notebook = LESSONS[request.param]
    if not exercises(notebook):
        pytest.skip(f"{request.param} has no section {HEADING!r} yet")
    return notebook


def test_exercises_are_complete(lesson):
    assert problems(lesson) == []


def test_solutions_pass_and_stubs_say_that_they_are_stubs(lesson, capsys):
    for exercise in exercises(lesson)[:-1]:
        name = ast.parse(exercise.attempt).body[-1].value.func.attr
        assert tried(lesson, exercise, capsys) == (f"{name}: not tried yet\n", f"{name}: passed\n"), exercise.title


def test_every_check_belongs_to_an_exercise():
    without = [name for name, notebook in LESSONS.items() if not exercises(notebook)]
    if without:
        pytest.skip(f"{', '.join(without)}: no section {HEADING!r} yet")
    attempts = [e.attempt for notebook in LESSONS.values() for e in exercises(notebook) if e.attempt]
    used = [name for attempt in attempts for name in re.findall(r"checks\.(\w+)\(", attempt)]
    assert sorted(used) == sorted(checks.__all__)


# --- The helpers above, on a small notebook ---


TASK = """### {number}. Slots ({minutes} minutes)

What does each slot hold?

<details><summary>Solution</summary>

```python
def my_slots(seen, window):
    return filled(seen, window, -1)
```

</details>"""
STUB = "def my_slots(seen, window):\n    return NotImplemented\n\n\nchecks.ring_slots(my_slots)"
LESSON = """from mistral_lab import checks

costly = 1 / 0  # what a lesson computes is not there for a solution


def filled(seen, window, empty):
    held = [empty] * window
    for position in range(seen):
        held[position % window] = position
    return held"""


@pytest.fixture
def small() -> NotebookNode:
    """Two exercises and an open one: cells 3 to 7; a function of the lesson in cell 1."""
    cells = [new_code_cell("%pip install lab"), new_code_cell(LESSON), new_markdown_cell(f"{HEADING}\n\nTry.")]
    for number, minutes in ((1, 5), (2, 10)):
        cells += [new_markdown_cell(TASK.format(number=number, minutes=minutes)), new_code_cell(STUB)]
    cells.append(new_markdown_cell("### 3. More (30 minutes, open)\n\nChange the model."))
    cells += [new_markdown_cell("## What to remember"), new_markdown_cell("### No exercise"), new_code_cell("1 / 0")]
    return new_notebook(cells=cells)


def test_a_good_section_has_no_problem(small, capsys):
    assert problems(small) == []
    found = exercises(small)
    assert [exercise.title[4:9] for exercise in found] == ["1. Sl", "2. Sl", "3. Mo"]
    assert found[-1].solution is None
    assert found[-1].attempt is None
    for exercise in found[:2]:
        assert tried(small, exercise, capsys) == ("ring_slots: not tried yet\n", "ring_slots: passed\n")


def test_a_wrong_solution_is_seen(small, capsys):
    small.cells[1].source = LESSON.replace("position % window", "(position + 1) % window")
    assert "one slot too far" in tried(small, exercises(small)[0], capsys)[1]


def test_a_solution_that_needs_what_a_lesson_computes_is_seen(small, capsys):
    small.cells[3].source = small.cells[3].source.replace("-1)", "costly)")
    assert "raises NameError" in tried(small, exercises(small)[0], capsys)[1]


def test_a_stub_with_an_answer_is_seen(small, capsys):
    small.cells[4].source = STUB.replace("NotImplemented", "[0] * window")
    assert "not tried" not in tried(small, exercises(small)[0], capsys)[0]


BREAKAGES = {
    "two exercises": (lambda cells: cells.pop(7), "2 exercises, expected 3 to 5"),
    "no minutes": (lambda cells: cells[3].update(source=TASK.replace("({minutes} minutes)", "")), "says no minutes"),
    "hard to easy": (
        lambda cells: cells[3].update(source=TASK.format(number=1, minutes=15)),
        r"minutes \[15, 10, 30\]",
    ),
    "no open end": (lambda cells: cells[7].update(source="### 3. More (30 minutes)"), "the last exercise is open"),
    "no solution": (lambda cells: cells[3].update(source="### 1. Slots (5 minutes)"), "has no folded solution"),
    "not folded": (
        lambda cells: cells[3].update(source=cells[3].source.replace("details>", "div>")),
        "has no folded solution",
    ),
    "nowhere to try": (lambda cells: cells.pop(4), "has no code cell to try it in"),
    "no check": (lambda cells: cells[4].update(source=STUB.rpartition("\n")[0]), r"expected checks\.x\(my_function\)"),
    "an unknown check": (
        lambda cells: cells[4].update(source=STUB.replace("ring_", "wing_")),
        "ends with 'checks.wing",
    ),
    "another function": (
        lambda cells: cells[3].update(source=cells[3].source.replace("my_slots", "slots")),
        "the solution does not define my_slots",
    ),
    "other arguments": (
        lambda cells: cells[4].update(source=STUB.replace("window", "size")),
        r"stub and solution take \['seen, size', 'seen, window'\]",
    ),
    "a stub that does something": (
        lambda cells: cells[4].update(source=STUB.replace("NotImplemented", "None")),
        "does more than return NotImplemented",
    ),
}


@pytest.mark.parametrize(("breakage", "message"), BREAKAGES.values(), ids=BREAKAGES.keys())
def test_a_breakage_is_caught(small, breakage, message):
    broken = copy.deepcopy(small)
    breakage(broken.cells)
    found = "\n".join(problems(broken))
    assert re.search(message, found), found
