"""A 4-bit matrix of bitsandbytes that comes back from every use as it was quantised."""

import copy

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit

KERNEL_ROWS, KERNEL_COLUMNS = 32, 64  # the fused CPU kernel takes whole tiles of so many output and input features


class ExactLinear4bit(Linear4bit):
    """`bitsandbytes.nn.Linear4bit` in NF4 that a forward on the CPU does not change for good.

    Where a CPU has AVX512_BF16, the first forward of `Linear4bit` packs the weight for a fused kernel: it moves the
    codes about, which can be undone, and rounds the scales (absmax) to bfloat16, which cannot. bitsandbytes quantises
    the rounded scales again when the module is saved, so that what is saved, and then the module itself, differs from
    what was quantised. This class keeps the scales from before (1/64 byte a weight with double quantisation, nothing of
    the codes) and puts them back when the weight is unpacked: to be saved, moved, or used under autograd, for which
    the fused kernel has no gradient.

    Args:
        in_features, out_features: the shape of the matrix, (out_features, in_features).
        compute_dtype: what the weight is dequantised to and multiplied in.
        double: whether the scales are quantised too.

    Differs: on the CPU, `Linear4bit` fails where a shape does not fill the kernel's tiles, and with AVX-512 it takes
        the wrong scales where in_features is no whole number of blocks. Here such shapes take a plain path.
    """

    def __init__(self, in_features: int, out_features: int, *, compute_dtype: torch.dtype, double: bool) -> None:
        super().__init__(
            in_features, out_features, bias=False, compute_dtype=compute_dtype, compress_statistics=double,
            quant_type="nf4",
        )  # fmt: skip
        self.source_cls = torch.nn.Linear  # transformers asks which way round the weight lies
        self.requires_grad_(False)
        self.scales_before_packing = None  # bitsandbytes' QuantState, while the weight is packed
        if out_features % KERNEL_ROWS or in_features % KERNEL_COLUMNS:
            self.support_avx512bf16_for_cpu = False

    @property
    def packed(self) -> bool:
        """Whether the weight lies as the fused CPU kernel wants it."""
        return getattr(self.weight.quant_state, "packing_format_for_cpu", False)

    def unpack(self) -> None:
        """Put codes and scales back as they were quantised; nothing happens where they are."""
        if not self.packed:
            return
        super()._save_to_state_dict({}, "", False)  # bitsandbytes moves the codes back, exactly; its scales are not
        self.weight.quant_state = self.quant_state = self.scales_before_packing
        self.scales_before_packing = None

    def dequantized(self) -> torch.Tensor:
        """The weight as it was quantised, (out_features, in_features) in the dtype of the arithmetic."""
        self.unpack()
        state = copy.copy(self.weight.quant_state)
        state.shape = torch.Size(
            [1, self.out_features * self.in_features]
        )  # one row: where rows begin makes no difference to the blocks
        return dequantize_4bit(self.weight.data, state).view(self.out_features, self.in_features).to(self.compute_dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply: x (..., in_features) -> (..., out_features)."""
        if x.device.type != "cpu":
            return super().forward(x)
        if self.in_features % KERNEL_COLUMNS:
            return torch.nn.functional.linear(x.to(self.compute_dtype), self.dequantized()).to(x.dtype)
        if self.training or (x.requires_grad and torch.is_grad_enabled()):
            self.unpack()
            return super().forward(x)
        before = None if self.packed else copy.copy(self.weight.quant_state)
        out = super().forward(x)
        if before is not None and self.packed:
            self.scales_before_packing = before
        return out

    def train(self, mode: bool = True) -> "ExactLinear4bit":
        """Unpack for training: the fused kernel has no gradient."""
        if mode:
            self.unpack()
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):
        self.unpack()  # what moves to another device or dtype must be what was quantised
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        self.unpack()
        super()._save_to_state_dict(destination, prefix, keep_vars)
