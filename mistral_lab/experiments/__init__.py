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
    "WayTimes": "heads",
    "count_arithmetic": "merged_heads",
    "differences": "plugged_in",
    "extra_memory": "heads",
    "fewer_heads": "merged_heads",
    "in_rows": "heads",
    "repeat_and_attend": "heads",
    "time_heads": "heads",
    "time_rows": "heads",
    "time_ways": "heads",
}  # each function with the module of this folder in which it stands

__all__ = sorted(STANDS_IN)

__getattr__, __dir__ = lazy_names(__name__, STANDS_IN)
