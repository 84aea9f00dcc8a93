"""What a reader's function returned: brought into the expected form, compared, and put into words."""

import numbers
from collections.abc import Sequence

import numpy as np
import torch

from ..config import ModelConfig

# Of a number, or of the largest value in an array: float32 keeps seven digits, of which a sum may lose two.
RTOL = 1e-5
SIZES = ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim")  # of a model, in a hint
EXACT = 1e-9  # of a count, which is whole: all that float64 may lose on the way, and less than one in a billion


class Refusal(Exception):
    """What the reader gave cannot be compared with the answer; the message says why."""


def read_answer(value: object, like: object) -> np.ndarray | list | float | tuple:
    """Bring a value into the form of `like`: an array where that is a tensor, a list, a number, or a tuple of these.

    Raises:
        Refusal: the value cannot be brought into that form.
    """
    found = f"your function returns {kind_of(value)}"
    if isinstance(like, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(like):
            raise Refusal(f"{found}: expected {len(like)} results, {' and '.join(map(kind_of, like))}")
        return tuple(map(read_answer, value, like))
    if isinstance(like, list):
        if isinstance(value, range) or (isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 1):
            value = list(value) if isinstance(value, range) else value.tolist()
        element = str if like and isinstance(like[0], str) else numbers.Real
        if not isinstance(value, list | tuple) or not all(_is(element, x) for x in value):
            raise Refusal(f"{found}: expected {kind_of(like)}")
        return [x if element is str else float(x) for x in value]
    if isinstance(like, torch.Tensor) and like.ndim:  # one without axes is a number
        if not isinstance(value, torch.Tensor | np.ndarray | list | tuple):
            raise Refusal(f"{found}: expected {kind_of(like)}")
        array = _array(_in_lists(value) if isinstance(value, list | tuple) else value, found)
        if (array.dtype == bool) != (like.dtype == torch.bool):
            expected = "True and False (torch.bool)" if like.dtype == torch.bool else "numbers"
            raise Refusal(f"{found}: expected {expected}")
        return array
    if isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0:
        value = _array(value, found).item()
    if not _is(numbers.Real, value):
        raise Refusal(f"{found}: expected a number")
    value = float(value)
    return int(value) if isinstance(like, int) and value.is_integer() else value


def has_form(value: object, like: object) -> bool:
    """Whether a value is of the same kind as `like`, so that a lesson can use one for the other."""
    if isinstance(like, tuple):
        return isinstance(value, tuple) and all(map(has_form, value, like))
    if isinstance(like, torch.Tensor):
        return isinstance(value, torch.Tensor) and value.dtype == like.dtype
    if isinstance(like, list):
        return isinstance(value, list)
    return _is(numbers.Real, value) and not isinstance(value, torch.Tensor)


def in_form(value: object, like: object, arguments: Sequence) -> torch.Tensor | list | float | tuple:
    """Turn a value that `read_answer` takes into one of the kind of `like`; tensors as the arguments' tensors are."""
    if has_form(value, like):
        return value
    if isinstance(like, tuple):
        return tuple(in_form(x, y, arguments) for x, y in zip(value, like, strict=True))
    if isinstance(like, torch.Tensor):
        given = [x for x in arguments if isinstance(x, torch.Tensor)]
        value = torch.as_tensor(_in_lists(value), device=given[0].device if given else None)
        floating = [x.dtype for x in given if x.is_floating_point()]
        return value.to(floating[0]) if floating and value.is_floating_point() else value
    return list(value) if isinstance(value, range) else _in_lists(value)


def answers_equal(one: object, other: object) -> bool:
    """Whether two values that `read_answer` returned agree up to rounding; NaN agrees with NaN."""
    if isinstance(one, tuple):
        return all(map(answers_equal, one, other))
    if isinstance(one, list) and (len(one) != len(other) or (one and isinstance(one[0], str))):
        return one == other
    return np.shape(one) == np.shape(other) and bool(np.all(_close(one, other)))


def times_larger(answers: Sequence, expected: Sequence) -> float | None:
    """The factor by which all answers, numbers or arrays, are too large; None where they share none."""
    if not all(
        isinstance(x, int | float | np.ndarray) and np.shape(x) == np.shape(y)
        for x, y in zip(answers, expected, strict=True)
    ):
        return None
    got, wanted = (np.concatenate([np.ravel(x).astype(float) for x in values]) for values in (answers, expected))
    nonzero = wanted != 0
    if len(np.unique(wanted)) < 2 or np.asarray(expected[0]).dtype == bool:
        return None  # a constant is no factor
    factor = float(got[nonzero][0] / wanted[nonzero][0])
    return factor if factor and np.isfinite(factor) and answers_equal(got, factor * wanted) else None


def same_value(one: object, other: object) -> bool:
    """Whether two arguments hold exactly the same values."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_value, one, other))
    return one is other or (type(one) is type(other) and one == other)


def holds_nan(value: object) -> bool:
    """Whether a value that `read_answer` returned holds NaN."""
    if isinstance(value, tuple | list):
        return any(map(holds_nan, value))
    return not isinstance(value, str) and bool(np.isnan(value).any())


def say_difference(got: object, wanted: object, said: str) -> str:
    """Say what differs, where no known mistake explains it."""
    where = f"for {said}: " if said else ""
    if isinstance(wanted, tuple):
        at = next(i for i, pair in enumerate(zip(got, wanted, strict=True)) if not answers_equal(*pair))
        return f"result {at + 1} of {len(wanted)} is wrong: {say_difference(got[at], wanted[at], said)}"
    if not isinstance(wanted, np.ndarray):
        return f"{where}your answer is {in_short(got)}, expected {in_short(wanted)}"
    if got.shape != wanted.shape:
        return f"{where}your answer has shape {got.shape}, expected {wanted.shape}"
    off = ~_close(got, wanted)
    first = tuple(int(i) for i in np.argwhere(off)[0])
    values = f"{in_short(got[first].item())}, expected {in_short(wanted[first].item())}"
    return f"{where}{off.sum()} of {off.size} values are wrong, the first at {list(first)}: {values}"


def say_arguments(parameters: Sequence[str], case: tuple, *, shapes: bool = False) -> str:
    """Name the arguments of a call, without those that take more than a few words; of tensors the shapes, if asked."""
    said = []
    for parameter, value in zip(parameters, case, strict=True):
        if isinstance(value, torch.Tensor):
            said += [f"{parameter} of shape {tuple(value.shape)}"] * shapes
        elif not callable(value) and not (isinstance(value, list) and value and isinstance(value[0], torch.Tensor)):
            said.append(f"{parameter} = {in_short(value)}")
    return ", ".join(said)


def in_short(value: object) -> str:
    """Put a value into a few words: numbers in full, lists up to eight entries, arrays by their shape."""
    if isinstance(value, tuple):
        return f"({', '.join(map(in_short, value))})"
    if isinstance(value, list):
        return f"[{', '.join(map(in_short, value[:8]))}{', ...' if len(value) > 8 else ''}]"
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"values of shape {tuple(value.shape)}"
    if isinstance(value, ModelConfig):
        return f"ModelConfig({', '.join(f'{name}={getattr(value, name)}' for name in SIZES)})"
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"
    return repr(value)


def kind_of(value: object) -> str:
    """Say in words what sort of thing a value is."""
    if value is None:
        return "nothing (is a `return` missing?)"
    if isinstance(value, torch.Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}, shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    if isinstance(value, list | tuple):
        inside = {type(x).__name__ for x in value}
        return f"a {type(value).__name__} of {len(value)}{' ' + ', '.join(sorted(inside)) if inside else ''}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    names = {str: "text", bool: "True or False", int: "a whole number", float: "a number", bytes: "bytes"}
    return names.get(type(value), f"a {type(value).__name__}")


def _close(one, other) -> np.ndarray:
    """Where two numbers or arrays of one shape agree: counts exactly, others up to the rounding of float32."""
    if isinstance(other, int):
        return np.isclose(one, other, rtol=EXACT, atol=0)
    finite = np.abs(other)[np.isfinite(other)] if np.ndim(other) else np.abs(other)
    largest = float(np.max(finite, initial=0.0))
    return np.isclose(one, other, rtol=RTOL, atol=RTOL * largest if largest else 1e-12, equal_nan=True)


def _in_lists(value):
    """A value with its tensors and arrays as plain lists and numbers, so that what holds them can become one array."""
    if isinstance(value, list | tuple):
        return [_in_lists(x) for x in value]
    if isinstance(value, torch.Tensor | np.ndarray):
        value = value.detach() if isinstance(value, torch.Tensor) else value
        return value.tolist()
    return value


def _array(value, found: str) -> np.ndarray:
    """Copy a tensor or array into a NumPy array of bool or float64."""
    try:
        if isinstance(value, torch.Tensor) and not value.is_complex():
            value = value.detach().cpu()
            value = np.array(value.numpy() if value.dtype == torch.bool else value.double().numpy())
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return np.array(array, dtype=bool if array.dtype == bool else np.float64)
    except Exception:  # a tensor that is sparse, quantised or on the meta device
        pass
    raise Refusal(f"{found}, which holds no plain numbers")


def _is(element: type, x) -> bool:
    """Whether x is text or a number, as `element` asks; True and False are no numbers, a tensor without axes is one."""
    return (
        isinstance(x, element)
        and not isinstance(x, bool)
        or (element is numbers.Real and isinstance(x, torch.Tensor) and x.ndim == 0 and not x.is_complex())
    )
