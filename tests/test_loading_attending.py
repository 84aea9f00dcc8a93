"""One query attends by groups as by transformers' "sdpa", and all else is transformers' "sdpa"."""

import copy

import numpy as np
import pytest
import reference
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Gemma2Config, GptOssConfig, MistralConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mistral_lab.cache import RollingCache
from mistral_lab.loading import attending, load
from mistral_lab.loading.attending import BY_GROUPS, attend_by_groups, use_groups
from mistral_lab.loading.compat import attention_of

# float32 has steps of 1e-7; sums of at most 40 values near 1 differ by some of them. A head that attends with another
# group's keys is off by more than 0.1 (the last test of this part).
CLOSE = 2e-6
SIZES = [(1, 4, 2, 8, 1), (2, 6, 2, 4, 5), (3, 4, 4, 8, 9), (2, 5, 1, 6, 40), (1, 8, 2, 16, 33)]  # B, H, K, D, S


class Layer(torch.nn.Module):
    """What transformers' function reads of an attention layer."""

    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, True


def case(B, H, K, D, S, dtype=torch.float32):
    """Query, keys and values as transformers hands them over: heads first, the query a transposed view."""
    random = torch.Generator().manual_seed(B + 10 * H + 100 * K + S)
    draw = lambda *shape: torch.randn(*shape, generator=random).to(dtype)  # noqa: E731
    return draw(B, 1, H, D).transpose(1, 2), draw(B, K, S, D), draw(B, K, S, D)


def masks(B, H, S):
    """Every shape in which masks come; each row sees its last key, as a token sees itself."""
    random = torch.Generator().manual_seed(S)
    per_head = torch.rand(B, H, 1, S, generator=random) < 0.6
    per_head[..., -1] = True
    padding = torch.arange(S) >= (torch.arange(B) % S)[:, None, None, None]
    window = (torch.arange(S) > S - 4)[None, None, None]
    return {"none": None, "left padding": padding, "window": window, "per head": per_head}


def expected(q, k, v, mask, scaling=None):
    """The slow float64 way, which divides by the root of D: another scale is put into the query."""
    D, S = q.shape[3], k.shape[2]
    factor = 1 if scaling is None else scaling * D**0.5
    mask = np.ones((1, 1, 1, S), dtype=bool) if mask is None else mask.numpy()
    q, k, v = (x.double().transpose(1, 2).numpy() for x in (q, k, v))
    return torch.from_numpy(reference.attention(q * factor, k, v, mask)[0])


@pytest.mark.parametrize("kind", ["none", "left padding", "window", "per head"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_one_query_gets_what_float64_and_sdpa_give(sizes, kind, scaling):
    B, H, K, D, S = sizes
    q, k, v = case(*sizes)
    mask = masks(B, H, S)[kind]
    out, weights = attend_by_groups(Layer(H // K), q, k, v, mask, scaling=scaling)
    assert weights is None
    assert out.shape == (B, 1, H, D)
    assert out.is_contiguous()
    assert (out - expected(q, k, v, mask, scaling)).abs().max() < CLOSE
    theirs, _ = sdpa_attention_forward(Layer(H // K), q, k, v, mask, scaling=scaling)
    assert (out - theirs).abs().max() < CLOSE
    if mask is not None:  # a mask of numbers says the same
        added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        assert (attend_by_groups(Layer(H // K), q, k, v, added, scaling=scaling)[0] - out).abs().max() < CLOSE


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_bfloat16_is_as_exact_as_sdpa(sizes):
    q, k, v = case(*sizes, dtype=torch.bfloat16)
    out, _ = attend_by_groups(Layer(sizes[1] // sizes[2]), q, k, v, None)
    theirs, _ = sdpa_attention_forward(Layer(sizes[1] // sizes[2]), q, k, v, None)
    assert out.dtype == torch.bfloat16
    # Both keep scores and sums in float32 and round the result to 8 bits: below 2 by one step, 2^-7, at most.
    assert (out.float() - theirs.float()).abs().max() <= 2**-7
    assert (out - expected(q, k, v, None)).abs().max() < 2**-6  # and the weights are rounded before the second product


def test_keys_and_values_may_be_views_of_longer_storage():
    q, k, v = case(2, 6, 2, 4, 9)
    out, _ = attend_by_groups(Layer(3), q, k[:, :, 2:7], v[:, :, 2:7], None)
    assert (out - expected(q, k[:, :, 2:7], v[:, :, 2:7], None)).abs().max() < CLOSE


def test_a_gradient_reaches_query_keys_and_values():
    ours, theirs = ([x.clone().requires_grad_() for x in case(2, 6, 2, 4, 5)] for _ in range(2))
    attend_by_groups(Layer(3), *ours, None)[0].square().sum().backward()
    sdpa_attention_forward(Layer(3), *theirs, None)[0].square().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.grad - other.grad).abs().max() < 1e-5  # sums of products of up to 5, so some steps more


def test_heads_grouped_the_other_way_round_would_be_seen():
    q, k, v = case(2, 6, 2, 4, 5)
    other = q.reshape(2, 3, 2, 1, 4).transpose(1, 2).reshape(2, 6, 1, 4)  # head h with the keys of h mod K
    assert (attend_by_groups(Layer(3), other, k, v, None)[0] - expected(q, k, v, None)).abs().max() > 0.1


@pytest.mark.parametrize("others", [{"softcap": 30.0}, {"position_bias": torch.zeros(1)}, {"cache": object()}, {}])
def test_all_else_is_handed_over_as_it_came(others, monkeypatch):
    seen = []
    theirs = lambda *args, **kwargs: seen.append((args, kwargs)) or "it"  # noqa: E731
    monkeypatch.setattr(attending, "sdpa_attention_forward", theirs)
    q, k, v = case(2, 6, 2, 4, 5)
    q = q if others else q.expand(2, 6, 3, 4)  # without anything special: several queries
    layer, mask = Layer(3), torch.ones(2, 1, 1, 5, dtype=torch.bool)
    others |= {"sliding_window": 3, "is_causal": False}
    assert attend_by_groups(layer, q, k, v, mask, dropout=0.5, scaling=0.7, **others) == "it"
    (args, kwargs), = seen
    assert all(given is passed for given, passed in zip((layer, q, k, v, mask), args, strict=True))
    assert kwargs == {"dropout": 0.5, "scaling": 0.7} | others


# In models

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
SHAPE |= {"num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}


def small(window, K=2):
    """A random model with wide weights, so that its greedy choices hang on what it attends to and not on rounding."""
    config = MistralConfig(**SHAPE, num_key_value_heads=K, sliding_window=window)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def single_queries(monkeypatch):
    """The numbers of query heads with which the function for one query was called."""
    heads, real = [], attending.scaled_dot_product_attention

    def counted(query, *args, **kwargs):
        heads.append(query.shape[1])
        return real(query, *args, **kwargs)

    monkeypatch.setattr(attending, "scaled_dot_product_attention", counted)
    return heads


@pytest.mark.parametrize(("window", "K"), [(5, 2), (None, 2), (7, 4), (7, 1)])
@pytest.mark.parametrize("how", ["dynamic", "rolling", "beams", "chunks"])
def test_generation_is_that_of_sdpa_without_a_cache(window, K, how, single_queries):
    model = small(window, K)
    tokens = torch.randint(3, 64, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[1, :2] = mask[2, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 14, "do_sample": False, "pad_token_id": 0}
    options |= {"num_beams": 3} if how == "beams" else {}
    wanted = model.generate(tokens, **options, use_cache=False)
    use_groups(model)
    options |= {"prefill_chunk_size": 4} if how == "chunks" else {}
    cache = DynamicCache(config=model.config) if how in ("dynamic", "chunks") else RollingCache(model.config)
    assert torch.equal(model.generate(tokens, **options, past_key_values=cache), wanted)
    assert set(single_queries) == {K}  # it ran, and with one head for a group


def test_the_logits_of_every_token_are_those_of_one_pass():
    model = small(5)
    tokens = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
        use_groups(model)
        cache = DynamicCache(config=model.config)
        steps = torch.cat([model(column, past_key_values=cache).logits for column in tokens.split(1, dim=1)], dim=1)
    assert (steps - whole).abs().max() < 1e-4 * whole.abs().max()  # float32, three layers: rounding is near 1e-6


def test_weights_that_are_asked_for_come_as_from_sdpa():
    model = small(None)
    theirs = model(torch.tensor([[5]]), output_attentions=True).attentions
    use_groups(model)
    assert model(torch.tensor([[5]]), output_attentions=True).attentions == theirs


def test_models_of_another_attention_keep_it():
    eager = small(None)
    eager.set_attn_implementation("eager")
    sizes = SHAPE | {"num_key_value_heads": 2, "num_hidden_layers": 1}
    sinks = AutoModelForCausalLM.from_config(GptOssConfig(**sizes, num_local_experts=2, num_experts_per_tok=1))
    capped = AutoModelForCausalLM.from_config(Gemma2Config(**sizes))
    for model in (eager, sinks, capped):
        before = attention_of(model)
        use_groups(model)
        # transformers 5.15 gives Gemma 2 "sdpa", to which a soft cap is handed on.
        assert attention_of(model) == (BY_GROUPS if before == "sdpa" and model is capped else before) != "sdpa"


def test_load_on_a_cpu_uses_it_and_nothing_of_it_is_saved(tmp_path):
    model = load("tiny-mistral", device="cpu").model
    assert attention_of(model) == BY_GROUPS == attention_of(copy.deepcopy(model))
    model.save_pretrained(tmp_path)
    assert BY_GROUPS not in (tmp_path / "config.json").read_text()
    assert attention_of(AutoModelForCausalLM.from_pretrained(tmp_path)) == "sdpa"
    model.set_attn_implementation("sdpa")  # and back, as a reader may want to compare
    use_groups(model)
    assert attention_of(model) == BY_GROUPS
