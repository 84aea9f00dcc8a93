"""Two small lessons that keep every rule, one of each edition, and the ways in which a test may break them."""

import notebook_shape
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

import notebook_files
import template

SECOND = "02_grouped_query_attention"
FIRST = "04_mixture_of_experts"  # a lesson whose second edition is still to come
ALT = "Bars of four heights, the third one the tallest."


def figure() -> NotebookNode:
    data = {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 640x480>"}
    return new_output("display_data", data=data, metadata={"image/png": {"alt": ALT}})


def caption(text: str = "Look at the third bar.") -> NotebookNode:
    data = {"text/markdown": text, "text/plain": "<IPython.core.display.Markdown object>"}
    return new_output("display_data", data=data)


def printed(text: str) -> NotebookNode:
    return new_output("stream", name="stdout", text=text)


def explorer() -> list[NotebookNode]:
    return [figure(), new_output("display_data", data={"text/markdown": "Two heads share one."})]


def first_lesson() -> NotebookNode:
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


def second_lesson() -> NotebookNode:
    """A lesson of the second edition that keeps every rule: 4 draws, 6 explores, 8, 10 and 12 check, 20 is folded."""
    notebook = template.new_lesson(SECOND, "Grouped-query attention", notebook_files.repository())
    notebook.cells[1].execution_count = 1

    def add(cell: NotebookNode) -> None:
        cell.id = f"cell-{len(notebook.cells) + 1}"
        if cell.cell_type == "code":
            cell.execution_count = sum(other.cell_type == "code" for other in notebook.cells) + 1
        notebook.cells.append(cell)

    add(new_markdown_cell(f"How many? The article is {notebook_shape.ARTICLE}."))
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


def rewrite(number: int, source: str):
    """A breakage: cell `number` gets another source."""
    return lambda lesson: lesson.cells[number - 1].update(source=source)


def output(number: int, *outputs: NotebookNode):
    """A breakage: cell `number` gets other outputs."""
    return lambda lesson: lesson.cells[number - 1].update(outputs=list(outputs))
