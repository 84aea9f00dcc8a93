"""The whole decoder: layers of attention, and of a feed-forward network or experts; reads checkpoints; generates."""

from .blocks import Attention, FeedForward, Layer, MixtureOfExperts, Pass, rms_norm, turn
from .decoder import Transformer

__all__ = ["Attention", "FeedForward", "Layer", "MixtureOfExperts", "Pass", "Transformer", "rms_norm", "turn"]
