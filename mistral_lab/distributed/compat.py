"""What this module uses of PyTorch and transformers that they do not document.

Such names change without notice, so each stands here and nowhere else, with what it is for and the versions in which
it was seen (read in their source): PyTorch 2.8.0 to 2.15.0, transformers 5.15.0 to 5.24.0.
"""

from typing import NamedTuple

import torch
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode  # sees every operation that runs, collectives too

__all__ = ["Collective", "TorchDispatchMode", "collective", "ignore_unexpected", "place_ranks_on_cpu"]

# What PyTorch calls a collective inside, and its public name. DTensor has operations of its own for two of them:
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


class Collective(NamedTuple):
    """One call of a collective.

    Args:
        name: "all_reduce", "all_gather" or "broadcast".
        tensors: what this rank gives, or where it receives a broadcast.
        group: the ranks that take part.
        source: which of them sends a broadcast; None for the others.
    """

    name: str
    tensors: list[torch.Tensor]
    group: distributed.ProcessGroup
    source: int | None


def collective(operation, args: tuple) -> Collective | None:
    """Read an operation that a TorchDispatchMode sees; None where it is no collective.

    Raises:
        NotImplementedError: a collective of another kind.
    """
    internal = operation.name().partition(".")[0]
    if internal not in COLLECTIVES:
        if internal.startswith(("c10d::", "_c10d_functional::")) and "wait" not in internal and "wrap" not in internal:
            raise NotImplementedError(f"Traffic knows {', '.join(COLLECTIVES)}, and met {internal}")
        return None
    if internal in OUTPUT_FIRST:
        args = args[1:]
    tensors = list(args[0]) if isinstance(args[0], list | tuple) else [args[0]]
    if isinstance(args[1], torch.ScriptObject):
        group = distributed.ProcessGroup.unbox(args[1])
    else:  # an operation of DTensor names its group
        group = distributed.distributed_c10d._resolve_process_group(args[2])
    name = COLLECTIVES[internal]
    return Collective(name, tensors, group, source=args[2] if name == "broadcast" else None)


def place_ranks_on_cpu() -> None:
    """Have transformers place this rank on the CPU.

    Its distributed/utils.py places ranks on what `torch._C._get_accelerator` says, whatever the group's backend, and
    offers no argument for it: on Apple silicon that is mps, which carries no group of ranks.
    """
    torch._C._get_accelerator = lambda *_: torch.device("cpu")


def ignore_unexpected(model, pattern: str) -> None:
    """Have `from_pretrained` pass over tensors of the checkpoint whose names match, for which a model has no place.

    Otherwise it reports them. transformers has `_keys_to_ignore_on_load_unexpected` as an attribute of a model's class.
    """
    model._keys_to_ignore_on_load_unexpected = {pattern}
