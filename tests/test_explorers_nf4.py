"""The explorer of four bits says the error and the bits of the reference."""

import numpy as np
import torch

from mistral_lab import explorers, nf4


def test_four_bits_says_the_error_and_the_bits_of_the_reference():
    explorer = explorers.four_bits()
    for block, outlier, double in ((64, 10, False), (32, 60, False), (4096, 60, True), (32, 0, True)):
        for name, value in {"block_size": block, "outlier": outlier, "double": double}.items():
            explorer.controls[name].value = value
        w = torch.randn(2**14, generator=torch.Generator().manual_seed(0))
        if outlier:
            w[5] = outlier
        back = nf4.dequantize(nf4.quantize(w, block_size=block, double=double)).numpy()
        others = np.delete(np.arange(block), 5)
        error = np.sqrt(np.mean((back - w.numpy())[others] ** 2))
        assert f"the error is {error:.0%} of" in explorer.sentence
        scales = 8 / block + 32 * -(-(2**14 // block) // 256) / 2**14 if double else 32 / block
        assert f"take {4 + scales:.3f} bits each" in explorer.sentence
