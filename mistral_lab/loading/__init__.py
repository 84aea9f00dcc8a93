"""From a name to a model that answers: bundled, local or from the hub; on which device, in which dtype and bits.

`Loaded`, by which others type their arguments, is light. The loader is imported when one of its functions is first
used.
"""

from importlib import import_module

from .loaded import Loaded

_EXPORTS = {"load": "loader", "quantized_copy": "loader"}  # name -> the file it stands in, imported at first use

__all__ = ["Loaded", *_EXPORTS]


def __getattr__(name: str) -> object:
    """Import the loader the first time one of its functions is used."""
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
