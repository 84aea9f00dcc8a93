"""What the lessons measure: one documented function per measurement, so that a cell is a call and a picture.

A function here repeats its rounds in turns where it compares, keeps its seeds, and returns plain results: a frozen
dataclass or an array, which a picture of `figures` takes as it is.
"""

from ..lazy import lazy_names

STANDS_IN: dict[str, str] = {  # each function with the module of this folder in which it stands
    "SlotOrderCache": "windows",
    "WindowsRecord": "records",
    "answer": "windows",
    "by_position": "window_limits",
    "compare_windows": "windows",
    "evict_first_tokens": "window_limits",
    "first_token_share": "window_limits",
    "generate_padded": "windows",
    "interleaved_cache_bytes": "window_costs",
    "joined_blocks": "window_limits",
    "measure_influence": "windows",
    "one_thread": "window_costs",
    "only_layers": "windows",
    "reaction": "windows",
    "read_story": "windows",
    "read_windows_record": "records",
    "recall_by_distance": "windows",
    "recall_when_cut": "window_limits",
    "time_next_token": "window_costs",
    "time_prompts": "window_costs",
    "times_as_long": "window_costs",
    "token_losses": "window_limits",
    "with_window": "windows",
}

__all__ = sorted(STANDS_IN)

__getattr__, __dir__ = lazy_names(__name__, STANDS_IN)
