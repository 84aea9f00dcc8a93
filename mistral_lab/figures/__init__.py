"""The lessons' pictures: NumPy arrays become matplotlib Axes. Nothing is computed, shown or saved but by `show`."""

from .model import plot_next_tokens, plot_parameters, plot_times
from .style import COLOURS, WIDTH_IN, new_figure, show

__all__ = ["COLOURS", "WIDTH_IN", "new_figure", "plot_next_tokens", "plot_parameters", "plot_times", "show"]
