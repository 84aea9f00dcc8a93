"""Mistral Lab: what the lessons share. Importing it is light: a module is imported when one of its names is first used.

>>> import mistral_lab
>>> sorted(set(mistral_lab.__all__) & {"config", "load"})
['config', 'load']
"""

from pkgutil import iter_modules

from .lazy import lazy_names

__version__ = "0.1.0"

EXPORTS = {"load": "loading", "ModelConfig": "config", "PRESETS": "config"}  # name -> the module it stands in
STANDS_IN = {name: name for _, name, _ in iter_modules(__path__) if not name.startswith("_")} | EXPORTS

__all__ = sorted(STANDS_IN)

__getattr__, __dir__ = lazy_names(__name__, STANDS_IN)
