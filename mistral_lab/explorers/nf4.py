"""The explorer of NF4: what one outlier does to its block, and what blocks and double quantisation cost in bits."""

import ipywidgets as widgets
import torch

from ..figures import bare_figure, plot_code_shares, plot_rounded_block
from ..nf4 import BLOCK_SIZES, CODEBOOK, dequantize, quantize
from .base import FULL, Explorer, choice_slider, moving_slider

WEIGHTS = 2**14
DRAWN = 32  # weights of the block
PLACE = 5  # of the outlier
LIMIT = 3.6  # of the drawing: almost no normal weight lies beyond it


def four_bits() -> Explorer:
    """Put an outlier into one block of normal weights, and see its levels, codes, error and bits.

    The weights are seeded normal numbers with a root mean square of 1. They are rounded by `nf4.quantize`.
    """
    normal = torch.randn(WEIGHTS, generator=torch.Generator().manual_seed(0))

    def view(block_size: int, outlier: int, double: bool):
        w = normal.clone()
        if outlier:
            w[PLACE] = outlier
        q = quantize(w, block_size=block_size, double=double)
        back = dequantize(q)
        wrong = (back - w).square()
        wrong[PLACE] = 0  # the outlier is the largest of its block: only double quantisation rounds it
        error_here = (wrong[:block_size].sum() / (block_size - 1)).sqrt().item()
        error_elsewhere = wrong[block_size:].mean().sqrt().item()
        codes = torch.stack([q.packed >> 4, q.packed & 0xF], dim=1).flatten()[:block_size]
        shares = codes.long().bincount(minlength=16) / block_size
        levels = CODEBOOK * back[:block_size].abs().max()  # the largest weight of a block has the code of -1 or 1

        beyond = f" (the outlier, at {PLACE}, lies beyond)" if outlier > LIMIT else ""
        figure, axes = bare_figure(1, 2, height_in=3.4, widths=[1.4, 1])
        plot_rounded_block(
            w[:DRAWN].numpy(),
            back[:DRAWN].numpy(),
            levels=levels.numpy(),
            title=f"the block's first {DRAWN} weights" + beyond,
            limit=LIMIT,
            ax=axes[0, 0],
        )
        plot_code_shares(shares.numpy(), title="codes in the block", ax=axes[0, 1])
        axes[0, 0].set_yticks([-2, 0, 2])  # few numbers, because each takes a millisecond of a redraw
        axes[0, 1].set_yticks([0, 50, 100])
        used = int((shares > 0).sum())
        what = f"with one weight of {outlier}" if outlier else "without an outlier"
        return figure, (
            f"A block of {block_size} normal weights {what}: {used} of 16 codes are used, and the error is "
            f"{error_here:.0%} of the rms{' of the others' if outlier else ''}; in the other blocks "
            f"{error_elsewhere:.0%}. All {WEIGHTS:,} weights take {8 * q.nbytes / WEIGHTS:.3f} bits each, scales "
            f"{'in 8 bits' if double else 'in 32 bits'} included."
        )

    controls = {
        "block_size": choice_slider("block size", 64, BLOCK_SIZES),
        "outlier": moving_slider("outlier, in rms (0: none)", 10, 0, 60, interval_ms=400),
        "double": widgets.Checkbox(False, description="double quantisation", style=FULL, indent=False),
    }
    return Explorer(controls, view)
