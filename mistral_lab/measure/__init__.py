"""Time and peak memory of a callable or of a model, and the speed at which this machine reads memory."""

from .generation import Measurement, measure_generation
from .machine import Machine, instructions, processor
from .peaks import Peak, peak_bytes, peak_memory
from .sweeps import Point, read_sweep, sweep
from .timing import Timing, compare, measure_bandwidth, time_callable, time_in_turns

__all__ = [
    "Machine",
    "Measurement",
    "Peak",
    "Point",
    "Timing",
    "compare",
    "instructions",
    "measure_bandwidth",
    "measure_generation",
    "peak_bytes",
    "peak_memory",
    "processor",
    "read_sweep",
    "sweep",
    "time_callable",
    "time_in_turns",
]
