"""Answer checks: right answers pass, plausible wrong ones are named, and whatever else is given is one sentence."""

import functools
import importlib
import inspect
import math
import re
import threading

import numpy as np
import pytest
import torch
from handed_in import handed_in, lesson_2, lesson_3

from mistral_lab import checks
from mistral_lab.checks import judging, values

RIGHT = dict(reversed(handed_in("RIGHT")))  # of each check the first


def said(name, function, capsys) -> str:
    """What a check prints on a function, less its name; always one line."""
    capsys.readouterr()
    assert callable(getattr(checks, name)(function))
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.count("\n") == 1
    assert printed.out.startswith(f"{name}: ")
    return printed.out.removeprefix(f"{name}: ").strip()


@functools.cache
def parts_of(name) -> dict:
    """What a check hands to `judge`: answer, cases, mistakes, show."""
    function = getattr(checks, name)
    module = importlib.import_module(function.__module__)
    with pytest.MonkeyPatch.context() as patch:
        given = {}
        patch.setattr(module, "judge", lambda name, function, **parts: given.update(parts))
        function(None)
    return given


def in_float32(function):
    def narrow(*arguments):
        return function(*(x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in arguments))

    return narrow


# grouped_attention asks in float32 already, and a cache in bfloat16 must not be copied into it.
IN_FLOAT32 = ["draw_probabilities", "merged_weight", "partial_output", "prefill_in_chunks"]


@pytest.mark.parametrize("name", [*IN_FLOAT32, "rms_normed"])
def test_a_right_answer_in_float32_passes(name, capsys):
    answer = functools.wraps(parts_of(name)["answer"])(in_float32(parts_of(name)["answer"]))
    assert said(name, answer, capsys) == "passed"


@pytest.mark.parametrize("name", checks.__all__)
def test_every_mistake_that_a_check_lists_gets_its_own_hint(name, capsys, monkeypatch):
    # Told apart with ten times the tolerance: no hint hangs on rounding.
    monkeypatch.setattr(values, "RTOL", 10 * values.RTOL)
    for mistake in parts_of(name)["mistakes"]:
        wrong = functools.wraps(parts_of(name)["answer"])(
            lambda *arguments, mistake=mistake: mistake.answer(*arguments)
        )
        pattern = ".+".join(re.escape(part) for part in re.split(r"\{[^}]*\}", mistake.hint))
        found = said(name, wrong, capsys)
        assert re.fullmatch(pattern, found), f"{mistake.hint!r} became {found!r}"


ARGUMENTS = [(name, place) for name in checks.__all__ for place in range(len(parts_of(name)["cases"][0]))]
ARGUMENTS.remove(("prefill_in_chunks", 4))  # chunks of every size give the same


@pytest.mark.parametrize(("name", "place"), ARGUMENTS)
def test_an_ignored_argument_is_noticed(name, place, capsys):
    answer, first = parts_of(name)["answer"], parts_of(name)["cases"][0][place]
    ignoring = functools.wraps(answer)(lambda *given: answer(*given[:place], first, *given[place + 1 :]))
    assert said(name, ignoring, capsys) != "passed"


def test_two_mistakes_in_every_answer_are_left_to_the_reader(capsys):
    def unrounded_without_values(free, L, H, G, D, size):
        return free / (L * (H // G) * D * size)

    assert said("longest_text", unrounded_without_values, capsys).endswith("your answer is 152.588, expected 76")


def test_a_mistake_that_explains_most_wrong_answers_is_named(capsys):
    def two_slips(seen, window):
        return (
            lesson_3.slots(seen, window)
            if seen < window
            else lesson_3.ring_with(seen, window, lambda p: (p + 1) % window)
        )

    assert "one slot too far" in said("ring_slots", two_slips, capsys)


# --- Whatever is given, one sentence ---


def changing(q, k, v, mask):
    q *= 2
    return lesson_2.attention_of(q / 2, k, v, mask)


def raising(seen, window):
    held = [-1] * window
    return held[window]


class NotAFunction:
    """A class."""


BAD = [
    ("window_mask", NotAFunction, "^expected a function, got the class NotAFunction: give the function itself"),
    ("window_mask", "my_window", "^expected a function, got text: give the function itself"),
    ("window_mask", torch.ones(2, 3), r"^expected a function, got a tensor of float32, shape \(2, 3\)"),
    ("window_mask", NotImplemented, "^expected a function"),
    ("window_mask", None, "^expected a function, got nothing"),
    (
        "window_mask",
        lambda T, window: None,
        r"takes \(T, window\), but it is called with 3 arguments: \(queries, keys, wi",
    ),
    ("unpacked_numbers", lambda: None, r"takes \(\), but it is called with 1 argument: \(packed\)"),
    ("window_mask", lambda *, queries, keys, window: None, "but it is called with 3"),
    (
        "ring_slots",
        raising,
        r"raises IndexError: list index out of range, in the line `return held\[window\]` \(.*window = 4",
    ),
    ("ring_slots", lambda seen, window: exit(), "raises SystemExit"),
    ("ring_slots", lambda seen, window: ring_slots_for_ever(seen, window), "raises RecursionError"),
    ("ring_slots", lambda seen, window: None, r"returns nothing \(is a `return` missing\?\): expected a list of 4 int"),
    ("ring_slots", lambda seen, window: "0123", "returns text: expected a list"),
    ("ring_slots", lambda seen, window: [None] * window, "returns a list of 4 NoneType: expected a list of 4 int"),
    ("ring_slots", lambda seen, window: [seen + window], r"= 4: your answer is \[7\], expected \[0, 1, 2, -1\]"),
    ("rms_normed", lambda x, weight, eps: x * math.nan, "NaN, which is no number"),
    (
        "rms_normed",
        lambda x, weight, eps: RIGHT["rms_normed"](x, weight, eps)[:2],
        r"shape \(2, 6\), expected \(4, 6\)",
    ),
    ("rms_normed", lambda x, weight, eps: x.to(torch.complex64), "holds no plain numbers"),
    ("rms_normed", lambda x, weight, eps: x.to("meta"), "holds no plain numbers"),
    (
        "rms_normed",
        lambda x, weight, eps: x + weight + eps,
        r"\d+ of 24 values are wrong, the first at \[0, 0\]: .*, expected",
    ),
    ("window_mask", lambda queries, keys, window: (queries[:, None] >= keys).float(), "expected True and False"),
    ("kept_sets", lambda before, after: True, "returns True or False: expected a number"),
    ("kept_sets", lambda before, after: torch.ones(3), "expected a number"),
    ("chosen_experts", lambda logits, experts_per_token: logits.topk(2).indices, "expected 2 results"),
    (
        "chosen_experts",
        lambda logits, A: (logits[:, :A], logits[:, :A]),
        "result 1 of 2 is wrong: .*are wrong, the first",
    ),
    ("least_time", lambda parameters, bits, bytes_per_s: 0.5, "whatever `parameters` is"),
    ("tokens_to_touch", lambda E, A, share: E + A + share, "for num_experts = 8, .*: your answer is 10.5, expected 3"),
    ("grouped_attention", changing, "changes its argument `q`: work on a copy"),
    (
        "balance_by_layer",
        lambda logits, A: 7 * len(logits) + A + logits[0].sum(),
        "^for experts_per_token = 2: your answer",
    ),
    (
        "share_in_four_bits",
        lambda tensors: len(tensors),
        r"for tensors = \[\(100, 'uint8'\), \(300, 'bfloat16'\)\]: your an",
    ),
    ("balance_by_layer", lambda logits, A: logits.pop().mean(), "changes its argument `logits`"),
]


def ring_slots_for_ever(seen, window):
    return ring_slots_for_ever(seen, window)


@pytest.mark.parametrize(("name", "function", "sentence"), BAD)
def test_bad_input_is_one_sentence(name, function, sentence, capsys):
    found = said(name, function, capsys)
    assert re.search(sentence, found), found


RETURNED = [
    *(
        None,
        True,
        3,
        -math.inf,
        math.nan,
        1j,
        "text",
        b"bytes",
        object(),
        [],
        [[1], [2, 3]],
        (),
        (None, None),
        {},
        {1: 2},
    ),
    *(np.array([object()]), np.float64(0.5), np.ones(3), torch.tensor(1.0), torch.empty(0), torch.ones(2, 2, 2)),
    *(
        torch.ones(3).to_sparse(),
        torch.empty(2, device="meta"),
        torch.tensor(True),
        torch.ones(3, dtype=torch.bfloat16),
    ),
    *((torch.ones(1), torch.ones(1)), [torch.tensor(1)] * 4, ["a"] * 2, (i for i in range(3)), torch.tensor(math.nan)),
]


@pytest.mark.parametrize("name", checks.__all__)
def test_whatever_is_returned_is_one_sentence(name, capsys):
    for value in RETURNED:
        found = said(name, lambda *arguments, value=value: value, capsys)
        assert found != "passed"


@pytest.mark.parametrize("name", checks.__all__)
def test_a_stub_is_not_tried_yet(name, capsys):
    def unfinished(*arguments):
        raise NotImplementedError

    assert said(name, lambda *arguments: NotImplemented, capsys) == "not tried yet; the lesson goes on with its own"
    assert said(name, unfinished, capsys) == "not tried yet; the lesson goes on with its own"


def test_what_pytorch_lacks_is_no_stub(capsys):
    def lacking(*arguments):
        raise NotImplementedError("\"softmax\" not implemented for 'Long'")

    assert said("ring_slots", lacking, capsys).startswith(
        'your function raises NotImplementedError: "softmax" not impl'
    )


def test_a_function_that_never_ends_is_given_up(capsys, monkeypatch):
    monkeypatch.setattr(judging, "LIMIT_S", 0.2)
    end = threading.Event()
    try:
        found = said("ring_slots", lambda seen, window: end.wait(), capsys)
    finally:
        end.set()
    assert found == (
        "your function gave no answer within 0.2 s: does a loop never end? It still runs, until you restart the kernel"
    )


def test_the_limit_is_ten_seconds():
    assert judging.LIMIT_S == 10


def test_any_callable_is_taken(capsys):
    assert (
        said("ring_slots", functools.partial(lambda extra, seen, window: lesson_3.slots(seen, window), 1), capsys)
        == "passed"
    )


def test_a_check_changes_nothing_for_the_next(capsys):
    said("grouped_attention", changing, capsys)
    assert said("grouped_attention", lesson_2.without_copies, capsys) == "passed"


def test_random_state_is_left_alone(capsys):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    for name in checks.__all__:
        said(name, RIGHT[name], capsys)
    assert torch.equal(torch.rand(1), expected)


def test_each_check_says_what_the_function_is_called_with():
    for name in checks.__all__:
        line = inspect.getdoc(getattr(checks, name)).splitlines()[0]
        called = re.match(r"Check `function\(([^)]*)\)", re.sub(r" \([^)]*\)| uint8", "", line))
        assert called[1].split(", ") == list(inspect.signature(parts_of(name)["answer"]).parameters), line


def test_what_passed_gives_the_numbers_of_its_arguments_and_is_called_once_per_case(capsys):
    calls = []

    def in_double(x, weight, eps):
        calls.append(1)
        x = x.double()
        return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)

    used = checks.rms_normed(in_double)
    assert "passed" in capsys.readouterr().out
    assert len(calls) == len(parts_of("rms_normed")["cases"])
    assert used(torch.ones(2, 3), torch.ones(3), eps=1e-5).dtype == torch.float32
