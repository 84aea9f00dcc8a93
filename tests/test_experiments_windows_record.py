"""What is told of the record of three models with and without windows: each field from its own place."""

import pytest

from mistral_lab import experiments
from mistral_lab.training import evaluation


def test_ranges_of_the_record_add_up():
    record = experiments.read_windows_record()
    model = record.models["tiny-mistral"]
    hop = record.recalled("tiny-mistral", 1, 63)
    assert hop == evaluation.wilson(int(model.right[:3].sum()), int(model.asked[:3].sum()))
    assert hop.mean > 0.99
    for low, high in ((2, 63), (1, 62), (64, 63)):
        with pytest.raises(ValueError, match=f"from {low} to {high}: expected the first number of one of"):
            record.recalled("tiny-mistral", low, high)
