"""Behind `make quick`: run the tests of what changed, the nearest first, until the time is over.

Changed is what differs from where this branch left main, committed or not, and what Git does not know yet. A test is as
far from a change as the imports between the two: 0 is the change's own (its doctests, the test file named after it), 1
imports it, and so on. A changed lesson goes through nbval. What does not fit is skipped, and the last line says so.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SECONDS = 40  # in which a test may begin; lint, and the tests that run by then, take the rest of a minute
LONG_S = 25  # at least, from the last beginning of a test marked as long to the end of that time
TOO_LATE = "left to make test"
PYTEST = [sys.executable, "-m", "pytest", "-p", "tools.quick", "-q", "-n", "2", "--dist", "loadfile"]
NBVAL = ["-p", "tests.no_network", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=300"]


def changed(base: str | None) -> list[str]:
    """The files that differ from `base`, by default from where this branch left main, and the new ones."""
    if base is None:
        fork = subprocess.run(["git", "merge-base", "HEAD", "main"], cwd=ROOT, capture_output=True, text=True)
        base = fork.stdout.strip() or "HEAD"
    commands = (["git", "diff", "--name-only", base], ["git", "ls-files", "--others", "--exclude-standard"])
    outputs = [subprocess.run(c, cwd=ROOT, check=True, capture_output=True, text=True).stdout for c in commands]
    return sorted(set("".join(outputs).splitlines()))


def module(file: str) -> str:
    """The name under which a file is imported; what lies in tests/ and tools/ goes by its last part."""
    parts = Path(file).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__") if parts[0] == "mistral_lab" else parts[-1]


def importers(files: Iterable[str]) -> dict[str, set[str]]:
    """For each Python file, those that import it or a name of it; a file that is gone imports nothing."""
    import mistral_lab
    from imports import imported_names

    by_name, found = {module(file): file for file in files}, {file: set() for file in files}
    for file in (file for file in found if (ROOT / file).exists()):
        for name in imported_names(ROOT / file, ".".join(Path(file).parts[:-1])):
            _, _, first = name.partition("mistral_lab.")
            name = f"mistral_lab.{mistral_lab.EXPORTS[first]}" if first in mistral_lab.EXPORTS else name
            while name and name not in by_name:
                name = name.rpartition(".")[0]
            if name:
                found[by_name[name]].add(file)
    return found


def own_tests(file: str, tests: list[str]) -> set[str]:
    """The tests that carry a file's name, else its folder's; those that mention it where it is no Python."""
    if file.endswith("conftest.py"):
        return {test for test in tests if test.startswith(file.removesuffix("conftest.py"))}
    if not file.endswith(".py"):
        texts = {test: (ROOT / test).read_text(encoding="utf-8") for test in tests}
        if file.endswith(".ipynb"):
            return {test for test, text in texts.items() if "notebook_files.lessons()" in text}
        # A file of another folder may have the same name: who reads one of the repository's root says ROOT.
        sure = re.compile(r"" if "/" in file else r"\bROOT\b")
        return {test for test, text in texts.items() if Path(file).name in text and sure.search(text)}
    parts = [part for part in Path(file).with_suffix("").parts[1:] if part != "__init__"]
    names = ["_".join(parts[:end]) for end in range(len(parts), 0, -1)]
    by_name = ({test for test in tests if re.fullmatch(rf"test_{name}(_\w+)?\.py", Path(test).name)} for name in names)
    return next(filter(None, by_name), set())


def choose(changes: list[str]) -> dict[str, int]:
    """Test files and modules with doctests, the nearest first, each with its distance from a change."""
    paths = [path for folder in ("mistral_lab", "tests", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]
    files = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    # What lies in these two has a target of its own.
    files = {file: text for file, text in files.items() if not file.startswith(("tests/browser/", "tests/device/"))}
    tests = [file for file in files if Path(file).name.startswith("test_")]
    users = importers([*files, *(file for file in changes if file.endswith(".py") and file not in files)])
    far: dict[str, int] = {}
    near, distance = [file for file in changes if file in users], 0
    while near:
        # A package hands on what its files define; mistral_lab itself imports nothing.
        packages = {f"{Path(file).parent.as_posix()}/__init__.py" for file in near} - {"mistral_lab/__init__.py"}
        near += sorted(packages & files.keys() - far.keys())
        far |= {file: distance for file in near if file not in far}
        near, distance = sorted({user for file in near for user in users[file]} - far.keys()), distance + 1
    far |= {test: 0 for file in changes for test in own_tests(file, tests)}
    runs = [file for file in far if file in tests or ">>> " in files.get(file, "")]
    return {file: far[file] for file in sorted(runs, key=lambda file: (far[file], file not in changes, file))}


def main() -> int:
    """Choose, say what and why, and run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition(": ")[2])
    parser.add_argument("--base", help="the commit to compare with; by default where this branch left main")
    changes = changed(parser.parse_args().base)
    chosen = choose(changes)
    lessons = [file for file in changes if file.endswith(".ipynb") and (ROOT / file).exists()]
    print(f"{len(changes)} changed files; nbval: {' '.join(lessons) or 'no lesson'}; tests and doctests:")
    for distance, files in groupby(chosen, key=chosen.get):
        print(f"  {distance and f'{distance} imports away' or 'of the change itself'}: {' '.join(files)}", flush=True)
    began, statuses = time.time(), [0]
    runs = [["--no-loadscope-reorder", *chosen]] * bool(chosen) + [[*NBVAL, *lessons]] * bool(lessons)
    for number, run in enumerate(runs, 1):  # with lessons, half of the time is theirs
        until = {"QUICK_UNTIL": str(began + SECONDS * number / len(runs))}
        statuses.append(subprocess.run([*PYTEST, *run], cwd=ROOT, env=os.environ | until).returncode)
    return max(statuses)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin no test after the time is over, a long one long before (pytest, with this file as its plugin)."""
    if time.time() > float(os.environ["QUICK_UNTIL"]) - (LONG_S if item.get_closest_marker("long") else 0):
        pytest.skip(TOO_LATE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what was skipped for it."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if TOO_LATE in report.longrepr[2]]
    if skipped:
        files = dict.fromkeys(report.nodeid.partition("::")[0] for report in skipped)
        terminalreporter.write_line(f"The time was over: {len(skipped)} tests are {TOO_LATE}, in {' '.join(files)}")


if __name__ == "__main__":
    sys.exit(main())
