"""What the tests of several explorers share: what they are made of, how they are moved, what stands for them."""

import numpy as np
import pytest

from mistral_lab.experiments.loop import Trip
from mistral_lab.explorers import base
from mistral_lab.explorers.base import Explorer

TRIP = Trip(
    texts=("<s>", "My", " favourite", " condiment", " is", " vinegar", ","),
    ids=(1, 1955, 546, 1569, 319, 2544, 14),
    prompt_tokens=5,
    rows=np.random.default_rng(0).normal(size=(7, 6)),
    layers=4,
    vocab_size=2560,
    candidates=((" soy", " hot", " chutney", " ketchup", " vinegar"), (",", ".", " and", " the", " of")),
    probabilities=np.array([[0.2, 0.2, 0.2, 0.1, 0.1], [0.99, 0.004, 0.002, 0.001, 0.001]]),
    kept=np.array([[True] * 5, [True] + [False] * 4]),
    drawn=(4, 0),
)


def moved(explorer: Explorer, **values) -> Explorer:
    """The explorer after its controls were given these values, one by one."""
    for name, value in values.items():
        explorer.controls[name].value = value
    assert "cannot be drawn" not in explorer.sentence, explorer.sentence
    return explorer


def drawn(explorer: Explorer):
    """The figure of the state as it is."""
    return explorer._drawn()[0]


def still_beside_live(make, moments):
    """(panel, live), the Axes of each moment in the picture that stands for an explorer, and live in the same state.

    Args:
        make: returns the explorer.
        moments: the values of the controls, one mapping for each panel.
    """
    rendered = []
    with pytest.MonkeyPatch.context() as patch:
        real = base.render
        patch.setattr(base, "render", lambda figure: (rendered.append(figure), real(figure))[1])
        explorer = make()
    _, still = rendered  # the first state, and what stands for all
    live = [drawn(moved(explorer, **values)).axes[0] for values in moments]
    return list(zip(still.axes, live, strict=True))
