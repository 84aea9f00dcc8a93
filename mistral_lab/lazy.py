"""Names of a package that are imported when they are first used, so that importing the package is light."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_names(package: str, stands_in: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make the `__getattr__` and the `__dir__` of a package.

    Source: PEP 562, "Module __getattr__ and __dir__".

    Args:
        package: its `__name__`.
        stands_in: each name with the module of the package that defines it; a module stands in itself.

    Returns:
        both functions. Reading a name that the package does not have is an AttributeError that lists those it has.

    >>> read, names = lazy_names("mistral_lab", {"config": "config", "PRESETS": "config"})
    >>> read("PRESETS") is read("config").PRESETS, set(names()) >= {"config", "PRESETS"}
    (True, True)
    """

    def read(name: str) -> object:
        if name not in stands_in:
            listed = ", ".join(sys.modules[package].__all__)
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {listed}")
        module = import_module(f"{package}.{stands_in[name]}")
        return module if name == stands_in[name] else getattr(module, name)

    def names() -> list[str]:
        return sorted(vars(sys.modules[package]).keys() | stands_in.keys())

    return read, names
