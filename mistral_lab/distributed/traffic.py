"""What crosses between ranks, counted in the collectives that run; `memory.traffic_bytes` predicts it."""

from collections import Counter

from .compat import Collective, TorchDispatchMode, collective


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
        if (call := collective(operation, args)) is not None:
            self.count(call)
        return operation(*args, **(kwargs or {}))

    def count(self, call: Collective) -> None:
        """Add what one call brings to this rank."""
        size, ranks = sum(tensor.nbytes for tensor in call.tensors), call.group.size()
        received = {
            "all_reduce": 2 * (ranks - 1) * size // ranks,
            "all_gather": (ranks - 1) * size,
            "broadcast": 0 if call.source == call.group.rank() else size,
        }
        self.calls[call.name] += 1
        self.received_bytes[call.name] += received[call.name]
