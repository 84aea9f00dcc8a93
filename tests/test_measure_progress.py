"""A progress bar counts what is done, and appears only where something takes long."""

import pytest
import torch
from torch import nn

from mistral_lab.measure import progress


class Bar:
    """What tqdm would show: its total, and where it stands."""

    made: list["Bar"] = []

    def __init__(self, total, desc, leave):
        self.total, self.n, self.closed = total, 0, False
        Bar.made.append(self)

    def update(self, more):
        self.n += more

    def close(self):
        self.closed = True


@pytest.fixture
def bars(monkeypatch):
    monkeypatch.setattr(progress, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    monkeypatch.setattr(progress, "BAR_AFTER_S", 0)
    return Bar.made


def test_steps_are_counted(bars):
    assert list(progress.with_progress(3, "three")) == [0, 1, 2]
    [bar] = bars
    assert (bar.n, bar.total, bar.closed) == (3, 3, True)


def test_what_is_quick_shows_none(bars, monkeypatch):
    monkeypatch.setattr(progress, "BAR_AFTER_S", 3600)
    assert list(progress.with_progress(3, "three")) == [0, 1, 2]
    assert not bars


def test_layers_are_counted_forth_and_back(bars):
    layers = [nn.Linear(2, 2) for _ in range(3)]
    x = torch.ones(1, 2, requires_grad=True)
    with progress.layer_progress(layers, 3 + 2 + 3, "layers"):
        states = [x]
        for layer in layers:
            states.append(layer(states[-1]))
        assert bars[0].n == 3
        torch.autograd.grad(states[2].sum(), x, retain_graph=True)
        assert bars[0].n == 5
        torch.autograd.grad(states[3].sum(), x)
    [bar] = bars
    assert (bar.n, bar.total, bar.closed) == (8, 8, True)
    layers[0](x)
    assert bar.n == 8


def test_a_bar_ends_with_the_error_that_ends_its_block(bars):
    layer = nn.Linear(2, 2)

    def fail():
        with progress.layer_progress([layer], 2, "layers"):
            layer(torch.ones(1, 2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert bars[0].closed
    assert not layer._forward_hooks
