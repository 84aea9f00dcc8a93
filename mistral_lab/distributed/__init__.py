"""One model over several processes: whole 4-bit experts per rank, what crosses between ranks, starting the ranks."""

from ..lazy import lazy_names

STANDS_IN = {  # not every use needs bitsandbytes
    "ExpertsOfRank": "experts",
    "RankConfig": "experts",
    "Traffic": "traffic",
    "check_room": "loader",
    "experts_of_rank": "experts",
    "launch": "launcher",
    "load_rank": "loader",
}

__all__ = list(STANDS_IN)

__getattr__, __dir__ = lazy_names(__name__, STANDS_IN)
