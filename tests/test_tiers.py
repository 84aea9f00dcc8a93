"""What the tables of tiers promise has been recorded, or they say that it was not."""

import json
import math
import re

import nbformat
import pytest

import full_size_lessons
import notebook_files

RECORDS = json.loads(full_size_lessons.RECORDS.read_text(encoding="utf-8"))
LESSONS = {path.stem: path for path in notebook_files.lessons()}


def tiers(name: str) -> dict[str, list[str]]:
    """The rows of a lesson's table of tiers: tier to its other cells."""
    cells = nbformat.read(LESSONS[name], as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    table = re.search(r"^\| tier \| model .*\n\| ---.*\n((?:\|.*\n?)+)", text, re.MULTILINE)[1]
    rows = [[part.strip() for part in line.strip("| ").split("|")] for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_each_lesson_that_runs_at_full_size_has_its_record():
    assert {name[:2] for name in RECORDS} == set(full_size_lessons.MEMORY_GIB)
    for name, record in RECORDS.items():
        assert record["minutes"] <= full_size_lessons.MINUTES, name
        assert record["longest_silence_s"] <= full_size_lessons.SILENCE_S, name
        assert record["held"], name
        assert record["memory_gib"] == full_size_lessons.MEMORY_GIB[name[:2]], name


@pytest.mark.parametrize("name", LESSONS)
def test_a_tier_says_what_was_recorded_or_that_it_was_not(name):
    rows = tiers(name)
    assert rows["bundled (default)"]
    for tier in ("7B", "8x7B"):
        model, where, _ = rows[tier]
        if where == "–":  # this lesson does not offer it
            continue
        assert "not recorded" in " ".join(rows[tier]), f"{tier}, {model}"
        if tier == "7B" and name in RECORDS:
            record = RECORDS[name]
            assert f"a CPU with {record['memory_gib']} GiB of free memory" in where
            minutes = math.ceil(record["minutes"])
            assert f" {minutes} minute{'s' if minutes > 1 else ''} on two cores" in rows[tier][2]
        else:
            assert "on two cores" not in " ".join(rows[tier])


def test_the_readme_quotes_the_records():
    text = (notebook_files.ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \[(\d\d_\w+)\]\S+ \| ([\d.]+ \| [\d.]+ \| \d+ GiB) \|$", text, re.MULTILINE))
    assert rows == {
        name: f"{record['minutes']} | {record['anonymous_bytes'] / 2**30:.1f} | {record['memory_gib']} GiB"
        for name, record in RECORDS.items()
    }
    machines = [record["machine"] for record in RECORDS.values()]
    for part, value in (("processor", "AMD EPYC"), ("instructions", "AVX512, AVX512_BF16"), ("threads", 2)):
        assert {machine[part] for machine in machines} == {value}
    assert "two cores of an AMD EPYC with AVX512_BF16" in " ".join(text.split())
