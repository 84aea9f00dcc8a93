"""One call from a name to a model that answers: bundled, local or from the hub; device, dtype and bits.

What others type with, `Loaded`, is light; the loader is imported when one of its functions is first used.
"""

from .loaded import Loaded

__all__ = ["Loaded", "load", "quantized_copy"]


def __getattr__(name: str) -> object:
    """Import the loader the first time that it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from . import loader

    return getattr(loader, name)
