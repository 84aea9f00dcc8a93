"""Mistral Lab: what the lessons share. Importing it is light: a module is imported when one of its names is first used.

>>> import mistral_lab
>>> sorted(set(mistral_lab.__all__) & {"config", "load"})
['config', 'load']
"""

from importlib import import_module
from pkgutil import iter_modules

__version__ = "0.1.0"

_MODULES = {module.name for module in iter_modules(__path__) if not module.name.startswith("_")}
EXPORTS = {"load": "loading", "ModelConfig": "config", "PRESETS": "config"}  # name -> the module it stands in

__all__ = sorted(_MODULES | EXPORTS.keys())


def __getattr__(name: str) -> object:
    """Import a module, or an exported name, the first time it is asked for."""
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in EXPORTS:
        return getattr(import_module(f"{__name__}.{EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
