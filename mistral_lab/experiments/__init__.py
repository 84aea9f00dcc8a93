"""What the lessons measure: one documented function per measurement, so that a cell is a call and a picture.

A function here repeats its rounds in turns where it compares, keeps its seeds, and returns plain results: a frozen
dataclass or an array, which a picture of `figures` takes as it is.
"""

from ..lazy import lazy_names

STANDS_IN: dict[str, str] = {
    "WindowsRecord": "records",
    "read_windows_record": "records",
    "bytes_of_tokens": "pieces",
    "follow_tokens": "loop",
    "held_precision": "speed",
    "pass_bytes": "speed",
    "time_layers": "speed",
    "time_passes": "speed",
    "time_tokens": "speed",
    **dict.fromkeys(
        [
            "WayTimes",
            "differences",
            "extra_memory",
            "in_rows",
            "repeat_and_attend",
            "time_heads",
            "time_rows",
            "time_ways",
        ],
        "heads",
    ),
    **dict.fromkeys(["count_arithmetic", "fewer_heads"], "merged_heads"),
}  # each function with the module of this folder in which it stands

__all__ = sorted(STANDS_IN)

__getattr__, __dir__ = lazy_names(__name__, STANDS_IN)
