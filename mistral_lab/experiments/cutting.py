"""A model with some of its layers only, for as long as an experiment lasts."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel


@contextmanager
def only_layers(model: PreTrainedModel, start: int, stop: int) -> Iterator[None]:
    """Leave a model of transformers its layers from `start` up to `stop` while the context is open.

    Its config then counts these alone, so that a cache is made for them.
    """
    decoder, whole = model.model, model.model.layers
    decoder.layers, model.config.num_hidden_layers = whole[start:stop], stop - start
    try:
        yield
    finally:
        decoder.layers, model.config.num_hidden_layers = whole, len(whole)
