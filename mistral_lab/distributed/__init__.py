"""One model over several processes: whole 4-bit experts per rank, what crosses between ranks, starting the ranks."""

from importlib import import_module

_EXPORTS = {  # name -> the file it stands in, imported at first use: not every use needs bitsandbytes
    "ExpertsOfRank": "experts",
    "RankConfig": "experts",
    "Traffic": "traffic",
    "check_room": "loader",
    "experts_of_rank": "experts",
    "launch": "launcher",
    "load_rank": "loader",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
