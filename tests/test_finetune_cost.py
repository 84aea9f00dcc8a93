"""Training holds the bytes that arithmetic says, and lets go of them."""

import pytest
import torch
from small_adapters import MODELS, TWO, student

from mistral_lab import finetune
from mistral_lab.finetune.cost import LiveTensors


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "targets"), [(m, t) for m in MODELS for t in ("attention", "all", ("q_proj",))])
def test_bytes_are_as_predicted(name, targets, checkpointing):
    loaded = student(name, rank=3, targets=targets)
    predicted = finetune.tuning_bytes(
        loaded.config, rank=3, targets=targets, batch=3, tokens=40, checkpointing=checkpointing
    )
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    found = finetune.measured_activation_bytes(loaded, batch=3, tokens=40, checkpointing=checkpointing)
    assert found == predicted.activations
    assert sum(p.nbytes for p in trained) == predicted.adapter == predicted.gradients
    record = finetune.tune(loaded, TWO, steps=2, batch_size=2)
    if targets == "all" and loaded.config.num_experts:  # AdamW makes no state for experts that no token chose
        assert predicted.optimiser / 2 < record.optimiser_bytes <= predicted.optimiser
    else:
        assert record.optimiser_bytes == predicted.optimiser
    assert predicted.total == 2 * predicted.adapter + predicted.optimiser + predicted.activations


def test_parameters_of_an_adapter_on_mistral_7b_by_hand():
    from mistral_lab.config import PRESETS

    a_layer = 2 * (4096 + 4096) + 2 * (4096 + 1024)
    assert finetune.trainable_parameters(PRESETS["mistral-7b-v0.1"], rank=16) == 32 * 16 * a_layer
    experts = 3 * 8 * (4096 + 14_336)
    assert finetune.trainable_parameters(PRESETS["mixtral-8x7b-v0.1"], rank=1, targets="all") == 32 * (
        a_layer + experts
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_bytes_are_exact_to_the_last_token_before_the_window_is_full(batch, checkpointing):
    loaded = student()
    window = loaded.config.sliding_window

    def beyond(tokens):
        setting = {"batch": batch, "tokens": tokens, "checkpointing": checkpointing}
        predicted = finetune.tuning_bytes(loaded.config, rank=2, **setting).activations
        return finetune.measured_activation_bytes(loaded, **setting) - predicted

    assert beyond(window - 1) == 0
    assert beyond(window) > 0  # a mask


def test_measuring_with_checkpointing_leaves_no_trace():
    loaded = student()
    before = finetune.measured_activation_bytes(loaded, batch=2, tokens=20)
    finetune.measured_activation_bytes(loaded, batch=2, tokens=20, checkpointing=True)
    assert finetune.measured_activation_bytes(loaded, batch=2, tokens=20) == before


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_that_a_step_made_outlives_it(name, checkpointing):
    """Where four-bit parameters are dequantised through a cache of PyTorch's, checkpointing stops the second forward
    before the cache is cleared, and every weight stays (bitsandbytes issue 2005). The lab's matrices have no cache."""
    loaded = student(name, targets="all", filled=True)
    tokens = torch.arange(3, 43)[None].repeat(2, 1)
    with finetune.tuning.training_mode(loaded.model, checkpointing=checkpointing):
        for _ in range(2):
            with LiveTensors() as made:
                loss = loaded.model(input_ids=tokens, labels=tokens).loss
                assert made.nbytes > 0
                loss.backward()
                loaded.model.zero_grad()
                del loss
                assert made.nbytes == 0
