"""The layout in which bitsandbytes' fused CPU kernel reads a 4-bit weight matrix: made fast, and undone without loss.

A weight matrix is stored row after row, two weights per byte, the first in the high half:

    row r       [w0 w1] [w2 w3] ...

The kernel (AVX512_BF16) works on strips of 32 rows, and what it multiplies together has to lie together. So each pair
of columns 2j, 2j + 1 of a strip becomes 32 bytes, with rows i and i + 16 side by side, for i from 0 to 15:

    low half    row i,       column 2j   |  row i,       column 2j + 1
    high half   row i + 16,  column 2j   |  row i + 16,  column 2j + 1

Source: `_convert_weight_packed_for_cpu` of bitsandbytes 0.50.2. On the way it writes every weight out as an integer of
32 bits: 16 times the bytes of the result, and for Mistral 7B half a minute before the first token.
"""

import copy

import torch
from bitsandbytes.functional import QuantState, dequantize_blockwise

from .compat import mark_packed

STRIP = 32  # rows that the kernel reads at once


def pack_codes(codes: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Reorder 4-bit codes from rows to strips.

    Args:
        codes: uint8, N·K/2 bytes of any shape, as `quantize_matrix` returns them.
        shape: (N, K) of the weight matrix; N is a multiple of 32, K of 2.

    Returns:
        uint8 (N, K/2), for the kernel.

    >>> codes = torch.arange(32, dtype=torch.uint8)  # 32 rows of two weights each
    >>> [f"{byte:02x}" for byte in pack_codes(codes, torch.Size([32, 2]))[:2].flatten().tolist()]
    ['10', '00']
    >>> torch.equal(unpack_codes(pack_codes(codes, torch.Size([32, 2]))), codes)
    True
    """
    rows, columns = shape
    pairs = codes.reshape(rows // STRIP, STRIP, columns // 2).transpose(1, 2).contiguous()  # (strips, K/2, 32)
    upper, lower = pairs[..., : STRIP // 2], pairs[..., STRIP // 2 :]
    first = (upper >> 4) | (lower & 0xF0)  # column 2j of row i, and of row i + 16
    second = (upper & 0x0F) | (lower << 4)
    return torch.stack([first, second], dim=-1).view(rows, columns // 2)


def unpack_codes(packed: torch.Tensor) -> torch.Tensor:
    """Reorder codes back from strips to rows: packed (N, K/2) -> uint8 (N·K/2,)."""
    rows, half = packed.shape
    first, second = packed.view(rows // STRIP, half, STRIP // 2, 2).unbind(-1)
    upper = ((first & 0x0F) << 4) | (second & 0x0F)
    lower = (first & 0xF0) | (second >> 4)
    return torch.cat([upper, lower], dim=-1).transpose(1, 2).reshape(-1)


def packed_state(state: QuantState) -> QuantState:
    """Make the state of packed codes: the kernel reads the scales in bfloat16, one column of them for 64 weights.

    Args:
        state: of the weight as it was quantised; it is not changed.
    """
    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(absmax, state.state2) + state.offset
    ready = copy.copy(state)
    ready.absmax = absmax.reshape(state.shape[0], -1).T.to(torch.bfloat16).contiguous()
    ready.nested, ready.state2, ready.dtype = False, None, torch.bfloat16
    mark_packed(ready)
    return ready
