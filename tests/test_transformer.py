"""The decoder gives the logits of transformers and of a float64 reference, in one pass and through the cache."""

import pytest
import reference_model
import torch
from small_decoders import (
    CLOSE,
    IN_SHARDS,
    KINDS,
    MIXTURE,
    dense_decoder,  # noqa: F401 - the fixture `dense`
    every_bundled_model,  # noqa: F401 - the fixture `bundled`
    every_kind,  # noqa: F401 - the fixture `models`
    in_chunks,
    logits_of,
    one_line,
    one_thread,  # noqa: F401 - for all tests of this file
    pair,
    prompt,
)
from transformers import MixtralConfig

from mistral_lab.attention import grouped_query_attention
from mistral_lab.cache import RollingCache
from mistral_lab.loading import load
from mistral_lab.moe import Expert, Routing, capture_routing, sparse_experts
from mistral_lab.transformer import FeedForward, Layer, MixtureOfExperts, Transformer, blocks, decoder


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("mixture"), *KINDS["mixture"])[0]


# Logits.


@pytest.mark.parametrize("kind", ["window", "multi-query, tied", "head_dim of its own", "mixture", "mixture, shards"])
def test_logits_are_those_of_the_float64_reference(kind, tmp_path):
    family, changes, how = KINDS.get(kind) or (MixtralConfig, MIXTURE | {"sliding_window": 4}, IN_SHARDS)
    ours, theirs = pair(tmp_path, family, changes, how)
    tokens = prompt(12)
    expected = torch.from_numpy(reference_model.logits(tmp_path, theirs.config, tokens)).float()
    torch.testing.assert_close(ours(tokens), expected, **CLOSE)
    torch.testing.assert_close(in_chunks(ours, tokens, 1), expected, **CLOSE)


def test_logits_are_those_of_transformers(models):
    ours, theirs = models
    for T in (1, 6, 7, 8, 23, 150):  # below, at and beyond the window of 7, and beyond one chunk of windowed_attention
        torch.testing.assert_close(ours(prompt(T)), logits_of(theirs, prompt(T)), **CLOSE)


@pytest.mark.parametrize("size", [1, 2, 6, 7, 8, 22, 23])
def test_logits_through_the_cache_are_those_of_one_pass_at_every_step(models, size):
    ours, theirs = models
    tokens = prompt(23)
    torch.testing.assert_close(in_chunks(ours, tokens, size), logits_of(theirs, tokens), **CLOSE)


def test_logits_of_the_bundled_models_are_those_of_transformers(bundled):
    """In one pass they agree to 1e-5. Logits go to 30 here: steps of 2e-6, ten times those of the small models.

    Through the cache transformers differs from itself by 3e-5 between steps and one pass.
    """
    ours, theirs, tokenizer = bundled
    texts = ("My favourite condiment is soy sauce, because", "AI的未来是", "def find_largest(prices):\n    return")
    for tokens in (*(tokenizer(text, return_tensors="pt")["input_ids"] for text in texts), prompt(150, V=2560)):
        expected = logits_of(theirs, tokens)
        torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-5)
        for size in (1, 64):
            torch.testing.assert_close(in_chunks(ours, tokens, size), expected, rtol=0, atol=6e-5)


def test_bfloat16_rounds_as_often_as_transformers_does(bundled):
    """Both in bfloat16: the difference is a rounding here and there, not another place to round.

    One rounding of a logit near 30 is 0.06; a norm taken in bfloat16 throughout moves logits by 0.5 and more.
    """
    ours, theirs, _ = bundled
    name = "tiny-mistral" if ours.config.num_experts is None else "tiny-mixtral"
    half, their_half = Transformer.from_pretrained(name), load(name, dtype=torch.bfloat16).model
    tokens = prompt(100, V=2560)
    assert half.embedding.weight.dtype == half(tokens).dtype == torch.bfloat16  # the dtype of the file
    torch.testing.assert_close(half(tokens).float(), logits_of(their_half, tokens).float(), rtol=0, atol=0.13)
    assert (half(tokens).float() - ours(tokens)).abs().max() > 0.1  # so much does bfloat16 itself move them


@pytest.mark.parametrize("mask", [False, True], ids=["one token", "a chunk under a mask"])
def test_attention_through_the_cache_is_the_one_that_explains_itself(dense, mask):
    """The model takes PyTorch's kernel, which shows no weights."""
    generator = torch.Generator().manual_seed(0)
    T, S = (5, 9) if mask else (1, 9)
    q, k, v = (torch.randn(2, n, heads, 8, generator=generator) for n, heads in ((T, 4), (S, 2), (S, 2)))
    visible = torch.ones(T, S, dtype=torch.bool).tril(S - T) if mask else None
    out = torch.nn.functional.scaled_dot_product_attention(
        *(each.transpose(1, 2) for each in (q, k, v)), attn_mask=visible, enable_gqa=True
    )
    torch.testing.assert_close(out.transpose(1, 2), grouped_query_attention(q, k, v, visible)[0], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_token_goes_through_the_experts_as_many_do(mixture, dtype):
    x = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    layer = mixture.layers[0].feed_forward
    router, experts = (
        layer.router.weight.to(dtype),
        [Expert(*(w.to(dtype) for w in e.weights())) for e in layer.experts],
    )
    routing = blocks.route_top_k(x[0] @ router.T, num_experts_per_tok=2)
    expected = sparse_experts(x[0], routing, experts)
    other = MixtureOfExperts(mixture.config).to(dtype)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x)[0], expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-2)


def test_gradients_are_those_of_transformers(models):
    ours, theirs = models
    tokens = prompt(9)
    ours.requires_grad_(True)
    try:
        theirs(tokens, use_cache=False).logits.square().mean().backward()
        ours(tokens).square().mean().backward()
        expected = theirs.get_input_embeddings().weight.grad
        torch.testing.assert_close(ours.embedding.weight.grad, expected, rtol=1e-4, atol=1e-6)
    finally:
        ours.requires_grad_(False)
        ours.zero_grad()
        theirs.zero_grad()


def test_routing_is_captured_as_that_of_transformers(tmp_path):
    ours, theirs = pair(tmp_path, *KINDS["mixture"])
    for mine, other in zip(capture_routing(ours, prompt(11)), capture_routing(theirs, prompt(11)), strict=True):
        assert torch.equal(mine.indices, other.indices)
        torch.testing.assert_close(mine.weights, other.weights, **CLOSE)


# Broken on purpose: each of these must be far from what it was.


def interleaved(x, cos, sin):
    half = x.shape[-1] // 2
    halves = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
    turned = halves * cos + halves.roll(half, dims=-1) * sin
    return turned.unflatten(-1, (2, half)).transpose(-1, -2).flatten(-2)


def one_key_more(queries, keys, *, window):
    distance = queries[:, None] - keys
    return (distance >= 0) & (distance <= window)


def unnormalised(logits, *, num_experts_per_tok):
    shares, indices = logits.softmax(dim=-1).topk(num_experts_per_tok)
    return Routing(indices, shares)


def swapped(self):
    return Expert(gate=self.up, up=self.gate, down=self.down)


def attention_reads_the_bare_stream(self, x, shared):
    x = x + self.attention(x, shared)
    return x + self.feed_forward(blocks.rms_norm(x, self.feed_forward_norm, self.eps))


BREAKAGE = {
    "rotary pairs interleaved": (blocks, "apply_rotation", interleaved),
    "no rotation": (blocks, "apply_rotation", lambda x, cos, sin: x),
    "sines of the wrong sign": (
        blocks,
        "apply_rotation",
        lambda x, c, s: x * c - x.roll(x.shape[-1] // 2, dims=-1) * s,
    ),
    "gate and up swapped": (FeedForward, "weights", swapped),
    "a norm left out": (Layer, "forward", attention_reads_the_bare_stream),
    "a norm without its weight": (blocks, "rms_norm", lambda x, w, e: x * (x.square().mean(-1, True) + e).rsqrt()),
}


@pytest.mark.parametrize("breakage", BREAKAGE)
@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_a_broken_part_is_far_from_right(request, kind, breakage, monkeypatch):
    model, tokens = request.getfixturevalue(kind), prompt(23)
    right = model(tokens)
    monkeypatch.setattr(*BREAKAGE[breakage])
    assert (model(tokens) - right).abs().max() > 1e-2
    assert (in_chunks(model, tokens, 1) - right).abs().max() > 1e-2


def test_unnormalised_routing_weights_are_far_from_right(mixture, monkeypatch):
    right = mixture(prompt(23))
    monkeypatch.setattr(blocks, "route_top_k", unnormalised)
    assert (mixture(prompt(23)) - right).abs().max() > 1e-2
    assert (in_chunks(mixture, prompt(23), 1) - right).abs().max() > 1e-2


def test_a_window_off_by_one_is_far_from_right(dense, monkeypatch):
    tokens, right = prompt(23), dense(prompt(23))
    for window in (6, 8):
        with monkeypatch.context() as patch:
            for layer in dense.layers:
                patch.setattr(layer.attention, "window", window)
            difference = (dense(tokens) - right).abs().amax(dim=(0, 2))
            # A query of W tokens or less sees the same keys: the first to differ is the one that loses or gains one.
            assert (difference > 1e-3).tolist() == [False] * min(7, window) + [True] * (23 - min(7, window))
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "position_mask", one_key_more)
        assert (in_chunks(dense, tokens, 20) - right).abs().max() > 1e-2
    with monkeypatch.context() as patch:
        patch.setattr(RollingCache, "get_mask_sizes", lambda self, T, layer: (T, self.get_seq_length()))
        with pytest.raises((RuntimeError, AssertionError)):  # a mask that forgets what the cache holds does not fit
            in_chunks(dense, tokens, 5)


def test_positions_that_start_again_with_every_chunk_are_far_from_right(dense, monkeypatch):
    right, original = dense(prompt(23)), Transformer.cos_and_sin
    monkeypatch.setattr(
        Transformer, "cos_and_sin", lambda self, positions: original(self, positions - positions[:, :1])
    )
    torch.testing.assert_close(dense(prompt(23)), right, **CLOSE)
    assert (in_chunks(dense, prompt(23), 5) - right).abs().max() > 1e-2


# Bad input: one line, expected and actual, and nothing changed.


TOKENS = {
    "a list": ([[1, 2]], TypeError, r"tokens are a list: expected a tensor \(B, T\)"),
    "rank 1": (torch.tensor([1, 2]), ValueError, r"tokens are \(2,\) in torch.int64 on cpu: expected \(B, T\)"),
    "rank 3": (torch.ones(1, 2, 3, dtype=torch.int64), ValueError, r"tokens are \(1, 2, 3\)"),
    "no token": (torch.ones(1, 0, dtype=torch.int64), ValueError, r"tokens are \(1, 0\).*at least one token"),
    "no sequence": (torch.ones(0, 3, dtype=torch.int64), ValueError, r"tokens are \(0, 3\)"),
    "float": (torch.ones(1, 2), ValueError, "in torch.float32 on cpu: expected .* int64"),
    "bool": (torch.ones(1, 2, dtype=torch.bool), ValueError, "in torch.bool"),
    "device": (torch.ones(1, 2, dtype=torch.int64, device="meta"), ValueError, "on meta: expected cpu"),
    "negative": (torch.tensor([[3, -1]]), ValueError, "tokens go from -1 to 3: expected 0 to 60, the vocabulary"),
    "too large": (torch.tensor([[3, 61]]), ValueError, "tokens go from 3 to 61: expected 0 to 60, the vocabulary"),
    "too long": (torch.ones(1, 161, dtype=torch.int64), ValueError, "161 given.*expected at most 160 together"),
}


@pytest.mark.parametrize("case", TOKENS)
def test_tokens_that_are_none_are_refused_and_the_cache_is_as_before(dense, case):
    tokens, kind, pattern = TOKENS[case]
    cache = dense.new_cache()
    dense(prompt(9, batch=1), cache)
    for call in (lambda: dense(tokens), lambda: dense(tokens, cache), lambda: dense.generate(tokens, max_new_tokens=1)):
        with one_line(pattern, kind):
            call()
    expected = dense(prompt(12, batch=1).index_fill_(1, torch.arange(9), 5))
    fresh = dense.new_cache()
    dense(torch.full((1, 9), 5), fresh)
    assert cache.get_seq_length() == 9
    torch.testing.assert_close(dense(prompt(12, batch=1)[:, 9:], fresh), expected[:, 9:], **CLOSE)


def test_int32_tokens_are_tokens(dense):
    assert torch.equal(dense(prompt(5).int()), dense(prompt(5)))
    assert torch.equal(dense.generate(prompt(5).int(), max_new_tokens=3), dense.generate(prompt(5), max_new_tokens=3))


def test_what_would_not_fit_the_positions_is_refused(dense):
    assert dense.generate(prompt(150), max_new_tokens=10).shape == (2, 160)
    with one_line("0 tokens in the cache, 150 given and 11 to come: expected at most 160 together, the positions"):
        dense.generate(prompt(150), max_new_tokens=11)
    cache = dense.new_cache(2)
    dense(prompt(150), cache)
    with one_line("150 tokens in the cache, 11 given and 0 to come"):
        dense(prompt(11), cache)
    assert cache.get_seq_length() == 150
    dense(prompt(10), cache)


def test_another_cache_is_refused_and_stays_as_it_was(dense, mixture):
    tokens = prompt(5)
    with one_line(r"cache is a list: expected what new_cache\(\) returns", TypeError):
        dense(tokens, [])
    cache = mixture.new_cache(2)
    with one_line(r"cache has 3 layers.*\(None, 2, 8\): expected 3 of \(7, 2, 8\), from new_cache\(\) of this model"):
        dense(tokens, cache)
    assert torch.equal(mixture(tokens, cache), mixture(tokens, mixture.new_cache(2)))
    cache = dense.new_cache(2)
    expected = dense(prompt(9), cache)
    for wrong in (1, 3):
        with one_line(rf"keys are \({wrong}, 2, 5, 8\).*expected .* = \(2, 2, any, 8\).*another batch"):
            dense(prompt(5, batch=wrong), cache)
        with one_line("keys are .*another batch"):
            dense(prompt(1, batch=wrong), cache)
    assert cache.get_seq_length() == 9
    fresh = dense.new_cache(2)
    assert torch.equal(dense(prompt(9), fresh), expected)
    assert torch.equal(dense(prompt(4), cache), dense(prompt(4), fresh))


@pytest.mark.parametrize("batch", [0, -1, 1.0, True, None])
def test_a_cache_for_no_batch_is_refused(dense, batch):
    with one_line(f"batch is {batch}: expected", TypeError if type(batch) is not int else ValueError):
        dense.new_cache(batch)
