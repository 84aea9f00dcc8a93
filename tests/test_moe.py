import math
from itertools import combinations, permutations

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear, one_hot, silu
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.models.mistral.modeling_mistral import MistralMLP
from transformers.models.mixtral.modeling_mixtral import (
    MixtralSparseMoeBlock,
    MixtralTopKRouter,
    load_balancing_loss_func,
)

from mistral_lab.moe import (
    Expert,
    Routing,
    capture_routing,
    co_activation,
    expert_forward,
    expert_load,
    load_balancing_loss,
    load_entropy,
    lru_hit_rate,
    repeat_rate,
    route_top_k,
    sparse_experts,
    split_experts,
)

# Sums of fewer than 100 products of order 1 in another order: a few hundred roundings of 1e-16. A wrong weight shows at
# 1e-2.
EXACT = {"rtol": 0, "atol": 1e-10}
# A float32 weight of at most 1, from three operations: a few times 6e-8, times answers below 8.
FLOAT32_WEIGHTS = {"rtol": 0, "atol": 1e-6}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def fused(E=8, d=6, f=10, dtype=torch.float64):
    """The two tensors of a layer, as transformers keeps them, with weights that leave values of order 1."""
    return (normal(E, 2 * f, d, seed=1) / d**0.5).to(dtype), (normal(E, d, f, seed=2) / f**0.5).to(dtype)


def routed(N=11, E=8, A=2, dtype=torch.float64):
    """A routing whose weights are float64 too, so that a comparison need not allow for their rounding."""
    indices, weights = reference.route_top_k(normal(N, E, seed=3), A)
    return Routing(torch.from_numpy(indices), torch.from_numpy(weights).to(dtype))


def by_reference(x, routing, experts):
    numbers = [
        np.stack([weight.detach().double().numpy() for weight in weights]) for weights in zip(*experts, strict=True)
    ]
    return reference.experts(x.detach().double(), routing.indices.numpy(), routing.weights.detach(), *numbers)


def dense(x, logits, A, experts):
    """Every expert on every token, weighed by softmax, choice and division: what autograd understands by itself."""
    shares = logits.softmax(dim=-1)
    mask = one_hot(shares.topk(A).indices, len(experts)).sum(dim=1)
    weights = shares * mask / (shares * mask).sum(dim=-1, keepdim=True)
    answers = torch.stack([linear(silu(linear(x, e.gate)) * linear(x, e.up), e.down) for e in experts], dim=1)
    return (weights[..., None] * answers).sum(dim=1)


def uniform(N, E=8, A=2, seed=0):
    """Every set and order of A experts equally likely."""
    return torch.rand(N, E, generator=torch.Generator().manual_seed(seed)).topk(A).indices


def five_sigma(p, n):
    """Five standard deviations of a share p counted over n independent cases: missed once in two million."""
    return 5 * (p * (1 - p) / n) ** 0.5


class Products(TorchDispatchMode):
    """Notes the shapes of every matrix product."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten.mm.default:
            self.shapes.append(tuple(tuple(x.shape) for x in arguments))
        return function(*arguments, **(keywords or {}))


# Routing


@pytest.mark.parametrize("A", [1, 2, 5, 8])
def test_the_softmax_over_the_chosen_equals_softmax_choice_and_division(A):
    logits = normal(50, 8)
    indices, weights = route_top_k(logits, num_experts_per_tok=A)
    expected_indices, expected_weights = reference.route_top_k(logits, A)
    assert (indices.dtype, weights.dtype) == (torch.int64, torch.float32)
    assert indices.tolist() == expected_indices.tolist()
    # float32: exp and division round a number of at most 1 a few times, 6e-8 each.
    np.testing.assert_allclose(weights, expected_weights, rtol=0, atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("A", [1, 2, 3])
def test_it_chooses_as_the_router_of_transformers(A, dtype):
    router = MixtralTopKRouter(MixtralConfig(hidden_size=6, num_local_experts=8, num_experts_per_tok=A)).to(dtype)
    router.weight.data = normal(8, 6, dtype=dtype)
    logits, weights, indices = router(normal(40, 6, seed=1, dtype=dtype))
    ours = route_top_k(logits, num_experts_per_tok=A)
    # Equal logits, which bfloat16 makes common, may come in either order; their weights are the same.
    assert torch.equal(logits.gather(1, ours.indices), logits.gather(1, indices))
    torch.testing.assert_close(ours.weights, weights, rtol=0, atol=5e-7)  # as above


def test_weights_left_as_they_come_from_all_experts_are_no_small_error():
    logits = normal(50, 8)
    weights = route_top_k(logits, num_experts_per_tok=2).weights
    undivided = logits.softmax(dim=-1).topk(2).values
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(50), rtol=0, atol=2e-7)
    assert (weights - undivided).abs().max() > 0.1


def test_one_expert_a_token_has_weight_one_and_all_experts_have_the_whole_softmax():
    logits = normal(9, 8, dtype=torch.float32)
    assert torch.equal(route_top_k(logits, num_experts_per_tok=1).weights, torch.ones(9, 1))
    indices, weights = route_top_k(logits, num_experts_per_tok=8)
    everything = torch.zeros(9, 8).scatter(1, indices, weights)
    torch.testing.assert_close(everything, logits.softmax(dim=-1), rtol=0, atol=2e-7)  # two roundings of 6e-8


def test_equal_logits_share_the_weight_and_take_different_experts():
    indices, weights = route_top_k(torch.zeros(5, 8), num_experts_per_tok=3)
    assert torch.equal(weights, torch.full((5, 3), 1 / 3))
    assert all(len(set(row)) == 3 for row in indices.tolist())
    assert torch.equal(indices, torch.zeros(5, 8).topk(3).indices)  # which of them: topk's affair


def test_a_level_that_all_logits_share_and_an_expert_out_of_reach_do_not_matter():
    logits = torch.tensor([[1.0, 3.0, 2.0, -math.inf]])
    plain, lifted = (route_top_k(logits + level, num_experts_per_tok=3) for level in (0, 4096))
    assert torch.equal(plain.indices, lifted.indices)
    assert torch.equal(plain.weights, lifted.weights)
    assert route_top_k(logits, num_experts_per_tok=4).weights[0, 3] == 0


def test_gradients_of_the_weights_are_those_of_the_long_way():
    logits, upstream = normal(9, 8).requires_grad_(), normal(9, 2, seed=1)
    ours = torch.autograd.grad(route_top_k(logits, num_experts_per_tok=2).weights, logits, upstream.float())[0]
    shares = logits.softmax(dim=-1).topk(2).values
    theirs = torch.autograd.grad(shares / shares.sum(dim=-1, keepdim=True), logits, upstream)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # float32 products below 3, a few roundings
    assert ((ours.abs() > 1e-6).sum(dim=-1) == 2).all()  # none but rounding reaches an expert that was not chosen


@pytest.mark.parametrize(("logits", "A", "error", "message"), [
    (torch.ones(3, 4), 5, ValueError, r"num_experts_per_tok is 5: expected at most 4, the experts in logits"),
    (torch.ones(3, 4), 0, ValueError, r"num_experts_per_tok is 0: expected at least 1"),
    (torch.ones(3, 4), -1, ValueError, r"num_experts_per_tok is -1: expected at least 1"),
    (torch.ones(3, 4), 2.0, TypeError, r"num_experts_per_tok is 2\.0: expected a whole number"),
    (torch.ones(3, 4), True, TypeError, r"num_experts_per_tok is True: expected a whole number"),
    (torch.ones(4), 2, ValueError, r"logits has shape \(4,\) in torch\.float32: expected floating-point \(N, E\)"),
    (torch.ones(2, 3, 4), 2, ValueError, r"logits has shape \(2, 3, 4\) in torch\.float32: expected .* \(N, E\)"),
    (torch.ones(3, 4).long(), 2, ValueError, r"logits has shape \(3, 4\) in torch\.int64: expected floating-point"),
    (torch.tensor([[1.0, 2.0], [3.0, math.nan]]), 1, ValueError, r"logits\[1\] is \[3\.0, nan\]: expected numbers"),
    (torch.tensor([[math.inf, 2.0]]), 2, ValueError, r"logits\[0\] is \[inf, 2\.0\]: expected numbers"),
    (torch.tensor([[-math.inf, -math.inf]]), 2, ValueError, r"logits\[0\] is \[-inf, -inf\]: expected numbers"),
])  # fmt: skip
def test_logits_that_cannot_be_routed_are_one_clear_line(logits, A, error, message):
    with pytest.raises(error, match=rf"\A{message}[^\n]*\Z"):
        route_top_k(logits, num_experts_per_tok=A)


# Experts


@pytest.mark.parametrize("A", [1, 2, 8])
@pytest.mark.parametrize("N", [1, 11])
def test_experts_equal_the_reference(N, A):
    x, routing, experts = normal(N, 6), routed(N=N, A=A), split_experts(*fused())
    np.testing.assert_allclose(sparse_experts(x, routing, experts), by_reference(x, routing, experts), **EXACT)


@given(
    N=st.integers(1, 40),
    E=st.integers(1, 9),
    A=st.integers(1, 9),
    d=st.integers(1, 7),
    f=st.integers(1, 7),
    seed=st.integers(0, 9),
)
def test_any_shape_and_any_choice_equal_the_reference(N, E, A, d, f, seed):
    """Choices without any rule: an expert may be drawn twice for a token, and its answer then counts twice."""
    x, experts = normal(N, d, seed=seed), split_experts(*fused(E=E, d=d, f=f))
    indices = torch.randint(E, (N, A), generator=torch.Generator().manual_seed(seed))
    routing = Routing(indices, normal(N, A, seed=seed + 1))
    np.testing.assert_allclose(sparse_experts(x, routing, experts), by_reference(x, routing, experts), **EXACT)


@pytest.mark.parametrize(("implementation", "dtype", "tolerance"), [
    # Weights are float32 there too, from other operations.
    ("eager", torch.float64, FLOAT32_WEIGHTS),
    ("batched_mm", torch.float64, FLOAT32_WEIGHTS),
    # And answers below 8, 6e-8 of them over sums of 16.
    ("eager", torch.float32, {"rtol": 0, "atol": 1e-5}),
    ("batched_mm", torch.float32, {"rtol": 0, "atol": 1e-5}),
    ("grouped_mm", torch.float32, {"rtol": 0, "atol": 1e-5}),
    # And 8 bits: 2**-8 of answers below 8, of which "eager" rounds every sum, the others and ours only the last.
    ("eager", torch.bfloat16, {"rtol": 0, "atol": 0.05}),
    ("batched_mm", torch.bfloat16, {"rtol": 0, "atol": 0.05}),
    ("grouped_mm", torch.bfloat16, {"rtol": 0, "atol": 0.05}),
])  # fmt: skip
def test_a_layer_is_the_block_of_transformers(implementation, dtype, tolerance):
    d, f = 8, 16  # "grouped_mm" takes rows of whole 16 bytes only
    config = MixtralConfig(
        hidden_size=d, intermediate_size=f, num_local_experts=8, num_experts_per_tok=2,
        experts_implementation=implementation,
    )  # fmt: skip
    block = MixtralSparseMoeBlock(config).to(dtype).eval()
    weights = normal(8, d, seed=5, dtype=dtype), *fused(d=d, f=f, dtype=dtype)
    for parameter, values in zip(block.parameters(), weights, strict=True):
        parameter.data = values
    x = normal(40, d, dtype=dtype)
    with torch.no_grad():
        theirs = block(x[None])[0]
        routing = route_top_k(linear(x, block.gate.weight), num_experts_per_tok=2)
        ours = sparse_experts(x, routing, split_experts(block.experts.gate_up_proj, block.experts.down_proj))
    assert ours.dtype == dtype
    assert 1 < theirs.abs().max() < 8  # as the tolerances suppose
    torch.testing.assert_close(ours, theirs, **tolerance)


def test_weights_that_are_not_divided_and_swapped_projections_are_no_small_error():
    x, logits, experts = normal(11, 6), normal(11, 8, seed=3), split_experts(*fused())
    expected = dense(x, logits, 2, experts)
    routing = route_top_k(logits, num_experts_per_tok=2)
    torch.testing.assert_close(sparse_experts(x, routing, experts), expected, **FLOAT32_WEIGHTS)
    wrong = {
        "undivided": sparse_experts(x, Routing(routing.indices, logits.softmax(dim=-1).topk(2).values), experts),
        "gate for up": sparse_experts(x, routing, [Expert(e.up, e.gate, e.down) for e in experts]),
        "choices swapped": sparse_experts(x, Routing(routing.indices.flip(1), routing.weights), experts),
        "the next expert": sparse_experts(x, routing, experts[1:] + experts[:1]),
    }
    assert {name: (got - expected).abs().max() > 0.1 for name, got in wrong.items()} == dict.fromkeys(wrong, True)


def test_all_experts_chosen_is_the_dense_mixture():
    x, logits, experts = normal(11, 6), normal(11, 8, seed=3), split_experts(*fused())
    shares = logits.softmax(dim=-1)
    expected = sum(shares[:, e, None] * expert_forward(x, expert) for e, expert in enumerate(experts))
    routing = route_top_k(logits, num_experts_per_tok=8)
    torch.testing.assert_close(sparse_experts(x, routing, experts), expected, **FLOAT32_WEIGHTS)


def test_one_expert_is_the_feed_forward_network_of_a_dense_layer():
    network = MistralMLP(MistralConfig(hidden_size=6, intermediate_size=10)).double()
    expert = Expert(network.gate_proj.weight, network.up_proj.weight, network.down_proj.weight)
    x = normal(11, 6)
    torch.testing.assert_close(expert_forward(x, expert), network(x), **EXACT)
    routing = route_top_k(normal(11, 1, seed=3), num_experts_per_tok=1)
    torch.testing.assert_close(sparse_experts(x, routing, [expert]), network(x), **EXACT)


def test_experts_in_another_order_give_the_same():
    x, logits, experts = normal(11, 6), normal(11, 8, seed=3), split_experts(*fused())
    order = torch.randperm(8, generator=torch.Generator().manual_seed(4)).tolist()
    before = sparse_experts(x, route_top_k(logits, num_experts_per_tok=2), experts)
    moved = route_top_k(logits[:, order], num_experts_per_tok=2)
    # The softmax adds eight exponentials in another order, in float32: its last digit moves, times answers up to 1.
    torch.testing.assert_close(sparse_experts(x, moved, [experts[e] for e in order]), before, rtol=0, atol=1e-6)
    assert (sparse_experts(x, moved, experts) - before).abs().max() > 0.1  # the router's columns alone


def test_tokens_in_another_order_give_the_same_in_that_order():
    x, routing, experts = normal(11, 6), routed(), split_experts(*fused())
    order = torch.randperm(11, generator=torch.Generator().manual_seed(4))
    moved = sparse_experts(x[order], Routing(routing.indices[order], routing.weights[order]), experts)
    torch.testing.assert_close(moved, sparse_experts(x, routing, experts)[order], **EXACT)


def test_an_expert_that_nobody_chose_is_never_read():
    x, experts = normal(5, 6), split_experts(*fused())
    routing = Routing(torch.tensor([[0, 5], [5, 0], [2, 0], [5, 2], [0, 2]]), routed(N=5).weights)
    before = sparse_experts(x, routing, experts)
    for expert in (1, 3, 4, 6, 7):
        for weight in experts[expert]:
            weight.fill_(math.nan)
    assert torch.equal(sparse_experts(x, routing, experts), before)
    experts[2].down.fill_(math.nan)  # chosen by tokens 2, 3 and 4: the test sees a NaN that is read
    assert sparse_experts(x, routing, experts).isnan().any(dim=-1).tolist() == [False, False, True, True, True]


def test_each_chosen_expert_is_three_products_over_all_of_its_tokens():
    x, experts = normal(5, 6), split_experts(*fused())
    routing = Routing(torch.tensor([[0, 5], [5, 0], [2, 0], [5, 2], [0, 2]]), routed(N=5).weights)
    with Products() as products:
        sparse_experts(x, routing, experts)
    a_projection = lambda rows: [((rows, 6), (6, 10)), ((rows, 6), (6, 10)), ((rows, 10), (10, 6))]  # noqa: E731
    assert products.shapes == a_projection(4) + a_projection(3) + a_projection(3)  # experts 0, 2 and 5


def test_answers_are_added_in_float32():
    x, experts = normal(1, 6, dtype=torch.bfloat16), split_experts(*fused(dtype=torch.bfloat16))
    routing = route_top_k(normal(1, 8, seed=3), num_experts_per_tok=8)
    answers = torch.stack([expert_forward(x, experts[e])[0] for e in routing.indices[0]])
    expected = (routing.weights[0, :, None] * answers.float()).sum(dim=0)
    assert torch.equal(sparse_experts(x, routing, experts)[0], expected.bfloat16())


@pytest.mark.parametrize(("dtype", "atol"), [
    (torch.float32, 1e-5),  # 6e-8 of values below 8, over sums of ten
    (torch.float16, 0.015),  # 2**-11 of values below 8, rounded a few times
    (torch.bfloat16, 0.04),  # 2**-8 of values below 8, rounded a few times
])  # fmt: skip
def test_short_dtypes_are_near_float64(dtype, atol):
    x, experts = normal(40, 6, dtype=dtype), split_experts(*fused(dtype=dtype))
    routing = route_top_k(normal(40, 8, seed=3), num_experts_per_tok=2)
    out = sparse_experts(x, routing, experts)
    assert out.dtype == dtype
    np.testing.assert_allclose(out.double(), by_reference(x, routing, experts), rtol=0, atol=atol)


def test_gradients_are_those_of_the_dense_form():
    """Of the tokens, the router's logits and both tensors of weights, through the views."""
    inputs = [x.requires_grad_() for x in (normal(11, 6), normal(11, 8, seed=3), *fused())]
    upstream = normal(11, 6, seed=4)
    x, logits, *weights = inputs
    ours = sparse_experts(x, route_top_k(logits, num_experts_per_tok=2), split_experts(*weights))
    mine = torch.autograd.grad(ours, inputs, upstream)
    theirs = torch.autograd.grad(dense(x, logits, 2, split_experts(*weights)), inputs, upstream)
    for name, one, other in zip(("x", "logits", "gate_up_proj", "down_proj"), mine, theirs, strict=True):
        # float32 weights, 6e-8, in sums of gradients below 6
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_an_expert_that_nobody_chose_has_no_gradient():
    experts = [Expert(*(weight.clone().requires_grad_() for weight in e)) for e in split_experts(*fused(E=3))]
    routing = Routing(torch.tensor([[0], [2], [0]]), torch.ones(3, 1))
    sparse_experts(normal(3, 6), routing, experts).sum().backward()
    assert [expert.up.grad is None for expert in experts] == [False, True, False]


def test_the_experts_of_fused_tensors_are_views():
    gate_up, down = fused()
    experts = split_experts(gate_up, down)
    assert {weight.untyped_storage().data_ptr() for e in experts for weight in e[:2]} == {gate_up.data_ptr()}
    assert {e.down.untyped_storage().data_ptr() for e in experts} == {down.data_ptr()}
    for e, expert in enumerate(experts):
        assert torch.equal(torch.cat(expert[:2]), gate_up[e])
        assert torch.equal(expert.down, down[e])


@pytest.mark.parametrize(("gate_up", "down"), [
    ((8, 20, 6), (8, 10, 6)),  # down as (E, f, d)
    ((8, 20, 6), (7, 6, 10)),
    ((8, 19, 6), (8, 6, 10)),
    ((20, 6), (6, 10)),
    ((0, 20, 6), (0, 6, 10)),
])  # fmt: skip
def test_fused_tensors_that_do_not_fit_are_one_clear_line(gate_up, down):
    with pytest.raises(
        ValueError, match=r"\Agate_up_proj has shape .* and down_proj .*: expected \(E, 2f, d\)[^\n]*\Z"
    ):
        split_experts(torch.ones(gate_up), torch.ones(down))


def changed(experts, number, **weights):
    return [*experts[:number], experts[number]._replace(**weights), *experts[number + 1 :]]


@pytest.mark.parametrize(("change", "message"), [
    (lambda x, r, e: (x[0], r, e), r"x has shape \(6,\) in torch.float64: expected floating-point \(N, d\)"),
    (lambda x, r, e: (x[None], r, e), r"x has shape \(1, 11, 6\) in torch.float64: expected floating-point \(N, d\)"),
    (lambda x, r, e: (x.long(), r, e), r"x has shape \(11, 6\) in torch.int64: expected floating-point"),
    (lambda x, r, e: (x[:0], r, e), r"x has shape \(0, 6\) .*: expected .* N at least 1"),
    (lambda x, r, e: (x[:10], r, e), r"routing has indices \(11, 2\) .*: expected both \(10, A\) on cpu"),
    (lambda x, r, e: (x, r._replace(weights=r.weights[:, :1]), e), r"routing has .* weights \(11, 1\) on cpu: "),
    (lambda x, r, e: (x, r._replace(weights=r.weights.to("meta")), e), r"routing has .* on meta: expected .* on cpu"),
    (lambda x, r, e: (x, r._replace(indices=r.indices.float()), e), r"indices has .* in torch.float32: expected"),
    (lambda x, r, e: (x, r._replace(indices=r.indices[0]), e), r"indices has shape \(2,\) .*: expected .* \(N, A\)"),
    (lambda x, r, e: (x, r._replace(indices=r.indices + 1), e), r"indices go from 1 to 8: expected experts 0 to 7"),
    (lambda x, r, e: (x, r._replace(indices=r.indices - 1), e), r"indices go from -1 to 6: expected experts 0 to 7"),
    (lambda x, r, e: (x, r, e[:5]), r"indices go from 0 to 7: expected experts 0 to 4"),
    (lambda x, r, e: (x, r, []), r"num_experts is 0: expected at least 1"),
    (lambda x, r, e: (x[:, :5], r, e), r"experts\[0\] is .*gate=\(10, 6\), .*: expected .*gate=\(10, 5\), "),
    (lambda x, r, e: (x, r, changed(e, 3, up=e[3].up[1:])), r"experts\[3\] is .* up=\(9, 6\), .*: expected .*\(10, 6"),
    (lambda x, r, e: (x, r, changed(e, 7, down=e[7].down.T)), r"experts\[7\] is .*down=\(10, 6\).*down=\(6, 10\)"),
    (lambda x, r, e: (x, r, changed(e, 2, gate=e[2].gate.float())), r"experts\[2\] is .* in torch.float32 on .*64"),
    (lambda x, r, e: (x, r, changed(e, 1, gate=e[1].gate.to("meta"))), r"experts\[1\] is .* on meta: .* on cpu"),
    (lambda x, r, e: (x.float(), r, e), r"experts\[0\] is .* in torch.float64 on cpu: expected .* in torch.float32"),
])  # fmt: skip
def test_experts_that_do_not_fit_are_one_clear_line(change, message):
    routing = Routing(torch.arange(22).remainder(8).view(11, 2), routed().weights)
    with pytest.raises(ValueError, match=rf"\A{message}[^\n]*\Z"):
        sparse_experts(*change(normal(11, 6), routing, split_experts(*fused())))


# Balance


@pytest.mark.parametrize("A", [1, 2, 3, 8])
@pytest.mark.parametrize("sizes", [(1,), (50,), (50, 50, 50), (10, 30)])
def test_the_loss_equals_the_reference(sizes, A):
    logits = [3 * normal(N, 8, seed=layer) for layer, N in enumerate(sizes)]
    expected = reference.load_balancing_loss(logits, A)
    ours = load_balancing_loss(logits, num_experts_per_tok=A)
    # float32: eight products whose sum is 8 at most, from means of at most 150 shares, each rounded by 6e-8 of itself
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-6)


def test_layers_one_by_one_and_shares_of_assignments_are_no_small_error():
    logits = [3 * normal(N, 8, seed=layer) for layer, N in enumerate((10, 30))]
    expected = reference.load_balancing_loss(logits, 2)
    wrong = {
        "a mean over layers": np.mean([load_balancing_loss([layer], num_experts_per_tok=2) for layer in logits]),
        "shares of assignments": load_balancing_loss(logits, num_experts_per_tok=2) / 2,
    }
    assert {name: abs(got - expected) > 0.02 for name, got in wrong.items()} == dict.fromkeys(wrong, True)


@pytest.mark.parametrize("A", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(50,), (50, 50, 50), (10, 30)])
def test_the_loss_and_its_gradient_are_those_of_transformers(sizes, A):
    logits = [normal(N, 8, seed=layer, dtype=torch.float32).requires_grad_() for layer, N in enumerate(sizes)]
    ours, theirs = load_balancing_loss(logits, num_experts_per_tok=A), load_balancing_loss_func(tuple(logits), 8, A)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)  # a sum of 8 float32 products, of 3 at most
    for one, other in zip(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)  # the same, divided by some ten tokens or more


def sure_of(*choices, E=8):
    """Logits of tokens that give their chosen experts equal shares and the others none."""
    return torch.stack([one_hot(torch.tensor(chosen), E).sum(dim=0) * 200.0 for chosen in choices])


def test_an_even_load_costs_a_and_the_same_experts_for_all_cost_e():
    even, same = sure_of((0, 1), (2, 3), (4, 5), (6, 7)), sure_of((2, 5), (2, 5), (2, 5))
    assert load_balancing_loss([even], num_experts_per_tok=2) == 2.0
    assert load_balancing_loss([same], num_experts_per_tok=2) == 8.0
    assert load_balancing_loss([same, same], num_experts_per_tok=2) == 8.0


def test_the_loss_cannot_see_imbalances_that_cancel():
    low, high = sure_of((0, 1), (2, 3)), sure_of((4, 5), (6, 7))
    assert [load_balancing_loss([layer], num_experts_per_tok=2) for layer in (low, high)] == [4.0, 4.0]
    assert load_balancing_loss([low, high], num_experts_per_tok=2) == 2.0
    assert load_balancing_loss_func((low, high), 8, 2) == 2.0  # theirs is as blind


@pytest.mark.parametrize(("logits", "message"), [
    ([], r"logits has shapes \[\]: expected \(N, E\), all of one E"),
    ([torch.ones(3, 8), torch.ones(3, 4)], r"logits has shapes \[\(3, 8\), \(3, 4\)\]: .* all of one E"),
    (torch.ones(3, 8), r"logits has shape \(24,\) in torch.float32: expected floating-point \(N, E\)"),
    ([torch.ones(2, 3, 8)], r"logits has shape \(2, 3, 8\) in torch.float32: expected floating-point \(N, E\)"),
    ([torch.ones(0, 8)], r"indices has shape \(0, 2\) in torch.int64: expected integers \(N, A\), N at least 1"),
    ([torch.full((3, 8), math.nan)], r"logits\[0\] is \[nan, .*\]: expected numbers that have a softmax"),
])  # fmt: skip
def test_logits_without_a_loss_are_one_clear_line(logits, message):
    with pytest.raises(ValueError, match=rf"\A{message}[^\n]*\Z"):
        load_balancing_loss(logits, num_experts_per_tok=2)


# Capture


def mixtral(A=2):
    config = MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_local_experts=8, num_experts_per_tok=A,
    )  # fmt: skip
    torch.manual_seed(0)
    return MixtralForCausalLM(config).eval()


IDS = torch.randint(32, (2, 7), generator=torch.Generator().manual_seed(1))


def state(model):
    """All that a module holds, its hooks included, and how it is set."""
    return {
        name: (sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks), module.training)
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("A", [1, 2])
def test_captured_choices_are_those_that_the_model_made(A):
    model = mixtral(A)
    made = []
    for layer in model.model.layers:
        layer.mlp.experts.register_forward_hook(lambda _, arguments, out: made.append(arguments[1:]))
    captured = capture_routing(model, IDS)
    assert len(captured) == 3
    for routing, (indices, weights) in zip(captured, made[:3], strict=True):
        assert torch.equal(routing.indices, indices)
        torch.testing.assert_close(routing.weights, weights, rtol=0, atol=5e-7)  # float32, by the other way round
    logits = model(IDS, output_router_logits=True).router_logits
    for routing, layer in zip(captured, logits, strict=True):
        assert torch.equal(routing.indices, route_top_k(layer, num_experts_per_tok=A).indices)


def test_sequences_of_a_batch_follow_one_another():
    model = mixtral()
    apart = [capture_routing(model, IDS[b : b + 1]) for b in range(2)]
    for layer, together in enumerate(capture_routing(model, IDS)):
        assert torch.equal(together.indices, torch.cat([apart[0][layer].indices, apart[1][layer].indices]))


def test_the_models_of_the_lab_and_of_transformers_are_captured_alike():
    from mistral_lab import load
    from mistral_lab.transformer import Transformer

    theirs = load("tiny-mixtral", dtype=torch.float32).model
    ours = Transformer.from_pretrained("tiny-mixtral", dtype=torch.float32)
    tokens = torch.randint(2560, (1, 40), generator=torch.Generator().manual_seed(2))
    pairs = list(zip(capture_routing(ours, tokens), capture_routing(theirs, tokens), strict=True))
    assert len(pairs) == 4
    for one, other in pairs:
        assert torch.equal(one.indices, other.indices)
        torch.testing.assert_close(one.weights, other.weights, rtol=0, atol=1e-5)  # what their logits may differ by


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_the_model_stays_as_it_was(training, grad):
    model = mixtral().train(training)
    before, logits = state(model), model(IDS).logits
    with torch.set_grad_enabled(grad):
        routing = capture_routing(model, IDS)
        assert torch.is_grad_enabled() == grad
    assert state(model) == before
    assert torch.equal(model(IDS).logits, logits)
    assert not any(layer.weights.requires_grad for layer in routing)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_model_stays_as_it_was_where_it_fails():
    model = mixtral()
    before = state(model)
    with pytest.raises(IndexError), torch.enable_grad():
        capture_routing(model, IDS + 32)
    model.model.layers[1].mlp.experts.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        capture_routing(model, IDS)
    model.model.layers[1].mlp.experts._forward_pre_hooks.clear()
    assert state(model) == before
    assert torch.is_grad_enabled()


def test_a_model_without_experts_is_one_clear_line():
    config = MistralConfig(vocab_size=32, hidden_size=16, intermediate_size=8, num_hidden_layers=1, head_dim=8)
    message = r"\AMistralForCausalLM has no experts: expected modules named \*\.mlp\.gate or \*\.feed_forward\.router\Z"
    with pytest.raises(ValueError, match=message):
        capture_routing(MistralForCausalLM(config), IDS)
    with pytest.raises(ValueError, match=r"\ALinear has no experts"):
        capture_routing(nn.Linear(2, 2), IDS)


@pytest.mark.parametrize(("input_ids", "message"), [
    (IDS[0], r"input_ids has shape \(7,\) in torch.int64: expected integers \(B, T\)"),
    (IDS[None], r"input_ids has shape \(1, 2, 7\) in torch.int64: expected"),
    (IDS.float(), r"input_ids has shape \(2, 7\) in torch.float32: expected"),
    (IDS[:, :0], r"input_ids has shape \(2, 0\) in torch.int64: expected"),
])  # fmt: skip
def test_input_ids_that_do_not_fit_are_one_clear_line(input_ids, message):
    with pytest.raises(ValueError, match=rf"\A{message}[^\n]*\Z"):
        capture_routing(mixtral(), input_ids)


# Statistics


def test_load_counts_assignments():
    indices = uniform(200, A=3)
    load = expert_load(indices, 8)
    assert load.dtype == torch.float32
    expected = [sum(row.count(e) for row in indices.tolist()) / 600 for e in range(8)]
    torch.testing.assert_close(load, torch.tensor(expected), rtol=0, atol=1e-7)  # one division, in float32
    assert expert_load(torch.tensor([[0, 1]]), 4).tolist() == [0.5, 0.5, 0, 0]  # who chose nobody is there


def test_entropy_is_largest_where_the_load_is_even():
    assert load_entropy(torch.full((8,), 1 / 8)) == 3.0
    assert load_entropy(torch.eye(8)[2]) == 0.0
    load = expert_load(uniform(50), 8)
    shares = load.double().numpy()
    assert load_entropy(load) == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-12)  # eight float64 terms
    assert load_entropy(load) < 3
    assert load_entropy(torch.full((6,), 1 / 6)) == pytest.approx(math.log2(6), abs=1e-6)  # 1/6 is float32


@pytest.mark.parametrize("any_choice", [False, True])
@pytest.mark.parametrize("A", [1, 2, 3])
def test_repeats_are_counted_pair_by_pair(A, any_choice):
    indices = uniform(300, A=A)
    rows = [row if any_choice else row[:1] for row in indices.tolist()]
    repeats = sum(bool(set(one) & set(other)) for one, other in zip(rows, rows[1:], strict=False))
    assert repeat_rate(indices, any_choice=any_choice) == repeats / 299


@pytest.mark.parametrize(("any_choice", "expected"), [(False, 1 / 8), (True, 1 - math.comb(6, 2) / math.comb(8, 2))])
def test_repeats_under_uniform_routing(any_choice, expected):
    assert round(100 * expected, 1) == (46.4 if any_choice else 12.5)
    ways = torch.tensor(list(permutations(range(8), 2)))  # all orders of two experts, each as likely
    pairs = [repeat_rate(torch.stack([one, other]), any_choice=any_choice) for one in ways for other in ways]
    assert np.mean(pairs) == pytest.approx(expected, abs=1e-12)  # 3,136 float64 terms
    N = 100_000
    drawn = repeat_rate(uniform(N), any_choice=any_choice)
    assert drawn == pytest.approx(expected, abs=five_sigma(expected, N))
    assert five_sigma(expected, N) < 0.01  # narrow enough to tell 1/8 from 1/7, and 1 - 15/28 from a half


def test_co_activation_counts_tokens_that_chose_both():
    indices = uniform(200, A=3)
    both = co_activation(indices, 8)
    for e, f in np.ndindex(8, 8):
        expected = sum(e in row and f in row for row in indices.tolist()) / 200
        assert both[e, f].item() == pytest.approx(expected, abs=1e-6)  # float32
    assert torch.equal(both, both.T)
    torch.testing.assert_close(both.diagonal() / 3, expert_load(indices, 8), rtol=0, atol=1e-6)


def test_co_activation_under_uniform_routing():
    both = co_activation(torch.tensor(list(combinations(range(8), 2))), 8)
    expected = torch.full((8, 8), 2 / 56).fill_diagonal_(2 / 8)
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-6)  # float32


@pytest.mark.parametrize("kept", [1, 2, 3, 5, 8, 20])
@pytest.mark.parametrize("A", [1, 2, 3])
def test_hits_are_those_of_a_cache_by_last_use(kept, A):
    indices = uniform(300, A=A)
    last_used, hits = {}, 0
    for moment, row in enumerate(indices.tolist()):
        at_hand = sorted(last_used, key=last_used.get, reverse=True)[:kept]
        hits += len(set(row) & set(at_hand))
        for choice, expert in enumerate(row):
            last_used[expert] = (moment, -choice)  # the first choice of a token is its most recent
    assert lru_hit_rate(indices, kept=kept) == hits / indices.numel()


@pytest.mark.parametrize("kept", [2, 4])
def test_hits_under_uniform_routing(kept):
    N = 100_000
    rate = lru_hit_rate(uniform(N), kept=kept)
    # The empty cache costs fewer than ten hits of 200,000; both look-ups of a token count, as if they were one.
    assert rate == pytest.approx(kept / 8, abs=five_sigma(kept / 8, N) + 10 / (2 * N))


def test_both_choices_are_looked_up_before_either_is_kept():
    """Were they looked up one by one, the first choice would push out the second before it is asked for."""
    same = torch.tensor([[0, 1], [2, 0], [1, 2]])
    assert lru_hit_rate(same, kept=2) == 2 / 6  # 0 is there for token 1, and 2 for token 2
    assert lru_hit_rate(torch.tensor([[0, 1]] * 10), kept=2) == 18 / 20
    assert lru_hit_rate(torch.tensor([[0, 1]] * 10), kept=1) == 9 / 20  # the first choice is the one that stays


@pytest.mark.parametrize("statistic", [
    lambda indices: expert_load(indices, 8),
    lambda indices: co_activation(indices, 8),
    lambda indices: lru_hit_rate(indices, kept=2),
    repeat_rate,
])  # fmt: skip
@pytest.mark.parametrize(("indices", "found"), [
    (torch.arange(4), r"shape \(4,\) in torch.int64"),
    (torch.zeros(4, 2), r"shape \(4, 2\) in torch.float32"),
    (torch.zeros(4, 2, dtype=torch.bool), r"shape \(4, 2\) in torch.bool"),
    (torch.zeros(0, 2).long(), r"shape \(0, 2\) in torch.int64"),
    (torch.zeros(4, 0).long(), r"shape \(4, 0\) in torch.int64"),
])  # fmt: skip
def test_indices_that_do_not_fit_are_one_clear_line(statistic, indices, found):
    with pytest.raises(ValueError, match=rf"\Aindices has {found}: expected integers \(N, A\), N at least [12]\Z"):
        statistic(indices)


@pytest.mark.parametrize("statistic", [expert_load, co_activation])
def test_the_number_of_experts_is_checked(statistic):
    with pytest.raises(ValueError, match=r"\Aindices go from 0 to 7: expected experts 0 to 6\Z"):
        statistic(torch.arange(8).view(4, 2), 7)
    with pytest.raises(ValueError, match=r"\Aindices go from -1 to 6: expected experts 0 to 7\Z"):
        statistic(torch.arange(8).view(4, 2) - 1, 8)
    with pytest.raises(TypeError, match=r"\Anum_experts is 8.0: expected a whole number\Z"):
        statistic(torch.arange(8).view(4, 2), 8.0)


def test_other_bad_input_is_one_clear_line():
    with pytest.raises(
        ValueError, match=r"\Aindices has shape \(1, 2\) .*: expected integers \(N, A\), N at least 2\Z"
    ):
        repeat_rate(torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match=r"\Akept is 0: expected at least 1\Z"):
        lru_hit_rate(torch.tensor([[0, 1]]), kept=0)
    with pytest.raises(TypeError, match=r"\Akept is 2.5: expected a whole number\Z"):
        lru_hit_rate(torch.tensor([[0, 1]]), kept=2.5)
    for load in (
        torch.full((2, 2), 0.25),
        torch.tensor([0.5, 0.4]),
        torch.tensor([1.5, -0.5]),
        torch.tensor([math.nan]),
    ):
        with pytest.raises(ValueError, match=r"\Aload is \[[^\n]*\]: expected shares \(E,\) that sum to 1\Z"):
            load_entropy(load)
