"""What crosses between ranks, counted in the collectives that run; `memory.traffic_bytes` predicts it."""

from collections import Counter

import torch
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode

# What PyTorch calls a collective inside, and what it is called here. DTensor has operations of its own for two of them.
# transformers 5.15.0 gathers through torch.distributed itself, 5.23.0 through DTensor.
COLLECTIVES = {
    "c10d::allreduce_": "all_reduce",
    "c10d::allgather_": "all_gather",
    "c10d::_allgather_base_": "all_gather",
    "_c10d_functional::all_reduce": "all_reduce",
    "_c10d_functional::all_gather_into_tensor": "all_gather",
    "c10d::broadcast_": "broadcast",
}
OUTPUT_FIRST = {"c10d::allgather_", "c10d::_allgather_base_"}  # their first argument is where the result goes


class Traffic(TorchDispatchMode):
    """Counts what collectives bring to this rank while a `with` block runs.

    Bytes received, for a tensor of n bytes on each of the R ranks of the collective's group:

        all_reduce   2 · (R - 1)/R · n   in a ring: every share of the sum comes by once, and once more when complete
        all_gather   (R - 1) · n         n of every other rank
        broadcast    n                   but 0 on the rank that sends

    Source: Patarasu and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009, for the
    ring, which sends the least possible. A library may send more.

    Raises:
        NotImplementedError: a collective that is not among these.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.received_bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.name().partition(".")[0]
        if name in COLLECTIVES:
            self._count(COLLECTIVES[name], args[1:] if name in OUTPUT_FIRST else args)
        elif name.startswith(("c10d::", "_c10d_functional::")) and "wait" not in name and "wrap" not in name:
            raise NotImplementedError(f"Traffic knows {', '.join(COLLECTIVES)}, and met {name}")
        return operation(*args, **(kwargs or {}))

    def _count(self, collective: str, args) -> None:
        tensors = args[0] if isinstance(args[0], list | tuple) else [args[0]]
        if isinstance(args[1], torch.ScriptObject):
            group = distributed.ProcessGroup.unbox(args[1])
        else:
            group = distributed.distributed_c10d._resolve_process_group(args[2])
        size, ranks = sum(tensor.nbytes for tensor in tensors), group.size()
        received = {
            "all_reduce": 2 * (ranks - 1) * size // ranks,
            "all_gather": (ranks - 1) * size,
            "broadcast": 0 if collective != "broadcast" or args[2] == group.rank() else size,
        }
        self.calls[collective] += 1
        self.received_bytes[collective] += received[collective]
