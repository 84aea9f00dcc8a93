"""Four bits per weight: the sixteen values of NF4, a scale for each block of weights, and those scales in eight bits.

A weight is stored as the number of the nearest of sixteen values, once its block is divided by its absmax, the largest
absolute value in it:

    block    0.3  -0.6   0.0   0.15      absmax 0.6
    scaled   0.5  -1.0   0.0   0.25
    number    12     0     7     10      of CODEBOOK: 0.4407, -1, 0, 0.2461
    bytes   0xC0        0x7A             the first weight in the high half
    back     0.264 -0.6  0.0   0.148     CODEBOOK[number] · absmax
"""

from dataclasses import dataclass, field
from statistics import NormalDist

import torch

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # those that bitsandbytes takes
NESTED_BLOCK_SIZE = 256  # absmax values that share one float32, with double quantisation
SMALLEST = 1e-38  # below it, the float32 reciprocal is soon infinite


def normal_codebook() -> torch.Tensor:
    """The sixteen values of NF4, 4-bit NormalFloat: quantiles of the normal distribution, scaled to [-1, 1].

    Weights of trained networks are roughly normal. Quantiles at even steps of probability put as many weights on each
    value as on any other. But two more things are wanted: an exact zero, and a finite outermost value. So the two
    halves are laid out separately, eight values above zero and seven below. Each half goes from the probability 1/2,
    whose quantile is zero, to a probability just below 1, whose quantile would be infinite. It stays below by half a
    step. Half a step is 1/32 where there are sixteen steps and 1/30 where there are fifteen; the mean of the two is
    taken for both halves.

    Equation: Q(1/2 + i (p - 1/2)/8) for i = 0 ... 8 and -Q(1/2 + i (p - 1/2)/7) for i = 1 ... 7, all over Q(p),
        with Q the inverse of the normal distribution function and p = 1 - (1/32 + 1/30)/2 = 0.9677083.
    Source: arXiv:2305.14314, section 3 and appendix E.

    Returns:
        (16,) float32, ascending.

    >>> [round(value, 2) for value in normal_codebook().tolist()[:8]]
    [-1.0, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0.0]
    """
    outermost = 0.9677083
    above = torch.linspace(0.5, outermost, 9).tolist()
    below = torch.linspace(0.5, outermost, 8).tolist()[1:]
    quantile = NormalDist().inv_cdf
    values = torch.tensor([-quantile(p) for p in reversed(below)] + [quantile(p) for p in above])
    return values / values.max()


def float_codebook() -> torch.Tensor:
    """The sixteen values that bitsandbytes calls FP4: one bit of sign, two of exponent, one of mantissa.

    The number 8 s + 2 e + m stands for (1 + m/2) 2^(4 - e), negative where s = 1; where e = 0, it stands for m/16. A
    larger e means a smaller value. All are then divided by the largest, 12. Zero occurs with either sign, so there are
    fifteen different values.

    Source: `get_4bit_type` in bitsandbytes/functional.py.
    Differs: E2M1, which others call FP4, has the same values but for the smallest above zero: that is 1/12 there and
        1/192 here. `e2m1_codebook` has them.

    Returns:
        (16,) float32, in the order of their bits.

    >>> (12 * float_codebook()[:8]).tolist()
    [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]
    """
    magnitudes = [0.0, 1 / 16] + [(1 + mantissa / 2) * 2**power for power in (3, 2, 1) for mantissa in (0, 1)]
    values = torch.tensor([sign * value for sign in (1, -1) for value in magnitudes])
    return values / values.max()


def e2m1_codebook() -> torch.Tensor:
    """The sixteen values of E2M1, the four-bit floating-point number of the formats MXFP4 and NVFP4.

    One bit of sign s, two of exponent e, one of mantissa m: the number 8 s + 2 e + m stands for (1 + m/2) 2^(e - 1),
    negative where s = 1; where e = 0, it stands for m/2. All are then divided by the largest, 6. Zero occurs with
    either sign, so there are fifteen different values.

    Source: OCP Microscaling Formats (MX) Specification, version 1.0, section 5.3.3.
    Differs: MXFP4 scales 32 values by a power of two, and NVFP4 16 by an eight-bit number. These are the values alone,
        to be used with a float32 scale as the other codebooks here.

    Returns:
        (16,) float32, in the order of their bits.

    >>> (6 * e2m1_codebook()[:8]).tolist()
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    magnitudes = [0.0, 0.5] + [(1 + mantissa / 2) * 2**power for power in range(3) for mantissa in (0, 1)]
    values = torch.tensor([sign * value for sign in (1, -1) for value in magnitudes])
    return values / values.max()


def dynamic_codebook() -> torch.Tensor:
    """The 256 values in which an absmax is stored with double quantisation: fine near zero, coarse far from it.

    Each decade is split evenly: the one from 0.1 to 1 into 64 parts, the next smaller one into 32, and so on down to
    one part. The middle of each part is a value, with either sign. 0 and 1 are added.

    Source: arXiv:1511.04561; arXiv:2110.02861; `create_dynamic_map` in bitsandbytes/functional.py.

    Returns:
        (256,) float32, ascending.

    >>> dynamic_codebook()[[0, 127, 128, 254, 255]].tolist()
    [-0.992968738079071, 0.0, 5.500000384017767e-07, 0.992968738079071, 1.0]
    """
    values = [torch.tensor([0.0, 1.0])]
    for doublings in range(7):
        edges = torch.linspace(0.1, 1, 2**doublings + 1)
        middles = 10 ** (doublings - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += [middles, -middles]
    return torch.cat(values).sort().values


CODEBOOK = normal_codebook()
FP4_CODEBOOK = float_codebook()  # bitsandbytes' own
E2M1_CODEBOOK = e2m1_codebook()  # what others call FP4
DYNAMIC_CODEBOOK = dynamic_codebook()


@dataclass(frozen=True, eq=False)
class Quantized:
    """Weights in four bits: what is stored, and what is needed to read it.

    Args:
        packed: (ceil(n/2),) uint8, two numbers per byte, the first in the high half.
        absmax: (blocks,) float32, the largest absolute value in each block; with double quantisation (blocks,) uint8,
            numbers of DYNAMIC_CODEBOOK.
        shape, dtype: of the weights.
        block_size: weights that share an absmax.
        codebook: (16,) float32, what the numbers stand for.
        nested_absmax: (ceil(blocks/256),) float32, the scales of `absmax`; None without double quantisation.
        offset: () float32, the mean that was subtracted from the absmax values; None without double quantisation.
    """

    packed: torch.Tensor = field(repr=False)
    absmax: torch.Tensor = field(repr=False)
    shape: torch.Size
    dtype: torch.dtype
    block_size: int
    codebook: torch.Tensor = field(repr=False)
    nested_absmax: torch.Tensor | None = field(default=None, repr=False)
    offset: torch.Tensor | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of packed, absmax and nested absmax; the codebooks and the offset do not grow with the weights."""
        nested = 0 if self.nested_absmax is None else self.nested_absmax.nbytes
        return self.packed.nbytes + self.absmax.nbytes + nested


@torch.no_grad()
def quantize(
    w: torch.Tensor, *, block_size: int = 64, double: bool = False, codebook: torch.Tensor = CODEBOOK
) -> Quantized:
    """Round weights to four bits, block by block in the order in which they lie.

    Equation: number[i] = the c that minimises |codebook[c] - w[i] / absmax|, absmax = max |w[j]| over the block of i.
    Source: arXiv:2305.14314, section 3 (block size 64 for weights, 256 for the absmax).
    Differs: bitsandbytes on the CPU gives the same bits, except for a block whose absmax is below 1e-38: bitsandbytes
        multiplies such a block by 1e38 and no more, here it is scaled like any other. Half-way between two values, both
        take the lower. The CUDA kernels of bitsandbytes (source read, not run) scale a last, shorter block as they do
        the others, and compare magnitudes for FP4.

    Args:
        w: any shape, float32, bfloat16 or float16; n weights in all. The last block may be shorter.
        block_size: one of BLOCK_SIZES.
        double: store each absmax in eight bits, by `DYNAMIC_CODEBOOK`.
        codebook: (16,) float32 in any order, CODEBOOK for NF4, FP4_CODEBOOK for bitsandbytes' FP4, E2M1_CODEBOOK.

    Raises:
        TypeError: w is not a tensor, or has another dtype.
        ValueError: w is empty, not finite, or too large for `double`; another block size; a codebook of another shape.

    >>> quantize(torch.tensor([0.3, -0.6, 0.0, 0.15])).packed
    tensor([192, 122], dtype=torch.uint8)
    """
    _check(w, block_size, codebook)
    n = w.numel()
    blocks = _in_blocks(w.reshape(-1).float(), block_size)
    absmax = blocks.abs().amax(dim=1)
    divide = absmax < SMALLEST
    if n % block_size:
        divide[-1] = True  # bitsandbytes divides a block that is cut short, and multiplies the others by 1/absmax
        absmax[-1] += SMALLEST * (absmax[-1] == 0)  # what it stores for one that is zero
    codes = nearest_numbers(_scaled(blocks, absmax, divide), codebook.to(w.device)).flatten()
    codes = codes[: n + n % 2]  # where n is odd, the last half byte stands for zero
    packed = codes[0::2] << 4 | codes[1::2]
    if not double:
        return Quantized(packed, absmax, w.shape, w.dtype, block_size, codebook)
    offset = absmax.mean()
    if not offset.isfinite():
        raise ValueError("the absmax values of w add up to more than float32 holds: expected smaller weights")
    numbers, nested_absmax = _quantize_absmax(absmax - offset)
    return Quantized(packed, numbers, w.shape, w.dtype, block_size, codebook, nested_absmax, offset)


@torch.no_grad()
def dequantize(q: Quantized) -> torch.Tensor:
    """The weights that the stored numbers stand for.

    Equation: w[i] = codebook[number[i]] · absmax; with double quantisation
        absmax[b] = DYNAMIC_CODEBOOK[number[b]] · nested_absmax + offset.
    Differs: with AVX-512, bitsandbytes on the CPU uses the wrong absmax where a row is not a whole number of blocks.

    Returns:
        a tensor of q.shape and q.dtype, computed in float32 and rounded once to q.dtype.

    >>> dequantize(quantize(torch.tensor([0.3, -0.6, 0.0, 0.15])))
    tensor([ 0.2644, -0.6000,  0.0000,  0.1477])
    """
    codes = torch.stack([q.packed >> 4, q.packed & 0xF], dim=1).flatten()[: q.shape.numel()]
    absmax = q.absmax
    if q.nested_absmax is not None:
        centred = DYNAMIC_CODEBOOK.to(absmax.device)[absmax.long()]
        absmax = scale_blocks(centred, q.nested_absmax, NESTED_BLOCK_SIZE) + q.offset
    values = q.codebook.to(codes.device)[codes.long()]
    return scale_blocks(values, absmax, q.block_size).to(q.dtype).reshape(q.shape)


def nearest_numbers(scaled: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Give each scaled weight the number of the nearest value of the codebook; half-way between two, the lower value.

    Args:
        scaled: any shape, float32: weights over the absmax of their block.
        codebook: (C,) float32 in any order, C at most 256.

    Returns:
        uint8, of the shape of `scaled`.

    >>> nearest_numbers(torch.tensor([-1.0, 0.0, 0.25]), CODEBOOK).tolist()
    [0, 7, 10]
    """
    values, order = codebook.sort()
    halfway = (values[:-1] + values[1:]) / 2
    return order.to(torch.uint8)[torch.bucketize(scaled, halfway, out_int32=True)]


def scale_blocks(values: torch.Tensor, scales: torch.Tensor, block_size: int) -> torch.Tensor:
    """Multiply each value by the scale of its block.

    Args:
        values: (n,).
        scales: (ceil(n/block_size),), one for each block.
        block_size: values that share a scale; the last block may be shorter.

    Returns:
        (n,).

    >>> scale_blocks(torch.tensor([1.0, -1.0, 0.5]), torch.tensor([2.0, 10.0]), block_size=2).tolist()
    [2.0, -2.0, 5.0]
    """
    return values * scales.repeat_interleave(block_size)[: len(values)]


def _quantize_absmax(centred: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of DYNAMIC_CODEBOOK (blocks,) uint8, and their scales (ceil(blocks/256),) float32.

    bitsandbytes on the CPU rounds twice, first to one of 65,536 even steps. This does the same, so that the bits agree.
    """
    groups = _in_blocks(centred, NESTED_BLOCK_SIZE)
    scales = groups.abs().amax(dim=1)
    scaled = _scaled(groups, scales, scales < SMALLEST)
    step = ((scaled + 1) * 0.5 * 65_535 + 0.5).floor()
    numbers = nearest_numbers(step / 65_535 * 2 - 1, DYNAMIC_CODEBOOK.to(centred.device))
    numbers[scales == 0] = 0  # any number would do: it is multiplied by 0
    return numbers.flatten()[: len(centred)], scales


def _in_blocks(values: torch.Tensor, block_size: int) -> torch.Tensor:
    """(n,) -> (blocks, block_size), the last one padded with zeros."""
    return torch.nn.functional.pad(values, (0, -len(values) % block_size)).view(-1, block_size)


def _scaled(blocks: torch.Tensor, absmax: torch.Tensor, divide: torch.Tensor) -> torch.Tensor:
    """Each block over its absmax: divided where `divide` says so, elsewhere multiplied by the reciprocal."""
    divisor = torch.where(absmax > 0, absmax, 1)[:, None]
    return torch.where(divide[:, None], blocks / divisor, blocks * (1 / divisor))


def _check(w: torch.Tensor, block_size: int, codebook: torch.Tensor) -> None:
    if not isinstance(w, torch.Tensor):
        raise TypeError(f"w is a {type(w).__name__}: expected a tensor")
    if w.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"w is {w.dtype}: expected float32, bfloat16 or float16")
    if w.numel() == 0:
        raise ValueError(f"w is empty, of shape {tuple(w.shape)}: expected at least one weight")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size is {block_size!r}: expected one of {', '.join(map(str, BLOCK_SIZES))}")
    if codebook.shape != (16,):
        raise ValueError(f"codebook has shape {tuple(codebook.shape)}: expected (16,), a value for each four bits")
    wrong = ~w.isfinite()
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"{int(wrong.sum())} of {w.numel()} weights are NaN or infinite, the first is w{list(first)} = {w[first]}: "
            "expected finite weights"
        )
