"""What transformers is told: a quantisation config, the quantiser behind it, and experts that are separate matrices."""

from pathlib import Path

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.activations import ACT2FN
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.integrations.bitsandbytes import Bnb4bitDeserialize
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from ..files import read_header
from .linear import ExactLinear4bit, pack_at_first_forward
from .pieces import quantize_matrix

# Stands in the config.json of a saved model. transformers prints it where the name means nothing to it.
METHOD = "mistral_lab.four_bit (import it first)"
COMPUTE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@register_quantization_config(METHOD)
class FourBitConfig(BitsAndBytesConfig):
    """NF4 in blocks of 64 for every matrix of attention, feed-forward networks and experts.

    Args:
        double: whether the scales are quantised too (arXiv:2305.14314, section 3).
        compute_dtype: what the arithmetic is done in; None is the dtype that the model is loaded in.
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
        """What is written into config.json; without `load_in_4bit`, by which transformers takes its own quantiser."""
        dtype = self.bnb_4bit_compute_dtype
        return {
            "quant_method": METHOD,
            "double": self.bnb_4bit_use_double_quant,
            "compute_dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        }

    def to_diff_dict(self) -> dict:
        """The same: there are no defaults to leave out."""
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
        double: quantise the scales too: 4.127 bits a weight instead of 4.5.
        compute_dtype: torch.bfloat16, torch.float16 or torch.float32, or its name. None is the dtype that
            `from_pretrained` loads the model in.

    Raises:
        TypeError, ValueError: anything else.

    Differs: `BitsAndBytesConfig(load_in_4bit=True)` means FP4, no double quantisation, arithmetic in float32, and
        experts in 16 bits.

    >>> nf4_config(double=False).to_dict()["double"]
    False
    """
    return FourBitConfig(double=double, compute_dtype=compute_dtype)


def adopt(config) -> bool:
    """Have a checkpoint of bitsandbytes in 4 bits read by this module, instead of by transformers' own quantiser.

    That one fails where the experts, the router or the output layer are in 4 bits, as in the copies of Mixtral that
    were written before transformers 5.

    Args:
        config: a transformers config; changed in place where it names 4 bits of bitsandbytes. Whether they are NF4 or
            FP4, and which matrices are in 4 bits, is then taken from the files.

    Returns:
        whether the checkpoint is one that this module reads, from now on or already.
    """
    entry = getattr(config, "quantization_config", None)
    if entry is None:
        return False
    entry = entry if isinstance(entry, dict) else entry.to_dict()
    if entry.get("quant_method") == METHOD:
        return True
    if not entry.get("load_in_4bit"):
        return False
    config.quantization_config = FourBitConfig(double=entry.get("bnb_4bit_use_double_quant", False)).to_dict()
    return True


class FourBitExpert(nn.Module):
    """One expert, w2(silu(w1 x) * w3 x), under the names that Mixtral's checkpoints give its matrices."""

    def __init__(self, dim: int, hidden_dim: int, activation, *, compute_dtype: torch.dtype, double: bool) -> None:
        super().__init__()
        kind = {"compute_dtype": compute_dtype, "double": double}
        self.w1 = ExactLinear4bit(dim, hidden_dim, **kind)
        self.w2 = ExactLinear4bit(hidden_dim, dim, **kind)
        self.w3 = ExactLinear4bit(dim, hidden_dim, **kind)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, dim) -> (N, dim)."""
        return self.w2(self.activation(self.w1(x)) * self.w3(x))


class FourBitExperts(nn.ModuleList):
    """All experts of a layer, each apart: in the place, and with the call, of transformers' `MixtralExperts`."""

    def forward(self, x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Send each token through the experts chosen for it; an expert that nobody chose is not touched.

        Args:
            x: (N, dim).
            indices, weights: (N, A), the experts of each token and what their outputs are multiplied by.

        Returns:
            (N, dim).
        """
        out = torch.zeros_like(x)
        for expert in indices.unique().tolist():
            token, choice = torch.where(indices == expert)
            y = self[expert](x[token]) * weights[token, choice, None]
            out.index_add_(0, token, y.to(out.dtype))
        return out


class QuantizeMatrix(ConversionOps):
    """transformers' step from a tensor of the checkpoint to the parameter of an ExactLinear4bit."""

    def __init__(self, double: bool) -> None:
        self.double = double

    def convert(self, input_dict, full_layer_name=None, model=None, **kwargs):
        """Quantise; transformers calls it with a list of one tensor under the parameter's name."""
        result = {}
        for name, tensors in input_dict.items():
            weight = tensors[0] if isinstance(tensors, list) else tensors
            module = model.get_submodule(name.rpartition(".")[0])
            codes, state = quantize_matrix(name, weight, double=self.double)
            result[name] = Params4bit(
                codes,
                requires_grad=False,
                quant_state=state,
                blocksize=state.blocksize,
                compress_statistics=self.double,
                quant_type=state.quant_type,
                bnb_quantized=True,
                module=module,
            )
            module.quant_state = state
            module._is_hf_initialized = True
        return result


class RestoreMatrix(Bnb4bitDeserialize):
    """transformers' step from the parts of a 4-bit matrix to one parameter, for a router too.

    transformers 5 keeps the router of a Mixtral as a bare parameter, and before it was a matrix that bitsandbytes
    quantised: here it is written out again.
    """

    def convert(self, input_dict, model=None, full_layer_name=None, **kwargs):
        """Gather the parts of one matrix."""
        owner = model.get_submodule(full_layer_name.rpartition(".")[0])
        if len(input_dict) == 1 or isinstance(owner, Linear4bit):
            return super().convert(input_dict, model=model, full_layer_name=full_layer_name, **kwargs)
        parts = {name: value[0] if isinstance(value, list) else value for name, value in input_dict.items()}
        codes = parts.pop("weight")
        state = QuantState.from_dict(parts, device=codes.device)
        return {"weight": dequantize_4bit(codes, state)}


def in_four_bits(files: list[str | Path]) -> set[str]:
    """Name the modules, as transformers 5 calls them, of which the files of a checkpoint hold the weight in 4 bits."""
    names = {name for file in files for name in read_header(file)}
    found = {name.partition(".weight.quant_state.bitsandbytes__")[0] for name in names if ".quant_state." in name}
    return {name.replace(".block_sparse_moe.", ".mlp.") for name in found}


@register_quantizer(METHOD)
class FourBitQuantizer(Bnb4BitHfQuantizer):
    """transformers' 4-bit quantiser, but for a model whose experts are separate matrices before weights arrive.

    Each tensor of the checkpoint is then read, quantised and freed by itself.
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

    def _process_model_before_weight_loading(self, model, device_map, checkpoint_files=None, **kwargs):
        config = self.quantization_config
        kind = {"compute_dtype": config.bnb_4bit_compute_dtype, "double": config.bnb_4bit_use_double_quant}
        kept = set(self.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules))
        held = in_four_bits(checkpoint_files) if self.pre_quantized else None  # None: all that is not kept
        with torch.device("meta"):
            for name, module in list(model.named_modules()):
                if isinstance(module, MixtralExperts) and (
                    held is None or any(matrix.startswith(f"{name}.") for matrix in held)
                ):
                    model.set_submodule(name, self._experts(model.config, kind))
                elif (
                    type(module) is nn.Linear
                    and module.bias is None
                    and (name not in kept if held is None else name in held)
                ):
                    model.set_submodule(name, ExactLinear4bit(module.in_features, module.out_features, **kind))
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
                module._is_hf_initialized = True  # what it lacks is reported; whole numbers cannot be drawn for it

    @staticmethod
    def _experts(config, kind: dict) -> FourBitExperts:
        shape = (config.hidden_size, config.intermediate_size, ACT2FN[config.hidden_act])
        return FourBitExperts([FourBitExpert(*shape, **kind) for _ in range(config.num_local_experts)])

    def update_weight_conversions(self, weight_conversions, *model):
        """Drop the converters that merge experts: here they have the checkpoint's own names.

        transformers 5.15.0 to 5.20.2 hand over the converters alone, from 5.21.1 on the model too.
        """
        merging = ("experts.gate_up_proj", "experts.down_proj") if self.separate_experts else ()
        kept = [
            entry
            for entry in weight_conversions
            if not (isinstance(entry, WeightConverter) and entry._original_target_patterns[0].endswith(merging))
        ]
        return super().update_weight_conversions(kept, *model)

    def get_weight_conversions(self):
        """Gather the parts of a matrix, and write out what is no 4-bit layer here."""
        conversions = super().get_weight_conversions()
        for conversion in conversions:
            conversion.operations = [
                RestoreMatrix(self) if isinstance(operation, Bnb4bitDeserialize) else operation
                for operation in conversion.operations
            ]
        return conversions

    def _process_model_after_weight_loading(self, model, **kwargs):
        # save_pretrained undoes every conversion of loading, and the one that gathers a matrix's parts has no way back
        # (huggingface/transformers#45743). None is needed: state_dict() gives the parts under the checkpoint's names.
        model._weight_conversions = [
            entry
            for entry in model._weight_conversions
            if not any(isinstance(operation, Bnb4bitDeserialize) for operation in getattr(entry, "operations", ()))
        ]
        for module in model.modules():
            if isinstance(module, ExactLinear4bit):
                # Weight and module name each other: the memory of a model that is dropped would wait for the garbage
                # collector, which gigabytes of tensors do not wake, and the next model would come on top of it.
                module.weight.module = None
        for parameter in model.parameters():  # of a quantised checkpoint transformers leaves the rest as it was stored
            if not isinstance(parameter, Params4bit) and parameter.is_floating_point():
                parameter.data = parameter.data.to(self.dtype)
        pack_at_first_forward(model)
        return super()._process_model_after_weight_loading(model, **kwargs)

    def get_quantize_ops(self):
        """Quantise one tensor."""
        return QuantizeMatrix(self.quantization_config.bnb_4bit_use_double_quant)


def check_cpu() -> None:
    """Raise RuntimeError on a CPU that bitsandbytes has no 4-bit kernels for."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in ("DEFAULT", "NO AVX"):
        raise RuntimeError(
            f"4 bits on a CPU need AVX2, and PyTorch reports {capability!r} here: use a GPU, or load with bits=None"
        )
