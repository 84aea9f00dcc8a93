"""The lessons' pictures: NumPy arrays become matplotlib Axes. Nothing is computed, shown or saved but by `show`."""

from .experts import plot_balance, plot_loads, plot_route, plot_touched
from .heads import plot_context, plot_decode, plot_head_groups, plot_head_weights, plot_intervals, plot_token_bytes
from .model import plot_next_tokens, plot_parameters, plot_times
from .style import COLOURS, WIDTH_IN, new_figure, show
from .windows import plot_by_range, plot_growth, plot_influence, plot_mask, plot_slots

__all__ = [
    "COLOURS",
    "WIDTH_IN",
    "new_figure",
    "plot_balance",
    "plot_by_range",
    "plot_context",
    "plot_decode",
    "plot_growth",
    "plot_head_groups",
    "plot_head_weights",
    "plot_influence",
    "plot_intervals",
    "plot_loads",
    "plot_mask",
    "plot_next_tokens",
    "plot_parameters",
    "plot_route",
    "plot_slots",
    "plot_times",
    "plot_token_bytes",
    "plot_touched",
    "show",
]
