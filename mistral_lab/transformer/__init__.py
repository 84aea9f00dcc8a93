"""The whole decoder: blocks, decoder, generation, and the weights of a checkpoint."""

from .blocks import Attention, FeedForward, Layer, MixtureOfExperts, SharedInputs, apply_rotation, rms_norm
from .decoder import Transformer

__all__ = [
    "Attention",
    "FeedForward",
    "Layer",
    "MixtureOfExperts",
    "SharedInputs",
    "Transformer",
    "apply_rotation",
    "rms_norm",
]
