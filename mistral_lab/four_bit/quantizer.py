"""What transformers is told: a quantisation config, and the quantiser behind it."""

from pathlib import Path

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Params4bit
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.quantizers.auto import register_quantization_config, register_quantizer

from ..files import read_header
from .compat import TransformersQuantizer, mark_as_loaded, merged_into
from .experts import FourBitExperts, new_experts
from .kernel_layout import unpack_codes
from .linear import ExactLinear4bit, pack_at_first_forward
from .matrix import quantize_matrix

# Stands in the config.json of a saved model. transformers prints it where the name means nothing to it.
METHOD = "mistral_lab.four_bit (import it first)"
COMPUTE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@register_quantization_config(METHOD)
class FourBitConfig(BitsAndBytesConfig):
    """NF4 in blocks of 64 for every weight matrix of attention, feed-forward networks and experts.

    Args:
        double: whether the scales are quantised too (arXiv:2305.14314, section 3).
        compute_dtype: the dtype of the arithmetic; None is the dtype that the model is loaded in.
    """

    def __init__(self, double: bool = True, compute_dtype: torch.dtype | str | None = None) -> None:
        chosen = getattr(torch, compute_dtype, None) if isinstance(compute_dtype, str) else compute_dtype
        if compute_dtype is not None and chosen not in COMPUTE_DTYPES:
            names = ", ".join(str(dtype) for dtype in COMPUTE_DTYPES)
            raise ValueError(f"compute_dtype is {compute_dtype!r}: expected one of {names}, or None")
        if not isinstance(double, bool):
            raise TypeError(f"double is {double!r}: expected True or False")
        super().__init__(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
        self.quant_method = METHOD
        self.bnb_4bit_compute_dtype = chosen

    def to_dict(self) -> dict:
        """Return what is written into config.json.

        `load_in_4bit` is left out: where it is set, transformers uses its own quantiser.
        """
        dtype = self.bnb_4bit_compute_dtype
        return {
            "quant_method": METHOD,
            "double": self.bnb_4bit_use_double_quant,
            "compute_dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        }

    def to_diff_dict(self) -> dict:
        """Return the same: there are no defaults to leave out."""
        return self.to_dict()

    @classmethod
    def from_dict(cls, config_dict: dict, return_unused_kwargs: bool = False, **kwargs) -> "FourBitConfig":
        """Read what `to_dict` wrote."""
        config = cls(double=config_dict["double"], compute_dtype=config_dict["compute_dtype"])
        return (config, kwargs) if return_unused_kwargs else config


def nf4_config(*, double: bool = True, compute_dtype: torch.dtype | str | None = None) -> FourBitConfig:
    """Make the `quantization_config` with which `from_pretrained` really gives four bits, for Mixtral too.

    Source: arXiv:2305.14314, section 3 (NF4 and double quantisation).

    Args:
        double: quantise the scales too: 4.127 bits per weight instead of 4.5.
        compute_dtype: torch.bfloat16, torch.float16 or torch.float32, or its name. None is the dtype that
            `from_pretrained` loads the model in.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Differs: `BitsAndBytesConfig(load_in_4bit=True)` means FP4, no double quantisation, arithmetic in float32, and
        experts in 16 bits.

    >>> nf4_config(double=False).to_dict()["double"]
    False
    """
    return FourBitConfig(double=double, compute_dtype=compute_dtype)


def use_our_quantizer(config) -> None:
    """Have `FourBitQuantizer` read a 4-bit checkpoint of bitsandbytes, instead of transformers' own quantiser.

    transformers' own fails where the experts, the router or the output layer are in 4 bits, as in the copies of Mixtral
    that were written before transformers 5.

    Args:
        config: a transformers config. It is changed in place where it says 4 bits of bitsandbytes. Whether those are
            NF4 or FP4, and which weights are in 4 bits, is then taken from the files.
    """
    entry = getattr(config, "quantization_config", None)
    if ours := our_entry(entry if entry is None or isinstance(entry, dict) else entry.to_dict()):
        config.quantization_config = ours


def our_entry(entry: dict | None) -> dict | None:
    """Return what config.json says of a 4-bit checkpoint that `FourBitQuantizer` is to read.

    Args:
        entry: the `quantization_config` of a checkpoint; None: it has none.

    Returns:
        the entry to read it by; None where it is not in 4 bits of bitsandbytes.
    """
    if entry and entry.get("quant_method") == METHOD:
        return entry
    if entry and entry.get("load_in_4bit"):
        return FourBitConfig(double=entry.get("bnb_4bit_use_double_quant", False)).to_dict()
    return None


@register_quantizer(METHOD)
class FourBitQuantizer(TransformersQuantizer):
    """transformers' 4-bit quantiser, for a model whose experts become separate matrices before weights arrive.

    Each tensor of the checkpoint is then read, quantised and freed by itself. `from_pretrained` calls the methods in
    the order in which they stand here.
    """

    separate_experts = True  # unless the files hold the experts of a layer in one tensor

    def validate_environment(self, *args, **kwargs) -> None:
        """Refuse a CPU on which bitsandbytes has no kernels."""
        super().validate_environment(*args, **kwargs)
        if not torch.cuda.is_available():
            check_cpu()

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Compute in the model's dtype unless told otherwise."""
        if self.quantization_config.bnb_4bit_compute_dtype is None:
            self.quantization_config.bnb_4bit_compute_dtype = dtype
        self.dtype = dtype
        return dtype

    def lay_out(self, model: PreTrainedModel, files: list[str] | None) -> None:
        """Put 4-bit layers in the place of `nn.Linear`, and separate experts in the place of `MixtralExperts`.

        Of a checkpoint that is in four bits already, those whose weights its files hold in four bits; of any other,
        all but the modules that transformers keeps, such as the output layer.

        Raises:
            NotImplementedError: a mixture of experts other than Mixtral.
        """
        config = self.quantization_config
        settings = {"compute_dtype": config.bnb_4bit_compute_dtype, "double": config.bnb_4bit_use_double_quant}
        kept = self.kept_modules(model)
        held = modules_in_four_bits(files) if self.pre_quantized else None  # None: all modules but the kept ones
        with torch.device("meta"):
            for name, module in list(model.named_modules()):
                if isinstance(module, MixtralExperts) and (
                    held is None or any(each.startswith(f"{name}.") for each in held)
                ):
                    model.set_submodule(name, new_experts(model.config, **settings))
                elif (
                    type(module) is nn.Linear
                    and module.bias is None
                    and (name not in kept if held is None else name in held)
                ):
                    model.set_submodule(name, ExactLinear4bit(module.in_features, module.out_features, **settings))
        self.separate_experts = any(isinstance(module, FourBitExperts) for module in model.modules())
        fused = [name for name, parameter in model.named_parameters() if parameter.dim() == 3]
        if fused and not self.pre_quantized:
            raise NotImplementedError(
                f"{type(model).__name__} keeps its experts in one tensor ({fused[0]}), which would stay in 16 bits: "
                "of the mixtures of experts, four bits are supported for Mixtral"
            )
        for module in model.modules():
            if self.pre_quantized and isinstance(module, ExactLinear4bit):
                module.weight.data = module.weight.data.to(torch.uint8)  # what the checkpoint holds
                mark_as_loaded(module)  # what it lacks is reported; whole numbers cannot be drawn for it

    def choose_converters(self, converters: list) -> list:
        """Drop the converters that merge experts: here they have the checkpoint's own names."""
        merging = ("experts.gate_up_proj", "experts.down_proj") if self.separate_experts else ()
        return [converter for converter in converters if not merged_into(converter).endswith(merging)]

    def quantize(self, name: str, weight: torch.Tensor, module: ExactLinear4bit) -> Params4bit:
        """Make the 4-bit weight of a module from a tensor of the checkpoint."""
        double = self.quantization_config.bnb_4bit_use_double_quant
        codes, module.quant_state = quantize_matrix(name, weight, double=double)
        return new_weight(codes, module)

    def restore(
        self, codes: torch.Tensor, state: QuantState, scales: torch.Tensor | None, module: ExactLinear4bit
    ) -> Params4bit:
        """Make the 4-bit weight of a module from what a checkpoint holds of it.

        Codes that the checkpoint holds packed stay so, mapped as they are, where the fused kernel can read them.
        """
        module.quant_state = state
        if scales is None:
            return new_weight(codes, module)
        if not module.fused_kernel or codes.device.type != "cpu":
            return new_weight(unpack_codes(codes)[:, None], module)
        module.weight = new_weight(codes, module)
        module.stored_as = codes.dtype, torch.Size([codes.numel(), 1])
        module.hold_packed(state, scales)
        return module.weight

    def finish(self, model: PreTrainedModel) -> None:
        """Give all that is not in four bits one dtype, and have the first forward on a CPU pack what is."""
        for module in model.modules():
            if isinstance(module, ExactLinear4bit):
                # Weight and module name each other: the memory of a model that is dropped would wait for the garbage
                # collector, which gigabytes of tensors do not wake, and the next model would come on top of it.
                module.weight.module = None
        for parameter in model.parameters():  # of a quantised checkpoint transformers leaves the rest as it was stored
            if not isinstance(parameter, Params4bit) and parameter.is_floating_point():
                parameter.data = parameter.data.to(self.dtype)
        pack_at_first_forward(model)


def new_weight(codes: torch.Tensor, module: ExactLinear4bit) -> Params4bit:
    """Make a 4-bit weight of bitsandbytes.

    Args:
        codes: quantised already.
        module: the one that it is for, with its `quant_state`.
    """
    state = module.quant_state
    return Params4bit(
        codes,
        requires_grad=False,
        quant_state=state,
        blocksize=state.blocksize,
        compress_statistics=state.nested,
        quant_type=state.quant_type,
        quant_storage=codes.dtype,
        bnb_quantized=True,
        module=module,
    )


def modules_in_four_bits(files: list[str | Path]) -> set[str]:
    """Name the modules whose weights the files of a checkpoint hold in 4 bits, as transformers 5 names them."""
    names = {name for file in files for name in read_header(file)}
    found = {name.partition(".weight.quant_state.bitsandbytes__")[0] for name in names if ".quant_state." in name}
    return {name.replace(".block_sparse_moe.", ".mlp.") for name in found}


def check_cpu() -> None:
    """Raise RuntimeError on a CPU that bitsandbytes has no 4-bit kernels for."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in ("DEFAULT", "NO AVX"):
        raise RuntimeError(
            f"4 bits on a CPU need AVX2, and PyTorch reports {capability!r} here: use a GPU, or load with bits=None"
        )
