"""What the lessons measure: one documented function per measurement, so that a cell is a call and a picture.

A function that measures repeats its rounds in turns where it compares, keeps its seeds, and returns plain results: a
frozen dataclass or an array, which a picture of `figures` takes as it is. Beside them stands what they are made of.
"""

from ..lazy import lazy_names

NAMES = {  # of each module of this folder
    "cutting": ("only_layers",),
    "loop": ("follow_tokens", "next_logits"),
    "pieces": ("bytes_of_tokens",),
    "full_size_record": ("conditions", "recorded_times"),
    "speed": (
        "held_precision",
        "pass_bytes",
        "pass_parameters",
        "time_layers",
        "time_passes",
        "time_tokens",
    ),
    "heads": (
        "WayTimes",
        "extra_memory",
        "in_rows",
        "repeat_and_attend",
        "time_heads",
        "time_rows",
        "time_ways",
    ),
    "plugged_in": ("differences",),
    "merged_heads": (
        "count_arithmetic",
        "fewer_heads",
    ),
    "windows": (
        "SlotOrderCache",
        "answer_story",
        "generate_padded",
        "measure_influence",
        "reaction",
        "read_story",
        "recall_by_distance",
        "with_window",
    ),
    "window_costs": (
        "interleaved_cache_bytes",
        "one_thread",
        "time_next_token",
        "time_prompts",
        "times_as_long",
    ),
    "window_limits": (
        "by_position",
        "compare_windows",
        "evict_first_tokens",
        "first_token_share",
        "interval_bounds",
        "recall_when_cut",
    ),
    "windows_record": (
        "WindowsRecord",
        "read_windows_record",
    ),
}
STANDS_IN = {name: module for module, names in NAMES.items() for name in names}

__all__ = sorted(STANDS_IN)

__getattr__, __dir__ = lazy_names(__name__, STANDS_IN)
