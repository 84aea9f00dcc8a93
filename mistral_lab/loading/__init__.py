"""From a name to a model that answers: bundled, local or from the hub; on which device, in which dtype and bits.

`Loaded`, by which others type their arguments, is light. The loader is imported when one of its functions is first
used.
"""

from ..lazy import lazy_names
from .loaded import Loaded

STANDS_IN = {"load": "loader", "quantized_copy": "loader"}

__all__ = ["Loaded", *STANDS_IN]

__getattr__, __dir__ = lazy_names(__name__, STANDS_IN)
