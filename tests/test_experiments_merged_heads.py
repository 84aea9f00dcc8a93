"""What lesson 2 measures of merged KV heads: the merge, the training, the control, the arithmetic."""

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from mistral_lab import experiments, load
from mistral_lab.experiments import merged_heads


@pytest.fixture(scope="module", params=["tiny-mistral", "tiny-mixtral"])
def lab(request):
    return load(request.param)


def test_merged_heads_are_the_mean_or_the_first_of_their_group(lab):
    name = "model.layers.0.self_attn.k_proj.weight"
    groups = lab.model.state_dict()[name].unflatten(0, (1, 2, -1))
    for merge, expected in (("averaged", groups.mean(dim=1)), ("first kept", groups[:, 0])):
        fewer = merged_heads.merged(lab.model, 1, merge)
        assert torch.equal(fewer.state_dict()[name], expected.flatten(0, 1))
        assert fewer.config.num_key_value_heads == 1
    same = merged_heads.merged(lab.model, 2, "averaged").state_dict()
    assert all(torch.equal(same[key], value) for key, value in lab.model.state_dict().items())


@pytest.mark.parametrize(("heads", "merge"), [(3, "averaged"), (1, "last kept")])
def test_what_cannot_be_merged_is_refused(lab, heads, merge):
    with pytest.raises(ValueError, match=f"{heads} of 2 heads, '{merge}': expected a divisor, and one of averaged"):
        merged_heads.merged(lab.model, heads, merge)


def test_training_takes_back_loss_and_leaves_the_loaded_model_alone():
    lab = load("tiny-mistral")
    before = {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}
    found = experiments.fewer_heads(lab, documents=2, steps=1)
    built, averaged, _, trained, after = (interval.mean for interval in found.losses.values())
    assert built < after < averaged
    assert found.cost.mean == pytest.approx(after - trained)  # a mean of differences is the difference of means
    assert found.cost.low <= found.cost.mean <= found.cost.high
    assert all(torch.equal(lab.model.state_dict()[name], tensor) for name, tensor in before.items())


def test_arithmetic_does_not_depend_on_the_kv_heads():
    assert {experiments.count_arithmetic(count, tokens=10) for count in (32, 8, 1)} == {(4 * 32 * 10 * 128,) * 2}


def test_both_models_are_trained_alike_before_they_are_compared(monkeypatch):
    """By rule, two heads lose 1 nat and one head 3; training takes back a quarter of either."""
    trained = []
    monkeypatch.setattr(merged_heads, "train_on", lambda model, tokenizer, steps: trained.append((model, steps)))

    def losses(model, texts):
        nats = {2: 1.0, 1: 3.0}[model.config.num_key_value_heads]
        return np.full(len(texts), nats * (0.75 if any(model is other for other, _ in trained) else 1.0))

    monkeypatch.setattr(merged_heads, "_losses", losses)
    found = experiments.fewer_heads(load("tiny-mistral"), documents=2, steps=7)
    assert [steps for _, steps in trained] == [7, 7]
    assert {name: interval.mean for name, interval in found.losses.items()} == {
        "as built, K = 2": 1.0,
        "K = 1, averaged": 3.0,
        "K = 1, first kept": 3.0,
        "as built, K = 2, 7 steps more": 0.75,
        "K = 1, averaged, 7 steps more": 2.25,
    }
    assert found.cost.mean == 1.5


def test_padding_is_not_trained_on():
    lab = load("tiny-mistral")
    shape = {"vocab_size": lab.config.vocab_size, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**shape, num_attention_heads=2, num_key_value_heads=1))
    seen = []
    model.register_forward_pre_hook(lambda model, arguments, others: seen.append(others), with_kwargs=True)
    merged_heads.train_on(model, lab.tokenizer, 1)
    [batch] = seen
    told = batch["attention_mask"].bool()
    assert not told.all()  # the two texts differ in length
    assert torch.equal(batch["labels"], torch.where(told, batch["input_ids"], -100))
