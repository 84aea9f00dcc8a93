"""The output layer of one row: the same weights, the same logits up to rounding, and oneDNN left as it was."""

import threading

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, MistralConfig

from mistral_lab.loading import load, one_row
from mistral_lab.loading.one_row import OneRowLinear, use_one_row

SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2}


def small(**changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MistralConfig(**SIZES | changes), dtype=torch.bfloat16).eval()


@pytest.fixture
def onednn(monkeypatch):
    """Whether oneDNN was on at each product of a `OneRowLinear` that had one row."""
    seen, real = [], one_row.linear

    def watched(*args):
        seen.append(torch.backends.mkldnn.enabled)
        return real(*args)

    monkeypatch.setattr(one_row, "linear", watched)
    return seen


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 64), (64,), (2, 1, 64), (1, 5, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_product_is_that_of_a_linear_layer(shape, dtype, bias, onednn):
    torch.manual_seed(1)
    plain = nn.Linear(64, 96, bias=bias, dtype=dtype)
    ours = OneRowLinear(64, 96, bias=bias, dtype=dtype)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(shape).to(dtype)
    assert ours(x).shape == plain(x).shape
    # Both sum in float32 and round to 8 bits; the values are below 2, where bfloat16 has steps of 2^-7.
    assert (ours(x) - plain(x)).abs().max() <= (2**-7 if dtype == torch.bfloat16 else 1e-6)
    one = x.numel() == 64 and dtype == torch.bfloat16
    assert onednn == [False] * 2 * one
    assert torch.backends.mkldnn.enabled


def test_a_failure_leaves_onednn_on():
    with pytest.raises(RuntimeError, match="dtype"):
        OneRowLinear(64, 96, dtype=torch.float32)(torch.zeros(64, dtype=torch.bfloat16))
    assert torch.backends.mkldnn.enabled


def test_threads_leave_onednn_on_together():
    layer, x = OneRowLinear(64, 96, dtype=torch.bfloat16), torch.zeros(1, 64, dtype=torch.bfloat16)
    threads = [threading.Thread(target=lambda: [layer(x) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize("tied", [False, True])
def test_the_weights_are_the_same_object_and_are_saved_as_before(tied, tmp_path):
    model = small(tie_word_embeddings=tied)
    weight, names = model.lm_head.weight, list(model.state_dict())
    tokens = torch.tensor([[5, 7]])
    before = model(tokens).logits
    use_one_row(model)
    assert type(model.get_output_embeddings()) is OneRowLinear
    assert model.lm_head.weight is weight
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert not model.lm_head.training
    assert list(model.state_dict()) == names
    assert torch.equal(model(tokens).logits, before)  # two rows: nothing is different
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert type(again.lm_head) is nn.Linear
    assert torch.equal(again(tokens).logits, before)


def test_an_output_layer_of_another_kind_stays():
    class Other(nn.Linear):
        pass

    model = small()
    model.lm_head = other = Other(64, 96)
    use_one_row(model)
    assert model.lm_head is other


def test_load_uses_it_on_a_cpu():
    assert type(load("tiny-mixtral", bits=4, device="cpu").model.lm_head) is OneRowLinear
