"""`make quick` finds what changed, chooses its tests, the nearest first, and says what it had no time for."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import quick

MASKS = "mistral_lab/masks.py"
STATISTICS = "mistral_lab/moe/statistics.py"
LOADING = "mistral_lab/loading/__init__.py"
LOADING_TESTS = ("attending", "forms", "one_row", "outside")
LESSON = "notebooks/05_the_whole_model.ipynb"


@pytest.mark.parametrize(
    ("changed", "own", "next_ring", "never"),
    [
        (MASKS, [MASKS, "tests/test_masks.py"], "tests/test_attention.py", "tests/test_nf4.py"),
        # A module of a package: the tests with its own name, and those that import the package.
        (STATISTICS, [STATISTICS, "tests/test_moe.py"], "tests/test_explorers_experts.py", MASKS),
        # `from mistral_lab import load` is an import of this.
        (
            LOADING,
            ["tests/test_loading.py", *(f"tests/test_loading_{name}.py" for name in LOADING_TESTS)],
            "tests/test_bundled.py",
            MASKS,
        ),
        ("tests/reference.py", [], "tests/test_masks.py", MASKS),
        ("tools/outputs.py", [], "tests/test_tools.py", MASKS),
        ("tests/test_card.py", ["tests/test_card.py"], None, MASKS),
        ("tests/hub/conftest.py", ["tests/hub/test_hub.py", "tests/hub/test_hub_loading.py"], None, MASKS),
        ("environment.yml", ["tests/test_packaging.py"], None, MASKS),
        (
            "README.md",
            [f"tests/test_{name}.py" for name in ("full_size_records", "packaging", "tiers")],
            None,
            "tests/test_card.py",  # has its own
        ),
        (
            "mistral_lab/bundled/runs.json",
            ["tests/test_bundled.py", "tests/test_card.py", "tests/test_training_windows.py"],
            None,
            MASKS,
        ),
        (
            LESSON,
            [
                f"tests/test_{name}.py"
                for name in ("environments", "exercises", "figures_language", "notebooks", "tiers")
            ],
            None,
            MASKS,
        ),
        ("tests/device/test_package.py", [], None, MASKS),
        ("mistral_lab/removed.py", [], None, MASKS),
    ],
)
def test_a_change_chooses_its_own_tests_then_those_that_import_it(changed, own, next_ring, never):
    chosen = quick.choose([changed])
    assert [file for file, distance in chosen.items() if distance == 0 and file != "tests/test_quick.py"] == own
    assert next_ring is None or chosen[next_ring] == 1
    assert never not in chosen
    assert list(chosen.values()) == sorted(chosen.values())


def test_changed_is_what_a_branch_did_what_is_not_committed_and_what_is_new(tmp_path, monkeypatch):
    monkeypatch.setattr(quick, "ROOT", tmp_path)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@b")

    def git(*command):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)

    def commit(**texts):
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        git("add", "--all")
        git("commit", "--message", "m")

    git("init", "--initial-branch", "main")
    commit(same="1", committed="1", edited="1", removed="1")
    git("checkout", "-b", "branch")
    commit(committed="2")
    git("checkout", "main")
    commit(elsewhere="on main, after the branch left")
    git("checkout", "branch")
    (tmp_path / "edited").write_text("2")
    (tmp_path / "removed").unlink()
    (tmp_path / "new").write_text("1")
    assert quick.changed(None) == ["committed", "edited", "new", "removed"]
    assert quick.changed("HEAD") == ["edited", "new", "removed"]
    git("branch", "--delete", "--force", "main")  # as where a fork calls it otherwise
    assert quick.changed(None) == ["edited", "new", "removed"]


def test_what_would_begin_too_late_is_skipped_and_named(tmp_path):
    (tmp_path / "test_a.py").write_text("import pytest\n@pytest.mark.long\ndef test_1(): pass\ndef test_2(): pass\n")
    (tmp_path / "test_b.py").write_text("def test_1(): pass\n")
    search = os.pathsep.join([str(Path(quick.__file__).parents[1]), *sys.path])

    def said(until):
        done = subprocess.run(
            [*quick.PYTEST, "-n", "0", "-p", "no:cacheprovider", "test_a.py", "test_b.py"],
            cwd=tmp_path,
            env=os.environ | {"QUICK_UNTIL": str(until), "PYTHONPATH": search},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    assert "The time was over: 3 tests are left to make test, in test_a.py test_b.py" in said(0)
    # The long one needs more time than is left; that it begins where there is enough, every other use shows.
    late = said(time.time() + quick.LONG_S - 1)
    assert "2 passed, 1 skipped" in late
    assert "The time was over: 1 tests are left to make test, in test_a.py" in late
