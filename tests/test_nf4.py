import itertools

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from mistral_lab import nf4
from mistral_lab.nf4 import CODEBOOK, E2M1_CODEBOOK, FP4_CODEBOOK, dequantize, quantize

KINDS = {"nf4": CODEBOOK, "fp4": FP4_CODEBOOK}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INT4 = torch.arange(-8, 8) / 7


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def theirs(w, kind="nf4", *, block_size=64, double=False):
    return bnb.quantize_4bit(w, blocksize=block_size, quant_type=kind, compress_statistics=double)


def read_back(packed, state):
    """Their dequantize, told of one long row, which it reads rightly (test_rows_that_are_no_whole_number_of_blocks)."""
    shape, state.shape = state.shape, torch.Size([state.shape.numel()])
    return bnb.dequantize_4bit(packed, state).reshape(shape)


def check_equal(w, kind="nf4", *, block_size=64, double=False):
    """Every byte that is stored, and every number that comes back, is that of bitsandbytes."""
    packed, state = theirs(w, kind, block_size=block_size, double=double)
    q = quantize(w, block_size=block_size, double=double, codebook=KINDS[kind])
    assert q.packed.tolist() == packed.flatten().tolist()
    assert q.absmax.dtype == state.absmax.dtype
    assert q.absmax.tolist() == state.absmax.tolist()
    if double:
        assert q.nested_absmax.tolist() == state.state2.absmax.tolist()
        assert q.offset == state.offset
    back = dequantize(q)
    assert (back.shape, back.dtype) == (w.shape, w.dtype)
    if w.ndim > 1 and w.shape[-1] % block_size == 0:
        assert torch.equal(back, bnb.dequantize_4bit(packed, state))
    assert torch.equal(back, read_back(packed, state))


def relative_error(back, w):
    """Root mean square error over root mean square, in float64, where no square is too small."""
    return ((back.double() - w.double()).norm() / w.double().norm()).item()


def unpacked(q):
    return np.stack([q.packed.numpy() >> 4, q.packed.numpy() & 15], axis=1).ravel()[: q.shape.numel()]


# The codebooks


def test_the_codebooks_are_those_of_bitsandbytes_bit_for_bit():
    assert CODEBOOK.tolist() == bnb.get_4bit_type("nf4", device="cpu").tolist()
    assert FP4_CODEBOOK.tolist() == bnb.get_4bit_type("fp4", device="cpu").tolist()
    assert nf4.DYNAMIC_CODEBOOK.tolist() == bnb.create_dynamic_map().tolist()
    assert CODEBOOK.dtype == FP4_CODEBOOK.dtype == nf4.DYNAMIC_CODEBOOK.dtype == torch.float32


def test_e2m1_is_the_table_of_the_mx_specification_and_not_what_bitsandbytes_calls_fp4():
    magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    expected = torch.tensor(magnitudes + [-value for value in magnitudes]) / 6
    assert E2M1_CODEBOOK.tolist() == expected.tolist()
    assert E2M1_CODEBOOK.dtype == torch.float32
    ours, theirs = (set(codebook.abs().tolist()) for codebook in (E2M1_CODEBOOK, FP4_CODEBOOK))
    assert ours ^ theirs == set((torch.tensor([1.0, 1 / 16]) / 12).tolist())  # the smallest step alone is another


def test_of_the_tables_nf4_rounds_normal_numbers_best_and_e2m1_better_than_int4():
    """A million numbers: the errors lie 1 % and more apart, and each is known to 0.1 %."""
    w = normal(2**20)
    errors = [
        ((dequantize(quantize(w, codebook=codebook)) - w).norm() / w.norm()).item()
        for codebook in (CODEBOOK, E2M1_CODEBOOK, INT4, FP4_CODEBOOK)
    ]
    assert errors == sorted(errors)
    np.testing.assert_allclose(errors, [0.0921, 0.1058, 0.1079, 0.1221], rtol=0.005)


def test_nf4_is_the_quantiles_of_the_normal_distribution():
    # Seven digits of the offset and probabilities in float32: a few times 1e-7, where a quantile changes by up to 15
    # for 1 of probability. A half that starts elsewhere, or is counted with the other's steps, is off by 1e-2.
    np.testing.assert_allclose(CODEBOOK, reference.nf4_values(), rtol=0, atol=3e-6)


def test_each_half_of_nf4_is_hit_equally_often_by_normal_numbers():
    """What quantiles are for. All but the zero and the outermost, whose share the offset decides."""
    values = CODEBOOK.double() * torch.special.ndtri(torch.tensor(0.9677083, dtype=torch.float64))
    shares = torch.special.ndtr((values[:-1] + values[1:]) / 2).diff().numpy()  # of values 1 ... 14
    # Half-way between two quantiles is not quite the quantile half-way: 6 % where the curve bends most, next to the
    # outermost. Evenly spaced values would differ by a factor of 4.
    np.testing.assert_allclose(shares[:6], 0.4677083 / 7, rtol=0.08)
    np.testing.assert_allclose(shares[7:], 0.4677083 / 8, rtol=0.08)


# Equal to the float64 reference


@pytest.mark.parametrize("block_size", [32, 64, 256])
@pytest.mark.parametrize("codebook", [CODEBOOK, FP4_CODEBOOK, INT4], ids=["nf4", "fp4", "int4"])
def test_each_weight_goes_to_the_nearest_value_times_the_absmax_of_its_block(codebook, block_size):
    w = normal(7, 93)
    q = quantize(w, block_size=block_size, codebook=codebook)
    numbers, absmax, margins = reference.round_blocks(w, codebook, block_size)
    np.testing.assert_array_equal(q.absmax, absmax)
    # float32 rounds the reciprocal, the product and the middle of two values: 1e-7 each.
    clear = margins > 1e-6
    assert clear.mean() > 0.99
    values = codebook.double().numpy()  # FP4 has two numbers for zero
    np.testing.assert_array_equal(values[unpacked(q)][clear], values[numbers][clear])
    expected = values[numbers] * absmax.repeat(block_size)[: w.numel()]
    # One float32 product, 6e-8; the neighbour in a codebook is at least 5e-3 of the absmax away.
    np.testing.assert_allclose(dequantize(q).flatten()[clear], expected[clear], rtol=2e-7, atol=0)


def test_no_value_is_nearer_than_the_one_that_is_stored():
    w = normal(64 * 40)
    scaled = w.view(-1, 64) / w.view(-1, 64).abs().amax(dim=1, keepdim=True)
    q = quantize(w)
    stored = (CODEBOOK[torch.from_numpy(unpacked(q)).long()] - scaled.flatten()).abs()
    nearest = (CODEBOOK - scaled.flatten()[:, None]).abs().amin(dim=1)
    assert (stored - nearest).max() <= 2e-7  # two float32 subtractions of numbers up to 2


def test_double_quantisation_stores_each_absmax_within_half_a_step_of_its_codebook():
    w = normal(64 * 600) * torch.linspace(0.5, 2, 600).repeat_interleave(64)
    q = quantize(w, double=True)
    plain = quantize(w)
    absmax = dequantize(q).view(600, 64).abs().amax(dim=1)  # the weight at the absmax has the value 1 or -1
    centred = (plain.absmax - plain.absmax.mean()).double()
    for group in range(3):
        inside = slice(256 * group, min(256 * (group + 1), 600))
        scale = centred[inside].abs().max()
        distance = (nf4.DYNAMIC_CODEBOOK.double() - (centred[inside] / scale)[:, None]).abs().amin(dim=1) * scale
        error = (absmax[inside].double() - plain.absmax[inside].double()).abs()
        # The first rounding to 65,536 steps of [-1, 1] adds up to 1/65,535 of the scale, each way.
        assert (error <= distance + 2 * scale / 65_535 + 1e-6).all()
    assert error.max() > 0


# Equal to bitsandbytes

shapes = st.lists(st.integers(1, 70), min_size=1, max_size=3)


@given(
    shape=shapes,
    seed=st.integers(0, 2**31),
    size=st.floats(-6, 3),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(list(KINDS)),
    block_size=st.sampled_from(nf4.BLOCK_SIZES),
    double=st.booleans(),
    change=st.sampled_from(["none", "outlier", "half zero", "all zero", "whole numbers", "one number"]),
)
def test_bytes_and_weights_are_those_of_bitsandbytes(shape, seed, size, dtype, kind, block_size, double, change):
    w = normal(*shape, seed=seed) * 10**size
    flat = w.view(-1)
    if change == "outlier":
        flat[seed % len(flat)] *= 1000
    elif change == "half zero":
        flat[: len(flat) // 2] = 0
    elif change == "all zero":
        flat[:] = 0
    elif change == "whole numbers":
        w = w.round()
    elif change == "one number":
        flat[:] = float(flat[0])
    w = w.to(dtype)
    if not w.isfinite().all():  # a float16 outlier
        w = w.nan_to_num()
    check_equal(w, kind, block_size=block_size, double=double)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 127, 128, 64 * 256 - 1, 64 * 256, 64 * 256 + 1, 64 * 513])
def test_edges_of_bytes_blocks_and_nested_blocks(n, double, kind):
    check_equal(normal(n, seed=n), kind, double=double)


@pytest.mark.parametrize("codebook", ["nf4", "fp4"])
def test_halfway_between_two_values_both_take_the_lower(codebook):
    ordered = KINDS[codebook].sort().values
    halfway = (ordered[:-1] + ordered[1:]) / 2
    w = torch.cat([torch.ones(1), halfway]).repeat(4)  # absmax 1, so that nothing is scaled
    check_equal(w, codebook, block_size=32)
    assert dequantize(quantize(w, block_size=32, codebook=KINDS[codebook]))[1:16].tolist() == ordered[:-1].tolist()


@pytest.mark.parametrize("n", [2, 32])
def test_a_block_that_is_cut_short_is_divided_and_a_whole_one_multiplied(n):
    """-10/12 is half-way between two values of FP4; times 1/absmax, in float32, is not always over absmax."""
    differ = 0
    for absmax in range(12, 480, 12):
        w = torch.zeros(n)
        w[:2] = torch.tensor([absmax, -absmax * 10 / 12])
        check_equal(w, "fp4", block_size=32)
        differ += bool(w[1] / absmax != w[1] * (1 / w[0]))
    assert differ > 3


def test_each_of_the_65_536_steps_of_an_absmax_goes_to_the_same_value():
    """Blocks of 2 weights are refused, so the rounding of an absmax is tried by itself, a step a group."""
    steps = torch.arange(65_536, dtype=torch.float64)
    for shift in (0.0, 0.49, -0.49):  # the middle of a step and both its ends
        values = ((steps + shift) / 65_535 * 2 - 1).clamp(-1, 1).float()
        groups = torch.ones(257, 256)
        groups[:, 1:] = torch.nn.functional.pad(values, (0, 257 * 255 - 65_536)).view(257, 255)
        numbers, scales = nf4._quantize_absmax(groups.flatten())
        expected, state = bnb.quantize_blockwise(groups.flatten(), blocksize=256)
        assert torch.equal(numbers, expected)
        assert torch.equal(scales, state.absmax)


def test_a_matrix_in_another_order_is_read_row_by_row():
    w = normal(48, 80)
    assert torch.equal(quantize(w.T).packed, quantize(w.T.contiguous()).packed)
    check_equal(w.T)


# Where bitsandbytes on the CPU goes wrong


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="its code for AVX-512 alone does this")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "block_size"), [((3, 48), 32), ((8, 96), 64), ((6, 320), 256)])
def test_rows_that_are_no_whole_number_of_blocks(shape, block_size, dtype):
    """The blocks of bitsandbytes run on from row to row, but its reading starts a block with each row."""
    w = normal(*shape, dtype=dtype)
    packed, state = theirs(w, block_size=block_size)
    direct, ours = bnb.dequantize_4bit(packed, state), dequantize(quantize(w, block_size=block_size))
    assert torch.equal(ours, read_back(packed, state))
    assert ((ours - w).norm() / w.norm()).item() < 0.15
    assert ((direct - w).norm() / w.norm()).item() > 0.15, (
        "bitsandbytes has mended this: say so in quantize's docstring"
    )


@pytest.mark.parametrize("n", [64, 70])
@pytest.mark.parametrize("absmax", [9e-39, 1e-39, 1e-42])
def test_blocks_with_an_absmax_below_1e_38_are_rounded_as_any_other(absmax, n):
    w = normal(n)
    tiny = w / w.abs().max() * absmax
    usual = relative_error(dequantize(quantize(w)), w)
    # Such numbers have few digits: 1e-42 is 714 times the smallest of all.
    assert relative_error(dequantize(quantize(tiny)), tiny) == pytest.approx(usual, rel=0.05)
    packed, state = theirs(tiny)
    lost = relative_error(read_back(packed, state), tiny)
    assert lost > 1.2 * usual, "bitsandbytes has mended this: say so in quantize's docstring"


def test_a_zero_block_comes_back_as_zeros():
    w = torch.cat([normal(64), torch.zeros(64), normal(64, seed=1)])
    assert not dequantize(quantize(w))[64:128].any()
    assert not dequantize(quantize(torch.zeros(10), double=True)).any()


# What holds of any quantisation


@pytest.mark.parametrize("codebook", [CODEBOOK, FP4_CODEBOOK, INT4], ids=["nf4", "fp4", "int4"])
def test_quantising_again_changes_nothing(codebook):
    w = normal(30, 64, dtype=torch.bfloat16).float()
    once = dequantize(quantize(w, codebook=codebook))
    assert torch.equal(dequantize(quantize(once, codebook=codebook)), once)


def test_a_power_of_two_in_front_comes_out_in_front():
    w = normal(5, 77)
    for double in (False, True):
        assert torch.equal(dequantize(quantize(w * 0.25, double=double)), dequantize(quantize(w, double=double)) * 0.25)


def test_blocks_know_nothing_of_each_other():
    w = normal(10, 64)
    changed = w.clone()
    changed[3, 5] = 100.0
    same = (dequantize(quantize(w)) == dequantize(quantize(changed))).all(dim=1)
    assert same.tolist() == [row != 3 for row in range(10)]


def test_bytes_are_half_a_byte_a_weight_and_the_scales():
    for n, block_size in itertools.product([1, 64, 65, 64 * 300], [32, 64, 4096]):
        blocks = -(-n // block_size)
        assert quantize(normal(n), block_size=block_size).nbytes == -(-n // 2) + 4 * blocks
        double = quantize(normal(n), block_size=block_size, double=True)
        assert double.nbytes == -(-n // 2) + blocks + 4 * -(-blocks // 256)
        assert (double.absmax.dtype, double.packed.dtype) == (torch.uint8, torch.uint8)


def test_weights_that_learn_are_quantised_without_a_graph_and_left_alone():
    w = torch.nn.Parameter(normal(4, 64))
    before = w.detach().clone()
    assert not dequantize(quantize(w)).requires_grad
    assert torch.equal(w, before)


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: quantize([0.5]), TypeError, "w is a list: expected a tensor"),
        (lambda: quantize(torch.arange(64)), TypeError, "torch.int64: expected float32, bfloat16 or float16"),
        (lambda: quantize(normal(64).double()), TypeError, "torch.float64"),
        (lambda: quantize(torch.zeros(0, 64)), ValueError, r"empty, of shape \(0, 64\)"),
        (lambda: quantize(normal(64), block_size=48), ValueError, "block_size is 48: expected one of 32, 64, .*4096"),
        (lambda: quantize(normal(64), codebook=CODEBOOK[:15]), ValueError, r"\(15,\): expected \(16,\)"),
        (lambda: quantize(torch.full((128,), 3e38), double=True), ValueError, "more than float32 holds"),
    ],
)
def test_bad_input_is_one_clear_line(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_counted_and_placed(bad):
    w = normal(3, 50, dtype=torch.bfloat16)
    w[1, 7] = w[2, 0] = bad
    with pytest.raises(ValueError, match=rf"2 of 150 weights are NaN or infinite, the first is w\[1, 7\] = {bad}"):
        quantize(w)
