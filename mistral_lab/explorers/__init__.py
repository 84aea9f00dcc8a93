"""Pictures that a reader moves: controls around a figure. Where no kernel runs, a picture and its sentence remain."""

from .base import Explorer, moving_slider
from .experts import routed_text
from .guess import Guess
from .heads import kept_squares
from .loop import loop_picture, token_loop
from .machines import split_model
from .nf4 import four_bits
from .prediction import guesses_by_layer, next_token
from .relay import relay
from .rings import ring_cache
from .sizes import head_groups, memory_plan
from .tuning import adapter_rank

__all__ = [
    "Explorer",
    "Guess",
    "adapter_rank",
    "four_bits",
    "guesses_by_layer",
    "head_groups",
    "kept_squares",
    "loop_picture",
    "memory_plan",
    "moving_slider",
    "next_token",
    "relay",
    "ring_cache",
    "routed_text",
    "split_model",
    "token_loop",
]
