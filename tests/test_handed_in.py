"""Answers as readers hand them in: each right one passes, and each wrong one is told what is wrong with it."""

import re
from collections import Counter

import pytest
from handed_in import handed_in

from mistral_lab import checks

RIGHT, WRONG = handed_in("RIGHT"), handed_in("WRONG")


def said(name, function, capsys) -> str:
    """What a check prints on a function, less its name."""
    capsys.readouterr()
    getattr(checks, name)(function)
    return capsys.readouterr().out.removeprefix(f"{name}: ").strip()


@pytest.mark.parametrize(
    ("name", "function"), RIGHT, ids=[f"{name}-{function.__name__}" for name, function in RIGHT]
)
def test_a_right_answer_passes(name, function, capsys):
    assert said(name, function, capsys) == "passed"


@pytest.mark.parametrize(("name", "function", "hint"), WRONG, ids=[f"{name}: {hint}" for name, _, hint in WRONG])
def test_a_wrong_answer_is_named(name, function, hint, capsys):
    found = said(name, function, capsys)
    assert re.search(hint, found), found


def test_every_check_has_enough_of_both():
    for students, least in ((RIGHT, 5), (WRONG, 8)):
        count = Counter(name for name, *_ in students)
        assert {name: count[name] for name in checks.__all__ if count[name] < least} == {}
