"""The lessons' pictures: NumPy arrays become matplotlib Axes. Nothing is computed, and only `show` displays one."""

from .budget import plot_budget, plot_changed
from .canvas import WIDTH_IN, bare_figure, new_figure, render, show, to_png
from .experts import (
    plot_balance,
    plot_expert_traffic,
    plot_load_bars,
    plot_load_map,
    plot_repeats,
    plot_route,
    plot_touched,
    plot_way,
)
from .heads import plot_context, plot_decode, plot_head_groups, plot_head_weights, plot_intervals, plot_token_bytes
from .layers import plot_added, plot_beside, plot_block, plot_part_times, plot_stream
from .machines import plot_placement, plot_received, plot_traffic
from .model import keep_numbers_readable, plot_guesses, plot_next_tokens, plot_parameters, plot_times
from .nf4 import (
    plot_code_shares,
    plot_codebooks,
    plot_error_map,
    plot_errors_by_block,
    plot_format_errors,
    plot_loss_changes,
    plot_quantiles,
    plot_rounded_block,
)
from .style import COLOURS
from .tokens import drawable, plot_coloured_tokens, token_places
from .tuning import (
    plot_adapter,
    plot_before_after,
    plot_bytes,
    plot_labels,
    plot_rank_choice,
    plot_ranks,
    plot_training,
)
from .windows import plot_by_range, plot_growth, plot_influence, plot_mask, plot_positions, plot_ring, plot_slots

__all__ = [
    "COLOURS",
    "WIDTH_IN",
    "bare_figure",
    "drawable",
    "keep_numbers_readable",
    "new_figure",
    "plot_adapter",
    "plot_added",
    "plot_balance",
    "plot_before_after",
    "plot_beside",
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
    "plot_expert_traffic",
    "plot_load_bars",
    "plot_format_errors",
    "plot_growth",
    "plot_guesses",
    "plot_head_groups",
    "plot_head_weights",
    "plot_influence",
    "plot_intervals",
    "plot_labels",
    "plot_load_map",
    "plot_loss_changes",
    "plot_mask",
    "plot_next_tokens",
    "plot_parameters",
    "plot_part_times",
    "plot_placement",
    "plot_positions",
    "plot_quantiles",
    "plot_rank_choice",
    "plot_ranks",
    "plot_received",
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
