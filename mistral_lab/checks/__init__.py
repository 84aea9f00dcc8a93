"""Answer checks: `my_x = checks.x(my_x)` says in one line what is wrong with a reader's function.

It returns the function that the lesson goes on with: the reader's if it passed, the package's own otherwise.
"""

from .adapters import adapter_bytes
from .balance import balance_by_layer
from .budget import kept_sets, plain_call_bytes, share_in_four_bits
from .characters import whole_characters
from .chunks import prefill_in_chunks
from .counts import least_time, parameter_count
from .device_bytes import all_reduce_bytes, fullest_device
from .experts import chosen_experts, tokens_to_touch
from .grouped import grouped_attention
from .heads import longest_text, shared_heads, token_bytes
from .layers import fused_feed_forward, layer_output
from .nf4 import round_trip
from .norms import rms_normed
from .packing import bits_per_weight, unpacked_numbers
from .ranks import partial_output
from .rings import ring_order, ring_slots
from .sampling import draw_probabilities
from .tuning import answer_labels, merged_weight
from .windows import window_mask

__all__ = [
    "adapter_bytes",
    "all_reduce_bytes",
    "answer_labels",
    "balance_by_layer",
    "bits_per_weight",
    "chosen_experts",
    "draw_probabilities",
    "fullest_device",
    "fused_feed_forward",
    "grouped_attention",
    "kept_sets",
    "layer_output",
    "least_time",
    "longest_text",
    "merged_weight",
    "parameter_count",
    "partial_output",
    "plain_call_bytes",
    "prefill_in_chunks",
    "ring_order",
    "ring_slots",
    "rms_normed",
    "round_trip",
    "share_in_four_bits",
    "shared_heads",
    "token_bytes",
    "tokens_to_touch",
    "unpacked_numbers",
    "whole_characters",
    "window_mask",
]
