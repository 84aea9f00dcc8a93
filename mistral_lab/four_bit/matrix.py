"""Quantise a weight matrix piece by piece, so that little memory is needed on the way."""

import torch
from bitsandbytes import functional
from bitsandbytes.functional import QuantState

BLOCK_SIZE, NESTED_BLOCK_SIZE = 64, 256
# Weights quantised at once, in whole blocks. On a CPU bitsandbytes needs about seven times the bytes that it quantises.
PIECE = 2**21


def quantize_matrix(name: str, weight: torch.Tensor, *, double: bool) -> tuple[torch.Tensor, QuantState]:
    """Quantise a weight matrix to NF4 piece by piece.

    The result equals what bitsandbytes makes of the whole matrix, bit for bit.

    Args:
        name: of the tensor, for the error.
        weight: (out_features, in_features), in 16 or 32 bits, on any device.
        double: whether the scales are quantised too.

    Returns:
        the codes, uint8 (n/2, 1), and bitsandbytes' state: scales, tables, shape, dtype.

    Raises:
        ValueError: a weight that is NaN or infinite, which would spoil its whole block.
    """
    flat, wrong = weight.reshape(-1), 0
    codes = torch.empty(-(-flat.numel() // 2), 1, dtype=torch.uint8, device=weight.device)
    absmax = torch.empty(-(-flat.numel() // BLOCK_SIZE), dtype=torch.float32, device=weight.device)
    for start in range(0, flat.numel(), PIECE):
        piece = flat[start : start + PIECE]
        wrong += int((~piece.isfinite()).sum())
        packed, state = functional.quantize_4bit(
            piece, blocksize=BLOCK_SIZE, compress_statistics=False, quant_type="nf4"
        )
        codes[start // 2 :][: len(packed)] = packed
        absmax[start // BLOCK_SIZE :][: len(state.absmax)] = state.absmax
    if wrong:
        raise ValueError(f"{name} holds {wrong} weights that are NaN or infinite: such a matrix has no 4-bit form")
    state.absmax, state.shape = absmax, weight.shape
    if double:
        state.offset = state.absmax.mean()
        state.absmax, state.state2 = functional.quantize_blockwise(
            state.absmax - state.offset, blocksize=NESTED_BLOCK_SIZE
        )
        state.nested = True
    return codes, state
