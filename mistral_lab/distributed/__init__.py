"""One model over several processes: whole 4-bit experts a rank, what crosses between ranks, and starting the ranks."""

from .experts import ExpertsOfRank, RankConfig, experts_of_rank, load_rank
from .launcher import launch
from .traffic import Traffic, exchange_bytes

__all__ = [
    "ExpertsOfRank",
    "RankConfig",
    "Traffic",
    "exchange_bytes",
    "experts_of_rank",
    "launch",
    "load_rank",
]
