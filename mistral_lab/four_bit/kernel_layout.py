"""The layout in which bitsandbytes' fused CPU kernel reads a 4-bit weight matrix: made fast, and undone without loss.

A weight matrix is stored row after row, two weights per byte, the first in the high half:

    row r       [w0 w1] [w2 w3] ...

The kernel (AVX512_BF16) works on strips of 32 rows, and what it multiplies together has to lie together. So each pair
of columns 2j, 2j + 1 of a strip becomes 32 bytes, with rows i and i + 16 side by side, for i from 0 to 15:

    low half    row i,       column 2j   |  row i,       column 2j + 1
    high half   row i + 16,  column 2j   |  row i + 16,  column 2j + 1

A file can hold the codes in this order too, and be mapped: then nothing is packed when a model is loaded. The scales
lie beside them twice: rounded to bfloat16 for the kernel, and as they were quantised, since rounding cannot be undone.

Source: `_convert_weight_packed_for_cpu` of bitsandbytes 0.50.2. On the way it writes every weight out as an integer of
32 bits: 16 times the bytes of the result, and for Mistral 7B half a minute before the first token.
"""

import copy

import torch
from bitsandbytes.functional import QuantState, dequantize_blockwise

from .compat import mark_packed

STRIP = 32  # rows that the kernel reads at once
BLOCK = 64  # columns that share a scale: the kernel reads whole blocks
SCALES = "packed_absmax"  # what a file calls the rounded scales of "...weight."; with them, its codes lie in strips


def fits_kernel(shape: torch.Size) -> bool:
    """Say whether a matrix (N, K) fills the kernel's tiles; any other has no packed form."""
    rows, columns = shape
    return rows % STRIP == 0 and columns % BLOCK == 0


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


def packed_scales(state: QuantState) -> torch.Tensor:
    """Return the scales as the kernel reads them: bfloat16 (K/64, N), one column of them for each row of the matrix.

    Args:
        state: of the weight as it was quantised.
    """
    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(absmax, state.state2) + state.offset
    return absmax.reshape(state.shape[0], -1).T.to(torch.bfloat16).contiguous()


def packed_state(state: QuantState, scales: torch.Tensor) -> QuantState:
    """Make the state of packed codes.

    Whoever dequantises by it would take strips for rows, as PEFT does where it merges an adapter. bitsandbytes refuses
    to dequantise a `quant_type` that it does not know and names it; the kernel does not ask. So it says what to do.

    Args:
        state: of the weight as it was quantised; it is not changed.
        scales: what `packed_scales` makes of it.
    """
    ready = copy.copy(state)
    ready.absmax = scales
    ready.quant_type = f"{state.quant_type}, packed for this CPU: call model.train() first, which unpacks"
    ready.nested, ready.state2, ready.dtype = False, None, torch.bfloat16
    mark_packed(ready)
    return ready


def in_strips(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn what a checkpoint holds of a matrix in 4 bits into its packed form.

    Args:
        parts: codes, scales and tables under the names that `quantized_tensors` gives them.

    Returns:
        the same with the codes in strips, uint8 (N, K/2), and the rounded scales beside the exact ones. A matrix that
        does not fit the kernel, or is packed already, stays as it is.
    """
    name, state = _state(parts)
    if f"{name}.{SCALES}" in parts or not fits_kernel(state.shape):
        return parts
    codes = pack_codes(parts[name].view(torch.uint8), state.shape)
    return parts | {name: codes, f"{name}.{SCALES}": packed_scales(state)}


def in_rows(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undo `in_strips`."""
    name, _ = _state(parts)
    if f"{name}.{SCALES}" not in parts:
        return parts
    rest = {key: value for key, value in parts.items() if key != f"{name}.{SCALES}"}
    return rest | {name: unpack_codes(parts[name])[:, None]}


def _state(parts: dict[str, torch.Tensor]) -> tuple[str, QuantState]:
    """The name of the matrix, and bitsandbytes' state of it."""
    name = min(parts, key=len)
    state = {key: value for key, value in parts.items() if key not in (name, f"{name}.{SCALES}")}
    return name, QuantState.from_dict(state, device=parts[name].device)
