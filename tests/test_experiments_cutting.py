"""A model keeps some of its layers for a while, and gets all of them back."""

from types import SimpleNamespace

import pytest

from mistral_lab import experiments


def test_layers_are_cut_and_put_back_even_after_an_error():
    whole = ["first", "second", "third", "fourth"]
    config = SimpleNamespace(num_hidden_layers=4)
    model = SimpleNamespace(model=SimpleNamespace(layers=whole), config=config)
    with experiments.only_layers(model, 1, 3):
        assert (model.model.layers, config.num_hidden_layers) == (["second", "third"], 2)
    assert model.model.layers is whole
    with pytest.raises(ZeroDivisionError), experiments.only_layers(model, 0, 2):
        _ = 1 / 0
    assert model.model.layers is whole
    assert config.num_hidden_layers == 4
