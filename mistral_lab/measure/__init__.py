"""Time, peak memory and page cache of a callable or a model, memory limits, and how fast this machine reads memory."""

from .decoding import Step, filled, random_tokens, timed_steps
from .full_size import FullSize, read_full_size, side_by_side
from .generation import Measurement, measure_generation
from .limits import LimitedMemory, memory_limit
from .machine import Machine, instructions, processor
from .paging import Paging, cached_bytes, evict, read_through
from .peaks import Peak, peak_bytes, peak_memory
from .sweeps import Point, read_sweep, sweep
from .timing import Timing, compare, measure_bandwidth, time_callable, time_in_turns

__all__ = [
    "FullSize",
    "LimitedMemory",
    "Machine",
    "Measurement",
    "Paging",
    "Peak",
    "Point",
    "Step",
    "Timing",
    "cached_bytes",
    "compare",
    "evict",
    "filled",
    "instructions",
    "measure_bandwidth",
    "measure_generation",
    "memory_limit",
    "peak_bytes",
    "peak_memory",
    "processor",
    "random_tokens",
    "read_full_size",
    "read_sweep",
    "read_through",
    "side_by_side",
    "sweep",
    "time_callable",
    "time_in_turns",
    "timed_steps",
]
