"""Arithmetic: a pupil's exercise sheet of sums, differences, products and small word problems, signed."""

from ..scribe import Scribe, compose

GOODS = "apples pears eggs books coins cups nuts stones boats hats".split()


def write(scribe: Scribe) -> tuple[str, str]:
    """An exercise sheet. Returns the text and the pupil's name."""
    name = scribe.name()

    def filler() -> str:
        return scribe.pick((_sum, _difference, _product, _problem, _order))(scribe)

    def mention() -> str:
        return scribe.pick((f"Pupil: {name}.", f"This sheet belongs to {name}.", f"Well done, {name}!"))

    return compose(scribe, f"Pupil: {name}.", filler, mention, "\n"), name


def _sum(scribe: Scribe) -> str:
    a, b = scribe.pair("sum", range(100), range(100))
    return f"{a} + {b} = {a + b}."


def _difference(scribe: Scribe) -> str:
    a, b = scribe.pair("difference", range(50), range(50))
    return f"{a + b} - {a} = {b}."


def _product(scribe: Scribe) -> str:
    a, b = scribe.pair("product", range(11), range(11))
    return f"{a} * {b} = {a * b}."


def _order(scribe: Scribe) -> str:
    a, b = scribe.pair("order", range(100), range(100))
    return f"{a} is {'equal to' if a == b else 'less than' if a < b else 'more than'} {b}."


def _problem(scribe: Scribe) -> str:
    a, b = scribe.pair("problem", range(2, 20), range(2, 20))
    goods = scribe.pick(GOODS)
    return f"I have {a} {goods} and get {b} more {goods}. Now I have {a + b} {goods}."
