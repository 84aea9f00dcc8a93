"""Every lesson's exercises: stubs that say so, solutions that pass their checks, minutes, and an open end."""

import ast
import copy
import inspect
import re
from typing import NamedTuple

import notebook_cells
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import notebook_files
from mistral_lab import checks

SECTION = "## Exercises"  # in lessons whose exercises stand together at the end
DEEPER = ("## Dig deeper", "## References")
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)\n```\n\n</details>", re.DOTALL)
MINUTES = re.compile(r"\((\d+) minutes(, open)?\)$")
OWN = "not tried yet; the lesson goes on with its own"
IN_PLACE = ("01", "02", "03")  # the lessons in which a stub stands where its idea arises


class Exercise(NamedTuple):
    """One exercise of a lesson."""

    title: str
    solution: str | None  # Python
    attempt: str | None  # the code cell below: a stub, and its check as last line
    place: float  # of its title in the main path: 0 is the first cell, 1 the last
    together: bool  # under "## Exercises"

    @property
    def open(self) -> bool:
        """Whether it has no check."""
        return re.search(r"\bopen\b", self.title) is not None


def exercises(notebook: NotebookNode) -> list[Exercise]:
    """Headings that say minutes, and all that stand under "## Exercises"; what digs deeper is left out."""
    cells = notebook.cells
    end = next((i for i, cell in enumerate(cells) if cell.source.startswith(DEEPER)), len(cells))
    found, together = [], False
    for index, cell in enumerate(cells[:end]):
        headings = re.findall(r"^###? .+$", cell.source, re.M) if cell.cell_type == "markdown" else []
        below = cells[index + 1] if index + 1 < end else None
        for title in headings:
            together = title.startswith(SECTION) if title.startswith("## ") else together
            if not MINUTES.search(title) and not (together and title.startswith("### ")):
                continue
            solution = SOLUTION.search(cell.source)
            right_above = title == headings[-1] and below is not None and below.cell_type == "code"
            attempt = below.source if right_above else None
            found.append(Exercise(title, solution and solution[1], attempt, index / max(1, end - 1), together))
    return found


def problems(notebook: NotebookNode, *, in_place: bool = False) -> list[str]:
    """What is wrong with the exercises of a lesson that has some, one line each."""
    found = exercises(notebook)
    checked = [exercise for exercise in found if not exercise.open]
    wrong = [] if 3 <= len(found) <= 6 else [f"{len(found)} exercises, expected 3 to 6"]
    wrong += [f"{exercise.title}: says no minutes" for exercise in found if not MINUTES.search(exercise.title)]
    if not found or not found[-1].open:
        wrong.append(f"{found[-1].title if found else 'no exercise'}: the last exercise is open, and its title says so")
    if in_place and len(checked) < 3:
        wrong.append(f"{len(checked)} exercises with a check, expected at least 3")
    if in_place and not any(exercise.place < 0.5 for exercise in checked):
        wrong.append("no check in the first half of the lesson")
    stated = [int(match[1]) for exercise in found if exercise.together and (match := MINUTES.search(exercise.title))]
    if stated != sorted(stated):
        wrong.append(f"minutes {stated}: expected easy to hard")
    for exercise in checked:
        wrong += [f"{exercise.title}: {what}" for what in problems_of(exercise)]
    without_task = set(stubs(notebook)) - {exercise.attempt for exercise in found}
    return wrong + [f"{source.splitlines()[-1]}: no task with minutes right above it" for source in without_task]


def stubs(notebook: NotebookNode) -> list[str]:
    """The code cells that call a check."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code" and re.search(CALL, cell.source, re.M)]


CALL = r"^(?:(?P<bound>\w+) = )?checks\.(?P<check>\w+)\((?P<function>\w+)\)$"


def problems_of(exercise: Exercise) -> list[str]:
    """What is wrong with an exercise that has a check."""
    if exercise.solution is None:
        return ["has no folded solution"]
    if exercise.attempt is None:
        return ["has no code cell to try it in"]
    last = ast.unparse(ast.parse(exercise.attempt).body[-1])
    called = re.fullmatch(CALL, last)
    if called is None or called["check"] not in checks.__all__ or called["bound"] != called["function"]:
        return [f"ends with {last!r}, expected my_x = checks.x(my_x)"]
    function = called["function"]
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
    """What a solution may use: the lesson's imports and functions, and what its checks return; nothing computed."""
    names: dict = {}
    for _, cell in notebook_cells.code_cells(notebook)[1:]:
        kept = [
            node
            for node in notebook_cells.body(cell)
            if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef) or re.fullmatch(CALL, ast.unparse(node))
        ]
        exec(compile(ast.Module(kept, []), "<lesson>", "exec"), names)
    return names


def tried(notebook: NotebookNode, exercise: Exercise, capsys) -> tuple[str, str]:
    """What the check prints on the stub, which then is the lesson's own function, and on the solution."""
    names = at_hand(notebook)
    last = exercise.attempt.splitlines()[-1]
    function = re.fullmatch(CALL, last)["function"]
    capsys.readouterr()
    exec(exercise.attempt, names)
    stub = capsys.readouterr().out
    exec(last, names)  # the lesson's own function passes
    assert capsys.readouterr().out.endswith(": passed\n")
    exec(exercise.solution, names)
    handed_in = names[function]
    exec(last, names)
    found = capsys.readouterr().out
    assert not found.endswith(": passed\n") or inspect.unwrap(names[function]) is handed_in
    return stub, found


LESSONS = {path.stem: notebook_cells.read(path) for path in notebook_files.lessons()}


@pytest.fixture(params=LESSONS)
def lesson(request) -> NotebookNode:
    return LESSONS[request.param]


@pytest.mark.parametrize("name", LESSONS)
def test_exercises_are_complete(name):
    assert problems(LESSONS[name], in_place=name.startswith(IN_PLACE)) == []


def test_solutions_pass_and_stubs_say_that_they_are_stubs(lesson, capsys):
    for exercise in exercises(lesson):
        if not exercise.open:
            name = ast.parse(exercise.attempt).body[-1].value.func.attr
            assert tried(lesson, exercise, capsys) == (f"{name}: {OWN}\n", f"{name}: passed\n"), exercise.title


def test_every_check_belongs_to_an_exercise():
    used = [re.search(CALL, source, re.M)["check"] for notebook in LESSONS.values() for source in stubs(notebook)]
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
STUB = "def my_slots(seen, window):\n    return NotImplemented\n\n\nmy_slots = checks.ring_slots(my_slots)"
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
    cells = [new_code_cell("%pip install lab"), new_code_cell(LESSON), new_markdown_cell(f"{SECTION}\n\nTry.")]
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
        assert tried(small, exercise, capsys) == (f"ring_slots: {OWN}\n", "ring_slots: passed\n")


def test_exercises_in_place_are_found_and_counted(small):
    cells = [cell for cell in small.cells if not cell.source.startswith(SECTION)]
    cells[2:2] = [new_markdown_cell("## The ring")]
    in_place = new_notebook(cells=cells)
    assert problems(in_place, in_place=True) == ["2 exercises with a check, expected at least 3"]
    late = new_notebook(cells=[*(new_markdown_cell("More.") for _ in range(20)), *cells])
    assert "no check in the first half of the lesson" in problems(late, in_place=True)
    deeper = new_notebook(
        cells=[*cells, new_markdown_cell("## Dig deeper"), new_markdown_cell(TASK), new_code_cell(STUB)]
    )
    assert len(exercises(deeper)) == 3


def test_a_stub_without_a_task_is_seen(small):
    small.cells.append(new_code_cell(STUB.replace("my_slots", "my_ring")))
    assert problems(small) == ["my_ring = checks.ring_slots(my_ring): no task with minutes right above it"]


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
    "two exercises": (lambda cells: cells.pop(7), "2 exercises, expected 3 to 6"),
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
    "no check": (lambda cells: cells[4].update(source=STUB.rpartition("\n")[0]), r"expected my_x = checks\.x\(my_x\)"),
    "an unknown check": (
        lambda cells: cells[4].update(source=STUB.replace("ring_", "wing_")),
        "ends with 'my_slots = checks.wing",
    ),
    "a check without its name bound": (
        lambda cells: cells[4].update(source=STUB.replace("my_slots = ", "")),
        r"expected my_x = checks\.x\(my_x\)",
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
