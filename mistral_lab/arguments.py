"""Checks of arguments that several modules share."""


def check_count(name: str, value) -> None:
    """Raise TypeError unless a value is a whole number, ValueError unless it is at least 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}: expected a whole number")
    if value < 1:
        raise ValueError(f"{name} is {value}: expected at least 1")
