import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MistralConfig, MistralModel
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding, apply_rotary_pos_emb

from mistral_lab import attention
from mistral_lab.attention import grouped_query_attention, rotate, windowed_attention
from mistral_lab.masks import causal_mask, sliding_window_mask

# Sums of fewer than 100 products of order 1 in another order: a few hundred roundings, 1e-14 apart. A wrong weight
# shows at 1e-2.
EXACT = {"rtol": 0, "atol": 1e-10}


def qkv(B=2, T=9, S=None, H=4, K=2, D=6, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    sizes = (B, T, H, D), (B, S or T, K, D), (B, S or T, K, D)
    return tuple(torch.randn(size, generator=random, dtype=torch.float64).to(dtype) for size in sizes)


def sdpa(q, k, v, mask):
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(*heads_first, attn_mask=mask, enable_gqa=True).transpose(1, 2)


class Allocations(TorchDispatchMode):
    """Notes how many values each tensor holds that an operation makes anew; views make none."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if not function.is_view:
            made = result if isinstance(result, (tuple, list)) else [result]
            self.sizes += [x.numel() for x in made if isinstance(x, torch.Tensor)]
        return result


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 4, so that a dozen tokens are several chunks."""
    monkeypatch.setattr(attention, "QUERY_CHUNK", 4)


# Rotary positions


@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_rotation_is_the_complex_product(theta):
    x = qkv(T=6)[0]
    positions = [0, 1, 2, 50, 51, 4095]
    # Angles are float32: at position 4,095 half a unit in the last place is 1.2e-4, times values below 5.
    expected = reference.rotate(x, positions, theta)
    np.testing.assert_allclose(rotate(x, torch.tensor(positions), theta=theta), expected, rtol=0, atol=2e-3)
    near = slice(0, 3)  # positions 0 to 2: half a unit is 1.2e-7
    got = rotate(x[:, near], torch.tensor(positions[near]), theta=theta)
    np.testing.assert_allclose(got, expected[:, near], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rotation_is_bit_for_bit_that_of_transformers(dtype):
    q, k, _ = qkv(T=7, D=8, dtype=dtype)
    config = MistralConfig(
        hidden_size=32, num_attention_heads=4, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    )
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 1000, 1001, 30_000]])
    cos, sin = MistralRotaryEmbedding(config)(q, positions)
    theirs = apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    for x, turned in zip((q, k), theirs, strict=True):
        assert torch.equal(rotate(x, positions, theta=1e4), turned)
    assert torch.equal(rotate(q[:1], positions[0], theta=1e4), theirs[0][:1])


def test_the_layouts_differ_by_an_order_of_the_values():
    x, positions, D = qkv(T=5, D=8)[0], torch.arange(5), 8
    order = [*range(0, D, 2), *range(1, D, 2)]  # the first of every interleaved pair, then the second
    interleaved = reference.rotate(x, range(5), 1e4, layout="interleaved")
    np.testing.assert_allclose(rotate(x[..., order], positions, theta=1e4), interleaved[..., order], rtol=0, atol=2e-6)
    assert np.abs(rotate(x, positions, theta=1e4).numpy() - interleaved).max() > 0.1  # the mix-up is no small error


def test_products_depend_on_the_distance_alone():
    q, k, _ = qkv(T=1, K=4)
    at = lambda x, position: rotate(x, torch.tensor([position]), theta=1e4)  # noqa: E731
    near, far = (at(q, 7) * at(k, 3)).sum(-1), (at(q, 107) * at(k, 103)).sum(-1)
    torch.testing.assert_close(near, far, rtol=0, atol=1e-4)  # float32 angles near 100: 4e-6, times D products below 10
    assert (near - (at(q, 8) * at(k, 3)).sum(-1)).abs().max() > 1e-2


# Grouped queries


@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2), (6, 2), (4, 1)])
def test_grouped_queries_equal_the_reference(H, K):
    q, k, v = qkv(T=5, S=8, H=H, K=K)
    mask = torch.rand(2, H, 5, 8, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[..., 3] = True
    out, weights = grouped_query_attention(q, k, v, mask)
    expected_out, expected_weights = reference.attention(q, k, v, mask.numpy())
    np.testing.assert_allclose(out, expected_out, **EXACT)
    np.testing.assert_allclose(weights, expected_weights, **EXACT)


@pytest.mark.parametrize("shape", [(9, 9), (1, 9), (2, 1, 9, 9), (1, 4, 1, 9), (4, 9, 9)])
def test_every_mask_shape_is_used(shape):
    q, k, v = qkv()
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.6
    mask[..., 0] = True
    torch.testing.assert_close(grouped_query_attention(q, k, v, mask)[0], sdpa(q, k, v, mask), **EXACT)


def test_no_mask_is_a_mask_of_ones():
    q, k, v = qkv(T=3, S=7)
    np.testing.assert_allclose(grouped_query_attention(q, k, v)[0], reference.attention(q, k, v, np.True_)[0], **EXACT)


def test_as_many_kv_heads_as_query_heads_is_multi_head_attention():
    q, k, v = qkv(K=4)
    theirs = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)
    torch.testing.assert_close(grouped_query_attention(q, k, v, causal_mask(9))[0], theirs, **EXACT)


def test_one_kv_head_is_multi_query_attention():
    q, k, v = qkv(K=1)
    theirs = sdpa(q, k.expand(-1, -1, 4, -1), v.expand(-1, -1, 4, -1), causal_mask(9))
    torch.testing.assert_close(grouped_query_attention(q, k, v, causal_mask(9))[0], theirs, **EXACT)


def test_neighbouring_query_heads_share_a_kv_head():
    """Heads 0 and 1 read KV head 0; were they dealt out in turn, heads 0 and 2 would."""
    q, k, v = qkv()
    before = grouped_query_attention(q, k, v)[0]
    v[:, :, 0] += 1
    changed = (grouped_query_attention(q, k, v)[0] - before).abs().amax(dim=(0, 1, 3)) > 0
    assert changed.tolist() == [True, True, False, False]


def test_future_keys_do_not_matter():
    q, k, v = qkv()
    before = grouped_query_attention(q, k, v, causal_mask(9))[0]
    k[:, 6:], v[:, 6:] = 100.0, -100.0
    after = grouped_query_attention(q, k, v, causal_mask(9))[0]
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.isclose(before[:, 6:], after[:, 6:]).any()


def test_keys_and_values_are_never_repeated():
    q, k, v = qkv(B=2, T=1, S=512, H=8, K=2, D=64)
    with Allocations() as made:
        grouped_query_attention(q, k, v, torch.ones(1, 512, dtype=torch.bool))
    assert max(made.sizes) <= k.numel()
    with Allocations() as made:
        grouped_query_attention(q, k.repeat_interleave(4, 2), v.repeat_interleave(4, 2))
    assert max(made.sizes) > k.numel()  # the count sees a repetition


def test_bfloat16_is_near_float64():
    q, k, v = qkv(dtype=torch.bfloat16)
    out, weights = grouped_query_attention(q, k, v, causal_mask(9))
    assert out.dtype == weights.dtype == torch.bfloat16
    expected = reference.attention(q.double(), k.double(), v.double(), causal_mask(9).numpy())[0]
    np.testing.assert_allclose(
        out.double(), expected, rtol=0, atol=0.05
    )  # 8 bits: 2**-8 of values up to 3, a few times


def test_it_is_the_attention_of_transformers_mistral_layer():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=16, hidden_size=24, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, sliding_window=5, attn_implementation="eager",
    )  # fmt: skip
    model = MistralModel(config).double().eval()
    layer = model.layers[0].self_attn
    calls = []
    layer.register_forward_hook(
        lambda _, args, kwargs, out: calls.append((kwargs["hidden_states"], *out)), with_kwargs=True
    )
    with torch.no_grad():
        model(torch.randint(16, (2, 13), generator=torch.Generator().manual_seed(3)))
        ((hidden, their_out, their_weights),) = calls
        q, k, v = (project(hidden).unflatten(-1, (-1, 6)) for project in (layer.q_proj, layer.k_proj, layer.v_proj))
        theta = config.rope_parameters["rope_theta"]
        q, k = (rotate(x, torch.arange(13), theta=theta) for x in (q, k))
        out, weights = grouped_query_attention(q, k, v, sliding_window_mask(13, 5))
        chunked = windowed_attention(q, k, v, window=5)
        # Their softmax is float32: 6e-8 of a weight of at most 1, summed over five keys.
        torch.testing.assert_close(weights, their_weights, rtol=0, atol=1e-6)
        torch.testing.assert_close(layer.o_proj(out.flatten(2)), their_out, rtol=0, atol=1e-6)
        torch.testing.assert_close(layer.o_proj(chunked.flatten(2)), their_out, rtol=0, atol=1e-6)
        wrong = windowed_attention(q, k, v, window=6)
        assert (layer.o_proj(wrong.flatten(2)) - their_out).abs().max() > 1e-4


# The window in chunks


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("T", [1, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("window", [1, 2, 4, 5, 6, 9, 12, 13, 50])
def test_chunks_equal_the_reference(T, window):
    q, k, v = qkv(T=T)
    expected = reference.attention(q, k, v, reference.window_mask(T, window))[0]
    np.testing.assert_allclose(windowed_attention(q, k, v, window=window), expected, **EXACT)


@given(
    T=st.integers(1, 300),
    window=st.integers(1, 310),
    B=st.integers(1, 2),
    K=st.integers(1, 3),
    G=st.integers(1, 3),
    recorded=st.booleans(),
)
def test_chunks_of_the_real_size_equal_sdpa_for_any_shape(T, window, B, K, G, recorded):
    q, k, v = (x.requires_grad_(recorded) for x in qkv(B=B, T=T, H=K * G, K=K, D=4, seed=T + window))
    expected = sdpa(q, k, v, sliding_window_mask(T, window))
    torch.testing.assert_close(windowed_attention(q, k, v, window=window), expected, **EXACT)


@pytest.mark.parametrize("window", [1, 128, 200, 1000])
def test_what_is_written_in_place_is_what_is_recorded_for_gradients(window):
    """The fast way writes views of k into one tensor, the recorded way joins blocks: the same products, bit for bit."""
    q, k, v = qkv(B=1, T=700, dtype=torch.float32)
    plain = windowed_attention(q, k, v, window=window)
    recorded = windowed_attention(q, k, v.clone().requires_grad_(), window=window)
    assert recorded.requires_grad
    assert not plain.requires_grad
    assert torch.equal(plain, recorded.detach())


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_window_that_is_off_by_one_is_caught(wrong):
    q, k, v = qkv(T=13)
    expected = reference.attention(q, k, v, reference.window_mask(13, 5))[0]
    got = windowed_attention(q, k, v, window=5 + wrong).numpy()
    late = np.abs(got - expected).max(axis=(0, 2, 3)) > 1e-3
    assert late.tolist() == [False] * (5 + min(wrong, 0)) + [True] * (8 - min(wrong, 0))


@pytest.mark.parametrize(("dtype", "atol"), [
    (torch.float32, 1e-5),  # 2**-24 of values up to 4, over 40 keys
    (torch.bfloat16, 0.05),  # 2**-8 of values up to 4, rounded a few times
])  # fmt: skip
def test_short_dtypes_are_near_float64(dtype, atol):
    q, k, v = qkv(T=300, dtype=dtype)
    out = windowed_attention(q, k, v, window=40)
    assert out.dtype == dtype
    expected = sdpa(q.double(), k.double(), v.double(), sliding_window_mask(300, 40))
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=atol)


def test_a_window_of_the_whole_text_is_causal_attention():
    q, k, v = qkv(T=140)
    expected = grouped_query_attention(q, k, v, causal_mask(140))[0]
    for window in (140, 141, 10_000, None):
        torch.testing.assert_close(windowed_attention(q, k, v, window=window), expected, **EXACT)


@pytest.mark.usefixtures("small_chunks")
def test_what_left_the_window_and_what_is_to_come_do_not_matter():
    q, k, v = qkv(T=13)
    before = windowed_attention(q, k, v, window=3)
    k[:, 6], v[:, 6] = 100.0, -100.0
    changed = (windowed_attention(q, k, v, window=3) != before).flatten(2).any(-1).any(0)
    assert changed.nonzero().flatten().tolist() == [6, 7, 8]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("window", [1, 3, 5, 20, None])
def test_gradients_match_the_dense_mask(window):
    inputs = [x.requires_grad_() for x in qkv(T=13)]
    upstream = qkv(T=13, seed=1)[0]
    mine = torch.autograd.grad(windowed_attention(*inputs, window=window), inputs, upstream)
    theirs = torch.autograd.grad(sdpa(*inputs, sliding_window_mask(13, window)), inputs, upstream)
    for name, ours, other in zip("qkv", mine, theirs, strict=True):
        torch.testing.assert_close(ours, other, **EXACT, msg=lambda text, name=name: f"gradient of {name}: {text}")


def test_strided_inputs_are_taken_as_they_are():
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv(T=140))
    assert not q.is_contiguous()
    torch.testing.assert_close(
        windowed_attention(q, k, v, window=7), sdpa(q, k, v, sliding_window_mask(140, 7)), **EXACT
    )


@pytest.mark.usefixtures("small_chunks")
def test_work_grows_with_t_and_not_with_its_square():
    """Values made, forward and backward: a mask of T², or a gradient as long as k for every chunk, would show here."""

    def made(T):
        inputs = [x.requires_grad_() for x in qkv(B=1, T=T)]
        with Allocations() as allocations:
            windowed_attention(*inputs, window=8).sum().backward()
        return sum(allocations.sizes), max(allocations.sizes)

    (total, largest), (total_4, largest_4) = made(128), made(512)
    assert total_4 <= 4.2 * total  # 4 but for the first chunks, which have fewer keys
    assert largest_4 <= 4 * largest
    assert largest_4 < 512 * 512 / 4


# Bad input


@pytest.mark.parametrize("function", [grouped_query_attention, lambda q, k, v: windowed_attention(q, k, v, window=2)])
@pytest.mark.parametrize(("change", "message"), [
    (lambda q, k, v: (q[0], k, v), r"q has shape \(9, 4, 6\), .*: expected q \(B, T, H, D\)"),
    (lambda q, k, v: (q, k, v[0]), r"v \(9, 2, 6\): expected q \(B, T, H, D\) and k, v \(B, S, K, D\)"),
    (lambda q, k, v: (q, k, v[:, 1:]), r"v \(2, 8, 2, 6\): expected k and v of one shape \(2, S, K, 6\)"),
    (lambda q, k, v: (q[:1], k, v), r"expected k and v of one shape \(1, S, K, 6\)"),
    (lambda q, k, v: (q[..., :4], k, v), r"expected k and v of one shape \(2, S, K, 4\)"),
    (lambda q, k, v: (q[:, :, :3], k, v), r"expected H, here 3, to be a multiple of K, here 2"),
    (lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]), r"expected H, here 4, to be a multiple of K, here 0"),
    (lambda q, k, v: (q[:, :0], k[:, :0], v[:, :0]), r"expected at least one key"),
    (lambda q, k, v: (q, k.float(), v), r"q is torch.float64, k torch.float32, v torch.float64: expected one"),
    (lambda q, k, v: (q.long(), k.long(), v.long()), r"expected one floating-point dtype"),
    (lambda q, k, v: (q, k.to("meta"), v), r"q is on cpu, k on meta, v on cpu: expected one device"),
])  # fmt: skip
def test_inputs_that_do_not_fit_are_one_clear_line(function, change, message):
    with pytest.raises(ValueError, match=rf"\A[^\n]*{message}[^\n]*\Z"):
        function(*change(*qkv()))


@pytest.mark.parametrize(("mask", "message"), [
    (torch.ones(9, 9), r"mask is torch.float32: expected torch.bool"),
    (torch.ones(9, 8, dtype=torch.bool), r"mask has shape \(9, 8\): expected \(9, 9\), or .* to \(2, 4, 9, 9\)"),
    (torch.ones(2, 9, 9, dtype=torch.bool), r"mask has shape \(2, 9, 9\)"),
    (torch.ones(1, 1, 1, 9, 9, dtype=torch.bool), r"mask has shape \(1, 1, 1, 9, 9\)"),
    (torch.ones(9, 9, dtype=torch.bool, device="meta"), r"mask is on meta: expected cpu"),
    (torch.arange(9)[:, None].ne(4).expand(9, 9), r"mask row \(4,\) is all False: expected every query to see"),
])  # fmt: skip
def test_a_mask_that_does_not_fit_is_one_clear_line(mask, message):
    with pytest.raises(ValueError, match=rf"\A{message}[^\n]*\Z"):
        grouped_query_attention(*qkv(), mask)


def test_the_window_is_checked():
    q, k, v = qkv()
    with pytest.raises(ValueError, match=r"\Awindow is 0: expected at least 1\Z"):
        windowed_attention(q, k, v, window=0)
    with pytest.raises(TypeError, match=r"\Awindow is 2\.0: expected a whole number\Z"):
        windowed_attention(q, k, v, window=2.0)
    with pytest.raises(ValueError, match=r"\Ak and v have 8 tokens: expected 9, as many as q\Z"):
        windowed_attention(q, k[:, 1:], v[:, 1:], window=2)


@pytest.mark.parametrize(("x", "positions", "theta", "message"), [
    (torch.ones(2, 3, 6), torch.arange(3), 1e4, r"x has shape \(2, 3, 6\) .*expected floating-point \(B, T, H, D\)"),
    (torch.ones(2, 3, 1, 5), torch.arange(3), 1e4, r"x has shape \(2, 3, 1, 5\) .* with an even D"),
    (torch.ones(2, 3, 1, 6), torch.arange(4), 1e4, r"positions has shape \(4,\): expected \(3,\) or \(2, 3\)"),
    (torch.ones(2, 3, 1, 6), torch.ones(3), 1e4, r"positions is torch.float32 on cpu: expected whole numbers on cpu"),
    (torch.ones(2, 3, 1, 6), torch.arange(3), 0.0, r"theta is 0.0: expected a positive number"),
])  # fmt: skip
def test_rotation_refuses_what_does_not_fit(x, positions, theta, message):
    with pytest.raises(ValueError, match=rf"\A{message}[^\n]*\Z"):
        rotate(x, positions, theta=theta)
