"""The lessons' pictures: NumPy arrays become matplotlib Axes. Nothing is computed, shown or saved but by `show`."""

from .budget import plot_budget, plot_changed
from .experts import plot_balance, plot_loads, plot_repeats, plot_route, plot_touched, plot_way
from .explore import (
    bare_figure,
    drawable,
    plot_code_shares,
    plot_coloured_tokens,
    plot_expert_loads,
    plot_guesses,
    plot_positions,
    plot_ring,
    render,
    to_png,
    token_places,
)
from .four_bits import (
    plot_codebooks,
    plot_error_map,
    plot_errors_by_block,
    plot_format_errors,
    plot_loss_changes,
    plot_quantiles,
    plot_rounded_block,
)
from .heads import plot_context, plot_decode, plot_head_groups, plot_head_weights, plot_intervals, plot_token_bytes
from .layers import plot_added, plot_block, plot_part_times, plot_stream
from .machines import plot_placement, plot_traffic
from .model import plot_next_tokens, plot_parameters, plot_times
from .style import COLOURS, WIDTH_IN, new_figure, show
from .tuning import plot_adapter, plot_before_after, plot_bytes, plot_labels, plot_ranks, plot_training
from .windows import plot_by_range, plot_growth, plot_influence, plot_mask, plot_slots

__all__ = [
    "COLOURS",
    "WIDTH_IN",
    "bare_figure",
    "drawable",
    "new_figure",
    "plot_adapter",
    "plot_added",
    "plot_balance",
    "plot_before_after",
    "plot_block",
    "plot_budget",
    "plot_by_range",
    "plot_bytes",
    "plot_changed",
    "plot_code_shares",
    "plot_codebooks",
    "plot_coloured_tokens",
    "plot_context",
    "plot_decode",
    "plot_error_map",
    "plot_errors_by_block",
    "plot_expert_loads",
    "plot_format_errors",
    "plot_growth",
    "plot_guesses",
    "plot_head_groups",
    "plot_head_weights",
    "plot_influence",
    "plot_intervals",
    "plot_labels",
    "plot_loads",
    "plot_loss_changes",
    "plot_mask",
    "plot_next_tokens",
    "plot_parameters",
    "plot_part_times",
    "plot_placement",
    "plot_positions",
    "plot_quantiles",
    "plot_ranks",
    "plot_repeats",
    "plot_ring",
    "plot_rounded_block",
    "plot_route",
    "plot_slots",
    "plot_stream",
    "plot_times",
    "plot_token_bytes",
    "plot_touched",
    "plot_traffic",
    "plot_training",
    "plot_way",
    "render",
    "show",
    "to_png",
    "token_places",
]
