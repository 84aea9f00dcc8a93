"""What this module uses of PyTorch that has a private name, with the versions in which it was seen.

PyTorch 2.13.0 to 2.13.0: `TorchDispatchMode`, which the notes on extending PyTorch describe.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.mv, aten.addmv, aten.dot}


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is made, a view counted as what it looks into."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return made


class Products(TorchDispatchMode):
    """Counts the matrix products, those with a vector included."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in PRODUCTS
        return function(*args, **(kwargs or {}))
