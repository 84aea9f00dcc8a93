"""The rolling key and value cache: a ring of slots for one layer, and all layers as a transformers Cache."""

from .ring import KVRing
from .rolling import RollingCache

__all__ = ["KVRing", "RollingCache"]
