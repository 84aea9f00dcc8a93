"""What readers hand in: right answers in many styles, and wrong ones with words that the hint must say.

A module per lesson, and a second author's modules beside them; each holds one or both of two lists:

    RIGHT = [("shared_heads", function), ...]                                     accepted
    WRONG = [("shared_heads", function, "a regular expression in the hint"), ...]  refused, for this reason

Right answers share no code with the package. The first one of a check is plain Python or float64 NumPy.
"""

import importlib
import pkgutil


def handed_in(kind: str) -> list[tuple]:
    """All of RIGHT or all of WRONG, lesson by lesson."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [student for module in modules for student in getattr(module, kind, [])]
