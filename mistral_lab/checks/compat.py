"""What this module uses of PyTorch that has a private name, with the versions in which it was seen.

PyTorch 2.13.0 to 2.13.0: `TorchDispatchMode`, which the notes on extending PyTorch describe.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.mv, aten.addmv, aten.dot}


def tensors_in(values: object) -> list[torch.Tensor]:
    """A tensor, or those in a list or tuple of values."""
    return [x for x in (values if isinstance(values, list | tuple) else [values]) if isinstance(x, torch.Tensor)]


class LargestTensor(TorchDispatchMode):
    """Notes how many numbers the largest tensor that is made holds, and bytes; a view counts as what it looks into."""

    numbers = 0
    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tensors_in(made):
            nbytes = tensor.untyped_storage().nbytes()
            self.nbytes = max(self.nbytes, nbytes)
            self.numbers = max(self.numbers, nbytes // tensor.element_size())
        return made


class Reads(TorchDispatchMode):
    """Adds up the numbers that are read from tensors of at least `least` numbers; a view reads nothing."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.numbers = least, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        kept = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(made)}
        read = [tensor for tensor in tensors_in(args) if tensor.untyped_storage().data_ptr() not in kept]
        self.numbers += sum(tensor.numel() for tensor in read if tensor.numel() >= self.least)
        return made


class Products(TorchDispatchMode):
    """Counts the matrix products, those with a vector included."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in PRODUCTS
        return function(*args, **(kwargs or {}))
