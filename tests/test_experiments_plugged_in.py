"""A reader's attention in a whole model: the right one is told from wrong ones, and the library is put back."""

import pytest
import torch

from mistral_lab import experiments, load
from mistral_lab.attention import grouped_query_attention
from mistral_lab.loading.compat import attention_of

STORY = "Once there was a baker called Nora, and she lived near the river. " * 5  # longer than the window of 64


def right(q, k, v, mask):
    return grouped_query_attention(*(x.transpose(1, 2) for x in (q, k, v)), mask)[0].transpose(1, 2)


@pytest.fixture(scope="module", params=["tiny-mistral", "tiny-mixtral"])
def lab(request):
    return load(request.param)


def test_the_right_attention_is_told_from_wrong_ones_in_a_whole_model(lab):
    before = attention_of(lab.model)
    same = experiments.differences(lab, STORY, right)
    # float32 keeps seven digits of sums over a hundred products; four layers add their rounding up.
    assert same.layer < 1e-4
    assert same.logits < 1e-3
    wrong = {
        "heads": lambda q, k, v, mask: right(q, k.flip(1), v.flip(1), mask),
        "no mask": lambda q, k, v, mask: right(q, k, v, torch.ones_like(mask)),
    }
    for mistake in wrong.values():
        apart = experiments.differences(lab, STORY, mistake)
        assert apart.layer > 0.1
        assert apart.logits > 0.1
    assert attention_of(lab.model) == before


def test_an_attention_that_computes_in_float64_can_be_plugged_in(lab):
    precise = experiments.differences(lab, STORY, lambda q, k, v, mask: right(q.double(), k.double(), v.double(), mask))
    assert precise.logits < 1e-3  # as above


def test_the_library_is_put_back_when_a_readers_function_fails(lab):
    before = attention_of(lab.model)
    with pytest.raises(ZeroDivisionError):
        experiments.differences(lab, STORY, lambda q, k, v, mask: 1 / 0)
    assert attention_of(lab.model) == before
    assert not lab.model.model.layers[0].self_attn._forward_hooks
