import numpy as np
import pytest
import reference
import torch

from mistral_lab.masks import causal_mask, position_mask, receptive_field, sliding_window_mask

SIZES = [(T, window) for T in (1, 2, 7) for window in (1, 2, 3, 6, 7, 8, 100)]


@pytest.mark.parametrize(("T", "window"), SIZES)
def test_the_window_is_the_last_w_keys(T, window):
    mask = sliding_window_mask(T, window)
    assert mask.dtype == torch.bool
    np.testing.assert_array_equal(mask.numpy(), reference.window_mask(T, window))


def test_a_query_sees_w_keys_itself_included_and_not_w_plus_one():
    T, W = 10, 4
    seen = sliding_window_mask(T, W).sum(dim=1).tolist()
    assert seen == [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]
    assert not np.array_equal(sliding_window_mask(T, W + 1).numpy(), reference.window_mask(T, W))
    assert not np.array_equal(sliding_window_mask(T, W - 1).numpy(), reference.window_mask(T, W))


def test_a_window_of_the_whole_text_is_the_causal_mask():
    assert torch.equal(causal_mask(5), torch.ones(5, 5).tril().bool())
    assert torch.equal(sliding_window_mask(5, 5), causal_mask(5))
    assert not torch.equal(sliding_window_mask(5, 4), causal_mask(5))


def test_without_a_window_all_keys_up_to_the_query_are_seen():
    queries, keys = torch.tensor([7, 0, 1_000_000]), torch.tensor([8, 7, 0, 999_999, 6])
    seen = [[key <= query for key in keys.tolist()] for query in queries.tolist()]
    assert position_mask(queries, keys).tolist() == position_mask(queries, keys, window=None).tolist() == seen
    assert torch.equal(sliding_window_mask(6, None), causal_mask(6))
    assert not torch.equal(sliding_window_mask(6, None), sliding_window_mask(6, 5))


def test_any_positions_are_a_part_of_the_square():
    square = sliding_window_mask(12, 4)
    queries, keys = torch.tensor([7, 11, 3]), torch.tensor([8, 4, 10, 0, 11, 7])
    assert torch.equal(position_mask(queries, keys, window=4), square[queries][:, keys])


def test_transformers_sees_the_same_window():
    from transformers import MistralConfig
    from transformers.masking_utils import create_sliding_window_causal_mask

    config = MistralConfig(sliding_window=3, attn_implementation="eager")
    additive = create_sliding_window_causal_mask(
        config, torch.zeros(1, 8, 4), attention_mask=None, past_key_values=None, position_ids=torch.arange(8)[None]
    )
    assert torch.equal(additive[0, 0] == 0, sliding_window_mask(8, 3))


@pytest.mark.parametrize(("window", "n_layers"), [(1, 3), (2, 1), (3, 4), (5, 2)])
def test_the_receptive_field_is_what_products_of_the_mask_reach(window, n_layers):
    T = 30
    reach = torch.linalg.matrix_power(sliding_window_mask(T, window).double(), n_layers)
    assert receptive_field(window, n_layers) == int((reach[-1] > 0).sum())


@pytest.mark.parametrize("call", [
    lambda count: causal_mask(count),
    lambda count: sliding_window_mask(count, 2),
    lambda count: sliding_window_mask(4, count),
    lambda count: receptive_field(count, 2),
    lambda count: receptive_field(4, count),
])  # fmt: skip
def test_counts_are_whole_and_at_least_one(call):
    for count in (0, -3):
        with pytest.raises(ValueError, match=rf"\A\w+ is {count}: expected at least 1\Z"):
            call(count)
    for count in (2.0, True, "4"):
        with pytest.raises(TypeError, match=r"\A\w+ is .*: expected a whole number\Z"):
            call(count)


@pytest.mark.parametrize("call", [causal_mask, lambda count: receptive_field(count, 2)])
def test_only_a_masks_window_may_be_none(call):
    with pytest.raises(TypeError, match=r"\A\w+ is None: expected a whole number\Z"):
        call(None)


def test_positions_have_one_axis():
    with pytest.raises(
        ValueError, match=r"\Aqueries has shape \(1, 3\) and keys \(3,\): expected positions \(T,\) and \(S,\)\Z"
    ):
        position_mask(torch.arange(3)[None], torch.arange(3), window=2)
