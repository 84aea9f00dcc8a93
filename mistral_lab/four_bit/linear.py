"""A 4-bit linear layer of bitsandbytes whose weight comes back from every use as it was quantised."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from tqdm.auto import tqdm

from .compat import RestoringLinear4bit, is_packed, multiply_packed
from .kernel_layout import BLOCK, fits_kernel, pack_codes, packed_scales, packed_state, unpack_codes

BAR_AFTER_S = 2  # packing shows its progress where it takes longer than this


class ExactLinear4bit(RestoringLinear4bit):
    """`bitsandbytes.nn.Linear4bit` in NF4 whose weight a forward on the CPU does not change for good.

    Where a CPU has AVX512_BF16, the first forward of `Linear4bit` packs the weight for a fused kernel. It reorders the
    codes, which can be undone, and rounds the scales (absmax) to bfloat16, which cannot. When the module is saved,
    bitsandbytes quantises the rounded scales again. So what is saved, and then the module itself, differs from what was
    quantised.

    This class packs by itself, several times faster (see `kernel_layout`). It keeps the unrounded scales, which with
    double quantisation take 1/64 byte per weight. It puts them back when the weight is unpacked: to be saved, to be
    moved, or to be used under autograd, since the fused kernel has no gradient.

    Args:
        in_features, out_features: the shape of the weight is (out_features, in_features).
        compute_dtype: the dtype to which the weight is dequantised, and in which it is multiplied.
        double: whether the scales are quantised too.

    Differs: on the CPU, `Linear4bit` fails where a shape does not fill the kernel's tiles, and with AVX-512 it uses
        the wrong scales where in_features is not a whole number of blocks. Here such shapes are dequantised first.
        With the fused kernel it ends the process where there are no rows at all.
    """

    def __init__(self, in_features: int, out_features: int, *, compute_dtype: torch.dtype, double: bool) -> None:
        super().__init__(
            in_features, out_features, bias=False, compute_dtype=compute_dtype, compress_statistics=double,
            quant_type="nf4",
        )  # fmt: skip
        self.requires_grad_(False)
        # Set while the weight is packed: bitsandbytes' QuantState, and dtype and shape in which the codes were stored.
        self.scales_before_packing = self.stored_as = None
        if not fits_kernel(torch.Size([out_features, in_features])):
            self.fused_kernel = False

    @property
    def packed(self) -> bool:
        """Whether the weight is in the layout of the fused CPU kernel."""
        return is_packed(self.weight.quant_state)

    @property
    def packable(self) -> bool:
        """Whether the fused CPU kernel can be used for this weight here, and the weight is not in its layout yet."""
        return self.fused_kernel and self.weight.device.type == "cpu" and not self.packed

    def pack(self) -> None:
        """Bring the weight into the layout of the fused CPU kernel; where that kernel cannot be used, do nothing."""
        if not self.packable:
            return
        state, stored = self.weight.quant_state, self.weight.data
        with torch.inference_mode(False):  # the tensors outlive a call under inference_mode
            codes, scales = pack_codes(stored.view(torch.uint8), state.shape), packed_scales(state)
        self.weight.data, self.stored_as = codes, (stored.dtype, stored.shape)
        self.hold_packed(state, scales)

    def hold_packed(self, state: QuantState, scales: torch.Tensor) -> None:
        """Take note that the codes of the weight are packed.

        Args:
            state: of the weight as it was quantised.
            scales: what `packed_scales` makes of it.
        """
        self.weight.quant_state = self.quant_state = packed_state(state, scales)
        self.scales_before_packing = state

    def unpack(self) -> None:
        """Put codes and scales back as they were quantised; where they are not packed, do nothing."""
        if not self.packed:
            return
        dtype, shape = self.stored_as
        with torch.inference_mode(False):
            self.weight.data = unpack_codes(self.weight.data).view(dtype).view(shape)
        self.weight.quant_state = self.quant_state = self.scales_before_packing
        self.scales_before_packing = self.stored_as = None

    @contextmanager
    def unpacked(self) -> Iterator[None]:
        """Have the weight as it was quantised while the context is open; a mapped one stays mapped afterwards."""
        if not self.packed:
            yield
            return
        data, ready, exact, stored = self.weight.data, self.quant_state, self.scales_before_packing, self.stored_as
        self.unpack()
        try:
            yield
        finally:
            self.weight.data, self.weight.quant_state = data, ready
            self.quant_state, self.scales_before_packing, self.stored_as = ready, exact, stored

    def dequantized(self) -> torch.Tensor:
        """Return the weight as it was quantised, (out_features, in_features) in the dtype of the arithmetic."""
        with self.unpacked():
            state = copy.copy(self.weight.quant_state)
            state.shape = torch.Size([1, self.out_features * self.in_features])  # blocks ignore where rows begin
            weight = dequantize_4bit(self.weight.data, state)
        return weight.view(self.out_features, self.in_features).to(self.compute_dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply: x (..., in_features) -> (..., out_features)."""
        if x.device.type != "cpu":
            return super().forward(x)
        if self.in_features % BLOCK:
            return torch.nn.functional.linear(x.to(self.compute_dtype), self.dequantized()).to(x.dtype)
        if self.training or (x.requires_grad and torch.is_grad_enabled()):
            self.unpack()
            return super().forward(x)
        if not self.packed:
            self.pack()
        # Where nobody gave a compute_dtype, the first call chooses it. A compiler cannot look into the kernel.
        direct = self.packed and self.compute_type_is_set and self.weight.quant_type == "nf4"
        if not direct or torch.compiler.is_compiling():
            return super().forward(x)
        if not x.numel():
            return x.new_empty(*x.shape[:-1], self.out_features)  # the kernel divides by the number of rows
        return self._multiply(x)

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Do what `Linear4bit.forward` does for a packed weight, with the same result and a fifth of its Python."""
        rows = x if x.dtype == self.compute_dtype else x.to(self.compute_dtype)
        rows = rows.reshape(-1, self.in_features).to(torch.bfloat16).contiguous()
        out = multiply_packed(rows, self.weight, self.weight.quant_state)
        out = out.view(*x.shape[:-1], self.out_features)
        return out if x.dtype == torch.bfloat16 == self.compute_dtype else out.to(self.compute_dtype).to(x.dtype)

    def train(self, mode: bool = True) -> "ExactLinear4bit":
        """Unpack for training: the fused kernel has no gradient."""
        if mode:
            self.unpack()
        return super().train(mode)


def pack_at_first_forward(model: torch.nn.Module) -> None:
    """Have a model's first forward on a CPU pack all of its 4-bit weights, with a progress bar where that takes long.

    Each layer would pack its weight when it is first used. Done together, one bar shows how long that takes.
    """
    model.register_forward_pre_hook(_pack_all)
    model.waits_to_be_packed = True


def leave_unpacked(model: torch.nn.Module) -> None:
    """Use weights that are not packed as they are, on a CPU too, although each product then writes its matrix out.

    A model that is mapped from files and larger than the memory cannot be packed in memory of its own.
    """
    model.waits_to_be_packed = False
    for part in model.modules():
        if isinstance(part, ExactLinear4bit) and part.packable:
            part.fused_kernel = False


def _pack_all(model: torch.nn.Module, inputs) -> None:
    """Pack all 4-bit weights; the hook is a function at the top level, so that a model can be copied and pickled."""
    if not model.waits_to_be_packed or model.training or torch.is_grad_enabled():
        return  # autograd needs the weights as they were quantised
    model.waits_to_be_packed = False
    waiting = [part for part in model.modules() if isinstance(part, ExactLinear4bit) and part.packable]
    size = sum(part.weight.nbytes for part in waiting)
    with tqdm(
        desc="Packing for this CPU", total=size, unit="B", unit_scale=True, delay=BAR_AFTER_S, leave=False
    ) as bar:  # fmt: skip
        for part in waiting:
            part.pack()
            bar.update(part.weight.nbytes)
