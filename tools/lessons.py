"""`make lessons`: run every lesson on the bundled models; executed copies and HTML pages go to build/lessons."""

import sys
from pathlib import Path

import nbformat
from jinja2 import DictLoader
from nbconvert import HTMLExporter

import notebook_files
from execute import Run, bundled_environment, execute, exit_if_failed

# nbconvert's own template leaves out the alt text of a picture; this one adds what `figures.show` put in the metadata.
PAGE = """\
{%- extends 'lab/index.html.j2' -%}
{%- block data_png scoped -%}
{{ super() | replace('<img ', '<img alt="%s" ' | format(output | get_metadata('alt', 'image/png') | escape_html), 1) }}
{%- endblock -%}
"""
BUILD = notebook_files.ROOT / "build" / "lessons"


def table(runs: list[Run]) -> str:
    """Lesson, code cells, seconds and peak memory, one line per lesson."""
    width = max(len(run.name) for run in runs)
    lines = [f"{'lesson':{width}}  cells  seconds  peak MiB"]
    for run in runs:
        peak = "-" if run.peak_bytes is None else f"{run.peak_bytes / 2**20:.0f}"
        lines.append(f"{run.name:{width}}  {run.code_cells:5}  {run.seconds:7.1f}  {peak:>8}")
    return "\n".join(lines)


def save(run: Run) -> None:
    """Save the executed copy of a lesson and its HTML page."""
    BUILD.mkdir(parents=True, exist_ok=True)
    nbformat.write(run.notebook, BUILD / f"{run.name}.ipynb")
    exporter = HTMLExporter(extra_loaders=[DictLoader({"lesson.html.j2": PAGE})], template_file="lesson.html.j2")
    page, _ = exporter.from_notebook_node(run.notebook, resources={"metadata": {"name": run.name}})
    (BUILD / f"{run.name}.html").write_text(page, encoding="utf-8")


def main() -> None:
    """Run the lessons named on the command line, or all; exit with 1 where a cell failed."""
    paths = [Path(name).resolve() for name in sys.argv[1:]] or notebook_files.lessons()
    if not paths:
        sys.exit("no lesson found: notebooks/ holds no file such as 01_name.ipynb")
    runs = []
    for path in paths:
        runs.append(execute(path, environment=bundled_environment()))
        save(runs[-1])
    print(f"\n{table(runs)}\n\nexecuted copies and HTML pages: {BUILD.relative_to(notebook_files.ROOT)}")
    exit_if_failed([run.error for run in runs if run.error])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
