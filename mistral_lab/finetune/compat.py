"""What this module uses of PyTorch that it does not document.

Such names change without notice, so each stands here and nowhere else, with what it is for and the versions in which
it was seen (read in their source): PyTorch 2.8.0 to 2.15.0.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode  # sees every operation that runs
from torch.utils._pytree import tree_leaves

__all__ = ["TorchDispatchMode", "storage_key", "tensors_in"]


def storage_key(storage: torch.UntypedStorage) -> int:
    """Return one number for all Python objects that stand for one storage: its address in C++, `_cdata`."""
    return storage._cdata


def tensors_in(tree: object) -> list[torch.Tensor]:
    """List the tensors in nested lists, tuples and dictionaries, as operations take and return them."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
