"""The ring hands out the window in position order, and generation through it is generation without a cache."""

import copy
import random
import re
from itertools import accumulate

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, DynamicCache, MistralConfig, MixtralConfig
from transformers.cache_utils import CacheLayerMixin

from mistral_lab import PRESETS
from mistral_lab.attention import grouped_query_attention
from mistral_lab.cache import KVRing, RollingCache
from mistral_lab.config import ModelConfig
from mistral_lab.loading import load
from mistral_lab.masks import position_mask, sliding_window_mask

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
SPECIAL = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}


def tiny_config(window, family=MistralConfig):
    return family(**SHAPE, **SPECIAL, num_attention_heads=4, num_key_value_heads=2, sliding_window=window)


def tiny(window, *, attention="sdpa", family=MistralConfig):
    """A random model with wide weights: its greedy choices hang on what it attends to, not on rounding.

    In float32, because transformers' eager attention takes its softmax in float32, in which the float64 value that it
    masks with is minus infinity: a pad, which sees nothing, becomes NaN and spoils the tokens after it.
    """
    config = tiny_config(window, family)
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def prompt(length, batch=3, vocabulary=64):
    return torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(length))


def left_padding(tokens):
    """Row i starts with 2i pads, so that the rows have different lengths."""
    mask = torch.ones_like(tokens)
    for row in range(tokens.shape[0]):
        mask[row, : min(2 * row, tokens.shape[1] - 1)] = 0
    return mask


def generate(model, tokens, mask, *, new, cache=None, beams=1):
    how = {"use_cache": False} if cache is None else {"past_key_values": cache}
    return model.generate(
        tokens, attention_mask=mask, do_sample=False, max_new_tokens=new, min_new_tokens=new, num_beams=beams, **how
    )


def chunks_of(length, size):
    return [min(size, length - start) for start in range(0, length, size)]


def marked(start, stop, *, batch=2, heads=2, dim=3):
    """Keys that say where they come from: position + head/10 + row/100; values are their negatives."""
    positions = torch.arange(start, stop, dtype=torch.float64).reshape(1, -1, 1, 1)
    row = torch.arange(batch).reshape(-1, 1, 1, 1) / 100
    keys = (positions + row + torch.arange(heads).reshape(1, 1, -1, 1) / 10).expand(batch, -1, heads, dim)
    return keys, -keys


class ListRing:
    """The reference: a Python list of all positions, of which it hands out the last W − 1 and the chunk."""

    def __init__(self, window):
        self.window, self.positions = window, []

    def append(self, count):
        before = self.positions[-(self.window - 1) :] if self.window > 1 else []
        chunk = list(range(len(self.positions), len(self.positions) + count))
        self.positions += chunk
        return before + chunk

    def slots(self):
        held = [-1] * self.window
        for position in self.positions:
            held[position % self.window] = position
        return held


def ring_of(window, **options):
    return KVRing(window, 2, 3, batch=2, dtype=torch.float64, **options)


def feed(ring, reference, sizes):
    """Append chunks of these sizes to both, and compare all that is handed out, exactly: nothing is computed."""
    for size in sizes:
        start = len(reference.positions)
        expected = reference.append(size)
        keys, values, positions = ring.append(*marked(start, start + size))
        assert positions.dtype == torch.int64
        assert positions.tolist() == expected
        wanted_keys, wanted_values = marked(expected[0], expected[-1] + 1)
        assert torch.equal(keys, wanted_keys)
        assert torch.equal(values, wanted_values)
        assert ring.slot_positions().tolist() == reference.slots()
        assert ring.seen == len(reference.positions)


# The ring against a list.


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7])
def test_every_chunk_size_hands_out_the_window_in_position_order(window):
    length = 3 * window + 5
    for size in range(1, length + 1):
        feed(ring_of(window), ListRing(window), chunks_of(length, size) + [1] * (2 * window + 1))


@given(window=st.integers(1, 40), sizes=st.lists(st.one_of(st.just(1), st.integers(1, 120)), min_size=1, max_size=30))
def test_any_chunks_on_any_window(window, sizes):
    feed(ring_of(window), ListRing(window), sizes)


# Attention through the ring against attention over all tokens, in the float64 reference.


def through_ring(q, k, v, window, sizes, *, mask_window=None):
    """Attention chunk by chunk, each against what the ring hands out."""
    ring = KVRing(window, k.shape[2], k.shape[3], batch=k.shape[0], dtype=k.dtype)
    outs = []
    for start, size in zip(accumulate(sizes, initial=0), sizes, strict=False):
        here = slice(start, start + size)
        keys, values, positions = ring.append(k[:, here], v[:, here])
        mask = position_mask(torch.arange(start, start + size), positions, window=mask_window or window)
        outs.append(grouped_query_attention(q[:, here], keys, values, mask)[0])
    return torch.cat(outs, dim=1)


def random_qkv(T, *, B=1, H=4, K=2, D=4):
    generator = torch.Generator().manual_seed(T)
    return tuple(torch.randn(B, T, heads, D, generator=generator, dtype=torch.float64) for heads in (H, K, K))


@pytest.mark.parametrize("T", [5, 8, 9, 21])  # below, at and beyond the window, and beyond twice the window
def test_attention_through_the_ring_is_attention_over_all_tokens_for_every_chunk_size(T):
    window = 8
    q, k, v = random_qkv(T, B=2)
    expected = reference.attention(q, k, v, reference.window_mask(T, window))[0]
    for size in range(1, T + 1):
        out = through_ring(q, k, v, window, chunks_of(T, size))
        # At most 15 products of order 1, summed in another order: 1e-15 apart. A key too many shows at 1e-3.
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-10, err_msg=f"chunks of {size}")


@given(
    window=st.integers(1, 90),
    sizes=st.lists(st.one_of(st.just(1), st.integers(1, 100)), min_size=1, max_size=6),
    K=st.integers(1, 2),
    G=st.integers(1, 2),
)
def test_attention_through_the_ring_equals_sdpa_for_any_chunks(window, sizes, K, G):
    q, k, v = random_qkv(sum(sizes), H=K * G, K=K)
    mask = sliding_window_mask(sum(sizes), window)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    expected = scaled_dot_product_attention(*heads_first, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(through_ring(q, k, v, window, sizes), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [1, 4, 21])
def test_a_window_read_as_at_most_w_back_is_caught(size):
    """W + 1 keys, `i - j <= W` for `i - j < W`, differ from the first query on that has W tokens before it."""
    T, window = 21, 8
    q, k, v = random_qkv(T)
    expected = reference.attention(q, k, v, reference.window_mask(T, window))[0]
    wrong = through_ring(q, k, v, window + 1, chunks_of(T, size), mask_window=window + 1)
    late = np.abs(wrong.numpy() - expected).max(axis=(0, 2, 3)) > 1e-3
    assert late.tolist() == [False] * window + [True] * (T - window)


def test_position_p_lies_in_slot_p_mod_w_and_one_step_writes_one_slot():
    ring = ring_of(5)
    for position in range(17):
        before = ring.keys.clone()
        ring.append(*marked(position, position + 1))
        for half in (0, 5):
            assert torch.equal(ring.keys[:, :, half + position % 5], marked(position, position + 1)[0][:, 0])
        rest = [slot for slot in range(10) if slot % 5 != position % 5]
        # Bits, because memory that was never written may hold what is no number.
        assert torch.equal(ring.keys[:, :, rest].view(torch.int64), before[:, :, rest].view(torch.int64))


def test_a_step_copies_nothing_but_its_token():
    ring = ring_of(6)
    for position in range(20):
        keys, values, _ = ring.append(*marked(position, position + 1))
        for handed_out, slots in ((keys, ring.keys), (values, ring.values)):
            assert handed_out.untyped_storage().data_ptr() == slots.untyped_storage().data_ptr()
            assert handed_out.transpose(1, 2)[
                0, 0
            ].is_contiguous()  # or attention on the CPU takes twice the time, copying


@pytest.mark.parametrize("window", [1, 20])
def test_storage_is_flat_and_under_2_1_windows(window):
    ring = ring_of(window)
    token_bytes = 2 * 2 * 2 * 3 * 8  # keys and values, B, K, D, float64
    for position in range(8 * window):
        ring.append(*marked(position, position + 1))
        assert ring.nbytes == 2 * window * token_bytes


def test_a_chunk_longer_than_the_window_is_not_kept_alive():
    ring = ring_of(3)
    ring.append(*marked(0, 500))
    keys, _, positions = ring.append(*marked(500, 501))
    assert positions.tolist() == [498, 499, 500]
    assert keys.untyped_storage().nbytes() == ring.nbytes / 2


def test_reset_starts_again_at_position_zero_in_the_same_storage():
    ring = ring_of(4)
    feed(ring, ListRing(4), [7, 1, 1])
    where = ring.keys.data_ptr()
    ring.reset()
    feed(ring, ListRing(4), [1, 2, 6, 1])
    assert ring.keys.data_ptr() == where


def test_select_batch_reorders_and_resizes_the_rows():
    ring = ring_of(4)
    ring.append(*marked(0, 6))
    ring.select_batch(torch.tensor([1, 1, 0]))
    k, v = (chunk[[1, 1, 0]] for chunk in marked(6, 7))
    keys, values, _ = ring.append(k, v)
    assert torch.equal(keys, marked(3, 7)[0][[1, 1, 0]])
    assert torch.equal(values, marked(3, 7)[1][[1, 1, 0]])


def test_the_ring_holds_no_gradient_and_serves_inside_and_outside_inference_mode():
    with torch.inference_mode():
        ring = ring_of(2)
        ring.append(*marked(0, 3))
        ring.select_batch(torch.tensor([0, 1]))
    k, v = marked(3, 4)
    keys, values, _ = ring.append(k.clone().requires_grad_(), v.clone().requires_grad_())
    assert not keys.requires_grad
    assert not values.requires_grad
    assert torch.equal(keys, marked(2, 4)[0])


# transformers' cache interface.


def layer_chunk(start, stop, **sizes):
    return tuple(chunk.transpose(1, 2) for chunk in marked(start, stop, dim=8, **sizes))


@pytest.mark.parametrize("window", [1, 2, 5, None])
def test_the_mask_sizes_announce_what_update_hands_out(window):
    draw = random.Random(1)
    cache = RollingCache(tiny_config(window))
    reference = ListRing(10_000 if window is None else window)
    for size in [3, 1, 1, 9, 1, *(draw.randint(1, 4) for _ in range(20))]:
        start = len(reference.positions)
        assert cache.get_seq_length() == start
        expected = reference.append(size)
        announced = cache.get_mask_sizes(size, 0)
        assert announced == (len(expected), expected[0])
        for layer in range(3):
            keys, values = cache.update(*layer_chunk(start, start + size), layer)
            wanted_keys, wanted_values = layer_chunk(expected[0], expected[-1] + 1)
            assert torch.equal(keys, wanted_keys)
            assert torch.equal(values, wanted_values)


@pytest.mark.parametrize("window", [2, 5, 17])
def test_the_mask_sizes_are_those_of_the_dynamic_cache(window):
    """At W = 1 the dynamic cache keeps everything, and announces otherwise; hence from 2 on."""
    ours, theirs = RollingCache(tiny_config(window)), DynamicCache(config=tiny_config(window))
    start = 0
    for size in [4, 1, 1, 20, 1, 3, 1]:
        assert ours.get_mask_sizes(size, 0) == theirs.get_mask_sizes(size, 0)
        for layer in range(3):
            for cache in (ours, theirs):
                cache.update(*layer_chunk(start, start + size), layer)
        start += size
        assert ours.get_seq_length() == theirs.get_seq_length() == start
    assert ours.is_sliding == theirs.is_sliding
    assert ours.get_max_length() == theirs.get_max_length() == window


PROMPTS = [1, 6, 20, 40]  # with W = 8 and 17: below, at, and beyond the window, and beyond twice the window


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [1, 2, 8, 17, None])
def test_generation_is_that_without_a_cache(window, attention):
    """Past 3W, padded and not. Tokens are compared, which need no tolerance."""
    model = tiny(window, attention=attention)
    for length in PROMPTS:
        tokens = prompt(length)
        for mask in (torch.ones_like(tokens), left_padding(tokens)):
            new = max(4, 3 * (window or 4) + 4 - length)
            without = generate(model, tokens, mask, new=new)
            cache = RollingCache(model.config)
            through = generate(model, tokens, mask, new=new, cache=cache)
            assert torch.equal(through, without), f"W = {window}, a prompt of {length}, {attention}"
            assert cache.get_seq_length() == length + new - 1
    assert len(without.unique()) > 8  # no model that says one thing whatever it sees


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_mixtral_without_a_window_generates_as_without_a_cache(attention):
    model = tiny(None, attention=attention, family=MixtralConfig)
    tokens = prompt(9)
    mask = left_padding(tokens)
    through = generate(model, tokens, mask, new=12, cache=RollingCache(model.config))
    assert torch.equal(through, generate(model, tokens, mask, new=12))


@pytest.mark.parametrize("window", [1, 5, None])
@pytest.mark.parametrize("size", [1, 2, 4, 5, 6, 11, 23])
def test_logits_in_chunks_are_those_in_one_pass(window, size):
    model = tiny(window).double()
    tokens = prompt(23, batch=2)
    cache = RollingCache(ModelConfig.from_transformers(model.config))
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
        parts = [model(part, past_key_values=cache).logits for part in tokens.split(size, dim=1)]
    # float64 carries 16 digits, and the logits are below 100: two orders of summation differ by some 1e-13
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("window", [6, None])
def test_beam_search_reorders_the_cache(window):
    model = tiny(window)
    tokens = prompt(9, batch=2)
    mask = left_padding(tokens)
    through = generate(model, tokens, mask, new=20, cache=RollingCache(model.config), beams=3)
    assert torch.equal(through, generate(model, tokens, mask, new=20, beams=3))


def test_beam_search_without_reordering_would_be_seen(monkeypatch):
    model = tiny(6)
    tokens = prompt(9, batch=2)
    mask = torch.ones_like(tokens)
    monkeypatch.setattr(RollingCache, "reorder_cache", lambda self, beam_idx: None)
    through = generate(model, tokens, mask, new=20, cache=RollingCache(model.config), beams=3)
    assert not torch.equal(through, generate(model, tokens, mask, new=20, beams=3))


@pytest.mark.parametrize(
    ("name", "windowed"), [("bundled/tiny-mistral", True), ("bundled/tiny-mixtral", False)], ids=["mistral", "mixtral"]
)
def test_the_bundled_models_generate_as_without_a_cache(name, windowed):
    loaded = load(name.removeprefix("bundled/"), dtype=torch.float32)
    window = loaded.model.config.sliding_window
    assert (window is not None) == windowed
    tokens = prompt(70, batch=2, vocabulary=loaded.model.config.vocab_size)  # beyond tiny-mistral's window of 64
    mask = left_padding(tokens)
    new = 3 * (window or 20) + 4 - 70 if windowed else 24
    without = generate(loaded.model, tokens, mask, new=new)
    assert torch.equal(generate(loaded.model, tokens, mask, new=new, cache=RollingCache(loaded.model.config)), without)


def test_a_conversation_goes_on_in_the_same_cache_and_in_a_copy_of_it():
    model = tiny(8)
    cache = RollingCache(model.config)
    first = generate(model, prompt(12), torch.ones(3, 12, dtype=torch.int64), new=6, cache=cache)
    longer = torch.cat([first, prompt(5)], dim=1)
    mask = torch.ones_like(longer)
    kept = copy.deepcopy(cache)
    without = generate(model, longer, mask, new=9)
    assert torch.equal(generate(model, longer, mask, new=9, cache=cache), without)
    assert torch.equal(generate(model, longer, mask, new=9, cache=kept), without)


def test_after_reset_another_batch_and_dtype_are_welcome():
    model = tiny(8)
    cache = RollingCache(model.config)
    generate(model, prompt(12), torch.ones(3, 12, dtype=torch.int64), new=6, cache=cache)
    cache.reset()
    assert cache.get_seq_length() == cache.nbytes == 0
    tokens = prompt(10, batch=2)
    model = model.double()
    through = generate(model, tokens, torch.ones_like(tokens), new=30, cache=cache)
    assert torch.equal(through, generate(model, tokens, torch.ones_like(tokens), new=30))


def test_rows_are_repeated_and_selected_in_every_layer():
    cache = RollingCache(tiny_config(4))
    for layer in range(3):
        cache.update(*layer_chunk(0, 6), layer)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3]))  # rows 0 0 1 1 become 0 1
    for layer in range(3):
        keys, _ = cache.update(*layer_chunk(6, 7), layer)
        assert torch.equal(keys, layer_chunk(3, 7)[0])


# Bytes.


def test_nbytes_is_flat_from_token_w_to_token_8w_and_counts_all_layers():
    window, token_bytes = 10, 3 * 2 * 2 * 2 * 8 * 8  # layers, keys and values, B, K, D, float64
    cache = RollingCache(tiny_config(window))
    for position in range(8 * window):
        for layer in range(3):
            cache.update(*layer_chunk(position, position + 1), layer)
        assert cache.nbytes == 2 * window * token_bytes < 2.1 * window * token_bytes


def test_a_full_cache_has_at_most_half_as_much_slack_as_tokens_and_moves_seldom():
    token_bytes = 3 * 2 * 2 * 2 * 8 * 8
    cache = RollingCache(tiny_config(None))
    sizes = []
    for position in range(400):
        for layer in range(3):
            cache.update(*layer_chunk(position, position + 1), layer)
        sizes.append(cache.nbytes)
        assert (position + 1) * token_bytes <= cache.nbytes <= 1.5 * (position + 1) * token_bytes
    assert len(set(sizes)) < 20  # log(400)/log(1.5) is 15; a cache that grows at each token has 400


def test_layers_with_and_without_a_window_stand_side_by_side():
    config = tiny_config(4)
    config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    cache = RollingCache(config)
    for layer in range(3):
        cache.update(*layer_chunk(0, 9), layer)
    assert cache.is_sliding == [True, False, True]
    assert [cache.get_mask_sizes(1, layer) for layer in range(3)] == [(4, 6), (10, 0), (4, 6)]
    assert cache.get_max_length() == 4  # as transformers' DynamicCache counts, in which −1 is no maximum


def test_presets_and_transformers_configs_say_the_same():
    assert all(RollingCache(PRESETS["mistral-7b-v0.1"]).is_sliding)
    assert not any(RollingCache(PRESETS["mistral-7b-v0.3"]).is_sliding)
    assert not any(RollingCache(PRESETS["mixtral-8x7b-v0.1"]).is_sliding)
    for window in (4, None):
        ours, theirs = (
            RollingCache(ModelConfig.from_transformers(tiny_config(window))),
            RollingCache(tiny_config(window)),
        )
        assert [vars(layer) for layer in ours.layers] == [vars(layer) for layer in theirs.layers]


# Broken on purpose: each of these must be seen by a comparison above.


def in_slot_order(ring_write):
    def write(self, k, v):
        keys, values = ring_write(self, k, v)
        if k.shape[2] > 1 or self.seen < self.window:
            return keys, values
        order = torch.argsort(torch.arange(self.seen - self.window, self.seen) % self.window)
        return keys[:, :, order], values[:, :, order]

    return write


@pytest.mark.parametrize("window", [8, 17])
def test_a_ring_in_slot_order_fails_the_left_padded_batch_and_only_that(window, monkeypatch):
    model = tiny(window)
    tokens = prompt(window - 2)
    monkeypatch.setattr(KVRing, "write", in_slot_order(KVRing.write))
    for mask, right in ((torch.ones_like(tokens), True), (left_padding(tokens), False)):
        without = generate(model, tokens, mask, new=3 * window)
        through = generate(model, tokens, mask, new=3 * window, cache=RollingCache(model.config))
        assert torch.equal(through, without) == right


def test_a_ring_of_one_key_too_many_or_too_few_is_seen():
    model = tiny(8)
    tokens = prompt(12)
    without = generate(model, tokens, torch.ones_like(tokens), new=24)
    fewer = RollingCache(tiny_config(7))
    assert not torch.equal(generate(model, tokens, torch.ones_like(tokens), new=24, cache=fewer), without)
    ring, reference = ring_of(9), ListRing(8)
    with pytest.raises(AssertionError):
        feed(ring, reference, [1] * 12)


def test_a_token_written_to_one_half_only_is_seen(monkeypatch):
    def first_half_only(self, keys, values):
        self.keys, self.values = keys, values
        self._key_halves = keys[:, :, : self.window].unsqueeze(2)
        self._value_halves = values[:, :, : self.window].unsqueeze(2)

    monkeypatch.setattr(KVRing, "_use_storage", first_half_only)
    with pytest.raises(AssertionError):
        feed(ring_of(4), ListRing(4), [1] * 9)


# Bad input: one line, expected and actual, nothing lost.


def one_line(pattern, kind=ValueError):
    return pytest.raises(kind, match=rf"\A[^\n]*{pattern}[^\n]*\Z")


@pytest.mark.parametrize("name", ["window", "n_kv_heads", "head_dim", "batch"])
def test_sizes_below_one_or_not_whole(name):
    sizes = {"window": 4, "n_kv_heads": 2, "head_dim": 3, "batch": 1}
    for size in (0, -3):
        with one_line(f"{name} is {size}: expected at least 1"):
            KVRing(**(sizes | {name: size}))
    for size in (2.0, True, None, "4"):
        with one_line(f"{name} is {re.escape(repr(size))}: expected a whole number", TypeError):
            KVRing(**(sizes | {name: size}))


REFUSED = {
    "rank": (lambda k, v: (k[0], v[0]), r"keys are \(1, 2, 3\): expected \(B, T, K, D\) = \(2, any, 2, 3\)"),
    "batch": (lambda k, v: (k[:1], v[:1]), r"keys are \(1, 1, 2, 3\).*reset\(\) before another batch"),
    "empty": (lambda k, v: (k[:, :0], v[:, :0]), r"keys are \(2, 0, 2, 3\).*T is at least 1"),
    "heads": (lambda k, v: (k[:, :, :1], v[:, :, :1]), r"keys are \(2, 1, 1, 3\)"),
    "head_dim": (lambda k, v: (k[..., :2], v[..., :2]), r"keys are \(2, 1, 2, 2\)"),
    "values": (lambda k, v: (k, v[..., :2]), r"values are \(2, 1, 2, 2\): expected"),
    "lengths": (lambda k, v: (k, torch.cat([v, v], dim=1)), r"keys are \(2, 1, 2, 3\) and values \(2, 2, 2, 3\)"),
    "dtype": (lambda k, v: (k.float(), v), r"keys are torch.float32 on cpu: expected torch.float64 on cpu"),
    "device": (lambda k, v: (k, v.to("meta")), r"values are torch.float64 on meta: expected torch.float64 on cpu"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_chunk_leaves_the_ring_as_it_was(case):
    spoil, pattern = REFUSED[case]
    ring, reference = ring_of(4), ListRing(4)
    feed(ring, reference, [6])
    with one_line(pattern):
        ring.append(*spoil(*marked(6, 7)))
    feed(ring, reference, [1, 1])


def test_what_is_no_tensor_is_refused():
    with one_line("keys are a list: expected a tensor", TypeError):
        ring_of(4).append([[1.0]], [[1.0]])


@pytest.mark.parametrize("window", [4, None])
def test_a_refused_update_leaves_the_cache_as_it_was(window):
    cache = RollingCache(tiny_config(window))
    for bad, pattern in (
        (layer_chunk(0, 3, heads=4), r"keys are \(2, 4, 3, 8\): expected \(B, K, T, D\) = \(any, 2, any, 8\)"),
        (tuple(chunk[..., :4] for chunk in layer_chunk(0, 3)), r"keys are \(2, 2, 3, 4\)"),
    ):
        with one_line(pattern):
            cache.update(*bad, 0)
        assert cache.get_seq_length() == cache.nbytes == 0
    for layer in range(3):
        cache.update(*layer_chunk(0, 3), layer)
    nbytes = cache.nbytes
    with one_line(r"keys are \(5, 2, 1, 8\): expected \(B, K, T, D\) = \(2, 2, any, 8\).*reset"):
        cache.update(*layer_chunk(3, 4, batch=5), 0)
    assert (cache.get_seq_length(), cache.nbytes) == (3, nbytes)
    assert torch.equal(cache.update(*layer_chunk(3, 4), 0)[0], layer_chunk(0, 4)[0])


def test_a_cache_for_fewer_or_more_layers_than_the_model_has_is_refused():
    model = tiny(4)
    config = tiny_config(4)
    config.num_hidden_layers = 2
    cache = RollingCache(config)
    with torch.no_grad(), one_line("layer_idx is 2, and the cache has 2 layers"):
        model(prompt(6), past_key_values=cache)
    assert cache.get_seq_length() == 0
    config.num_hidden_layers = 4
    cache = RollingCache(config)
    with torch.no_grad():
        model(prompt(6), past_key_values=cache)
        with one_line("the layers hold 0 to 6 tokens.*fewer than 4 layers"):
            model(prompt(1), past_key_values=cache)


@pytest.mark.parametrize("config", ["mistral-7b-v0.1", None, 4096], ids=str)
def test_what_is_no_config_is_refused(config):
    with one_line(f"config is a {type(config).__name__}: expected a ModelConfig", TypeError):
        RollingCache(config)


def test_windows_that_no_layer_can_have():
    with one_line("sliding_window is 0: expected at least 1"):
        RollingCache(tiny_config(0))
    config = tiny_config(4)
    config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    with one_line(r"layer_types has \['chunked_attention'\]: expected 'full_attention' and 'sliding_attention'"):
        RollingCache(config)
    config.layer_types = ["sliding_attention"] * 3
    config.sliding_window = None
    with one_line("sliding_window is None: expected a number of tokens"):
        RollingCache(config)


def test_crop_is_refused_in_one_line_and_loses_nothing():
    cache = RollingCache(tiny_config(4))
    cache.update(*layer_chunk(0, 6), 0)
    assert not getattr(cache, "is_croppable", False)  # transformers 5.15.0 does not ask yet
    with one_line(r"crop\(-1\).*use transformers' DynamicCache"):
        cache.crop(-1)
    assert cache.get_seq_length() == 6


def test_every_abstract_method_of_the_library_is_there():
    assert not type(RollingCache(tiny_config(4)).layers[0]).__abstractmethods__
    assert CacheLayerMixin.__abstractmethods__  # the library still declares what a layer must do
