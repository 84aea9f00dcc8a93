"""The hub: downloads that go on where they stopped, and each of its refusals in one sentence.

huggingface_hub does the talking, lists the files and lays out its cache. But after an interruption it begins a weight
file at its first byte again, and of what arrives it checks the size alone. So weight files are fetched here, into the
library's cache.
"""

from .listing import spelled
from .refusals import in_one_sentence
from .snapshots import config_file, snapshot

__all__ = ["config_file", "in_one_sentence", "snapshot", "spelled"]
