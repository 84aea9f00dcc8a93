"""Run a reader's function on a few cases, and say in one line whether it is right or which mistake it looks like."""

import contextvars
import copy
import functools
import inspect
import math
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from .values import (
    Refusal,
    answers_equal,
    has_form,
    holds_nan,
    in_form,
    in_short,
    kind_of,
    read_answer,
    same_value,
    say_arguments,
    say_difference,
    times_larger,
)

LIMIT_S = 10.0  # for all cases together; a right answer takes milliseconds
NOT_TRIED = "not tried yet; the lesson goes on with its own"
PASSED = "passed"


class Raised(Refusal):
    """The reader's function raises an exception."""


class Mistake(NamedTuple):
    """A plausible wrong answer, and what to say to a reader whose function gives it.

    The answer may raise where the shapes of a case do not suit it: it then explains a function that raises there too.
    The hint is filled in for the first case that is wrong: `{window}` is the argument of that name, `{got}` and
    `{expected}` are the reader's answer and the right one, in short.
    """

    answer: Callable
    hint: str


class _Asked(NamedTuple):
    """What `judge` was told of a call: see there."""

    watch: Callable[[], AbstractContextManager]
    form: str
    unchanged: Mapping[str, str]


def judge(
    name: str,
    function: Callable,
    *,
    answer: Callable,
    cases: Sequence[tuple],
    mistakes: Sequence[Mistake],
    show: Callable | None = None,
    watch: Callable[[], AbstractContextManager] = nullcontext,
    also: Callable[[Callable], str | None] = lambda function: None,
    form: str = "",
    unchanged: Mapping[str, str] = MappingProxyType({}),
) -> Callable:
    """Print one line on a function: not tried yet, passed, or what is wrong with it; return one to go on with.

    The function is called with a copy of each case, in a thread that is abandoned after LIMIT_S seconds. Whatever the
    function does, the reader sees one sentence.

    Args:
        name: the name of the check, printed first.
        function: the reader's function.
        answer: the right function. The reader's function is called with the same parameters, and must return the same
            kind of value: a tensor, a number, a list or a tuple of these.
        cases: the arguments of each call, the simplest first. Two cases that differ in one argument show whether that
            argument is used.
        mistakes: plausible wrong answers, the likeliest first.
        show: puts an answer (NumPy array, number or list) into a few words for the hints; None uses `in_short`.
        watch: what each call of the reader's function runs in; it raises `Refusal` on what no answer shows, such as a
            call of the package's own function.
        also: what else is asked of a function whose answers are all right: takes it, and returns what is wrong with it
            in one sentence, or None; it never raises.
        form: added where a value is of another kind than the answer's, such as None for a number.
        unchanged: what is said of an argument, by its name, that a function must not change, instead of "work on a
            copy of it".

    Returns:
        the reader's function if it passed, `answer` otherwise: what the lesson goes on with. A function that passed
        with arrays or lists where `answer` gives tensors is wrapped, so that it gives tensors too.
    """
    verdict, alike = _verdict(function, answer, cases, mistakes, show or in_short, _Asked(watch, form, unchanged))
    if verdict == PASSED:
        verdict = also(function) or PASSED
    print(f"{name}: {verdict}")
    if verdict != PASSED:
        return answer
    return function if alike else _formed(function, answer(*copy.deepcopy(cases[0])))


def _formed(function: Callable, like: object) -> Callable:
    """A function that passed with other types than the answer's, as with NumPy arrays, made to give the answer's."""

    @functools.wraps(function)
    def formed(*arguments, **named):
        return in_form(function(*arguments, **named), like, [*arguments, *named.values()])

    return formed


def _verdict(function, answer, cases, mistakes, show, asked) -> tuple[str, bool]:
    """The line that `judge` prints, without the name; and whether all results are of the answer's types."""
    parameters = list(inspect.signature(answer).parameters)
    right = [answer(*copy.deepcopy(case)) for case in cases]
    expected = [read_answer(value, value) for value in right]
    try:
        _check_callable(function, parameters, cases[0])
        answers, end, alike = _call(function, cases, parameters, right, asked)
    except Refusal as refusal:
        return str(refusal), False

    wrong = [i for i in range(len(answers)) if not answers_equal(answers[i], expected[i])]
    if not wrong:
        return (str(end) if end else PASSED), alike
    return _mistaken(parameters, cases, right, answers, expected, wrong, end, mistakes, show), False


def _mistaken(parameters, cases, right, answers, expected, wrong, end, mistakes, show) -> str:
    """What is wrong with a function, some of whose answers are: the mistake that it looks like, or where it differs."""
    case, got, wanted = cases[wrong[0]], answers[wrong[0]], expected[wrong[0]]
    guesses = [_until_it_raises(mistake.answer, cases, right) for mistake in mistakes]
    said = dict(zip(parameters, case, strict=True))

    def fill(mistake: Mistake) -> str:
        return mistake.hint.format(**said, got=show(got), expected=show(wanted))

    for mistake, guess in zip(mistakes, guesses, strict=True):
        raises_there_too = not isinstance(end, Raised) or len(guess) == len(answers)
        if raises_there_too and len(guess) >= len(answers) and all(map(answers_equal, answers, guess)):
            return fill(mistake)
    if holds_nan(got) and not holds_nan(wanted):
        return "your answer holds NaN, which is no number: is something divided by zero, or is everything hidden?"
    if unused := _unused(parameters, cases[: len(answers)], answers, expected):
        return f"your answer stays the same whatever `{unused}` is given: is that argument used?"
    if isinstance(end, Raised):
        return str(end)
    if end:  # what refused a later case may not be what makes this one wrong
        return say_difference(got, wanted, say_arguments(parameters, case))
    if factor := _factor(answers, expected):
        return factor
    # Two mistakes at once, or other rounding: take the mistake that explains the first wrong answer and most others.
    explained = [
        sum(answers_equal(answers[i], guess[i]) for i in wrong if i < len(guess))
        * (wrong[0] < len(guess) and answers_equal(got, guess[wrong[0]]))
        for guess in guesses
    ]
    if explained and 2 * max(explained) > len(wrong):
        return fill(mistakes[explained.index(max(explained))])
    return say_difference(got, wanted, say_arguments(parameters, case))


def _until_it_raises(function: Callable, cases: Sequence[tuple], right: Sequence) -> list:
    """The answers of a known mistake: a wrong product, say, fits square matrices alone, and raises on the others."""
    answers: list = []
    for case, like in zip(cases, right, strict=True):
        try:
            answers.append(read_answer(function(*copy.deepcopy(case)), like))
        except Exception:
            break
    return answers


def _factor(answers, expected) -> str | None:
    """What to say where every answer is the right one times the same factor."""
    factor = times_larger(answers, expected)
    if (
        factor is None
        or abs(factor - 1) < 1e-3
        or not all(
            isinstance(value, np.ndarray)
            or math.isclose(got, factor * value, rel_tol=1e-6)  # a small one beside large ones
            for got, value in zip(answers, expected, strict=True)
        )
    ):
        return None
    if factor < 0:
        return "every answer has the wrong sign"
    size = f"{factor:,.4g} times too large" if factor > 1 else f"{1 / factor:,.4g} times too small"
    return f"every answer is {size}: is it a unit, or a factor?"


def _check_callable(function, parameters: Sequence[str], case: tuple) -> None:
    if isinstance(function, type) or not callable(function):
        raise Refusal(
            f"expected a function, got {kind_of(function)}: give the function itself, my_function, not a call of it"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have no signature: calling them will show what is wrong
        return
    try:
        signature.bind(*case)
    except TypeError:
        wanted = f"{len(case)} argument{'s' * (len(case) > 1)}: ({', '.join(parameters)})"
        raise Refusal(f"your function takes {signature}, but it is called with {wanted}") from None


def _call(function, cases: Sequence[tuple], parameters: Sequence[str], right: Sequence, asked: _Asked):
    """What the function returns for each case, as the right answers are; the Refusal that ended it, or None; and
    whether all of it was of their types already."""
    answers, alike, ends = [], [], []

    def work() -> None:
        for case, like in zip(cases, right, strict=True):
            given = copy.deepcopy(case)
            with asked.watch():
                value = function(*given)
            if value is NotImplemented:
                raise Refusal(NOT_TRIED)
            for parameter, after, before in zip(parameters, given, case, strict=True):
                if not same_value(after, before):
                    instead = asked.unchanged.get(parameter, ": work on a copy of it")
                    raise Refusal(f"your function changes its argument `{parameter}`{instead}")
            try:
                answers.append(read_answer(value, like))
            except Refusal as refusal:
                raise Refusal(f"{refusal}{asked.form}") from None
            alike.append(has_form(value, like))

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # also exit(): it would end the thread without a word
            ends.append(error)

    in_context = contextvars.copy_context().run  # by which a notebook knows whose cell prints
    thread = threading.Thread(target=in_context, args=(guarded,), daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    if thread.is_alive():
        raise Refusal(
            f"your function gave no answer within {LIMIT_S:g} s: does a loop never end? "
            "It still runs, until you restart the kernel"
        )
    end = ends[0] if ends else None
    if end is None or isinstance(end, Refusal):
        return answers, end, all(alike)
    if type(end) is NotImplementedError and not end.args:  # PyTorch raises it too, with a message
        return answers, Refusal(NOT_TRIED), False
    return answers, Raised(_raised(end, say_arguments(parameters, cases[len(answers)], shapes=True))), False


def _raised(error: BaseException, said: str) -> str:
    """An exception, and the line of the reader's code that led to it."""
    message = " ".join(str(error).split())[:200]
    frames = traceback.extract_tb(error.__traceback__)[2:]  # the first two are `guarded` and `work`
    own = [frame for frame in frames if frames and frame.filename == frames[0].filename]
    line = f", in the line `{own[-1].line}`" if own and own[-1].line else ""
    with_arguments = f" (called with {said})" if said else ""
    return f"your function raises {type(error).__name__}{': ' if message else ''}{message}{line}{with_arguments}"


def _unused(parameters, cases, answers, expected) -> str | None:
    """The first parameter that should change the answer and never does."""
    for place, parameter in enumerate(parameters):
        pairs = [
            (i, j)
            for i, j in ((i, j) for j in range(len(cases)) for i in range(j))
            if all(same_value(a, b) != (n == place) for n, (a, b) in enumerate(zip(cases[i], cases[j], strict=True)))
            and not answers_equal(expected[i], expected[j])
        ]
        if pairs and all(answers_equal(answers[i], answers[j]) for i, j in pairs):
            return parameter
    return None
