"""What this module uses of bitsandbytes, transformers and PyTorch that they do not document.

Such names change without notice, so each stands here and nowhere else, with what it is for and the versions in which
it was seen (read in their source): bitsandbytes 0.50.0 and 0.50.2, transformers 5.15.0 to 5.24.0, PyTorch 2.8.0 to
2.13.0, unless a line says something else. The other files subclass and call what is defined here, under public names.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from bitsandbytes.cextension import lib
from bitsandbytes.functional import QuantState, dequantize_4bit, has_avx512bf16
from bitsandbytes.nn import Linear4bit, Params4bit
from bitsandbytes.nn.parametrize import Bnb4bitParametrization
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.integrations.bitsandbytes import Bnb4bitDeserialize
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

# bitsandbytes


def has_fused_kernel() -> bool:
    """Say whether bitsandbytes multiplies by packed 4-bit codes on this CPU: it needs AVX512_BF16."""
    return has_avx512bf16()


def quant_state(model: nn.Module, name: str, parameter: nn.Parameter) -> QuantState | None:
    """Return bitsandbytes' state of a 4-bit tensor, or None of any other tensor.

    The weight of a `Linear4bit` has its state as an attribute. Any other tensor that `replace_parameter_4bit` quantised
    has it in a `Bnb4bitParametrization`, which restores the tensor whenever it is read.
    """
    if name.endswith(".original") and ".parametrizations." in name:
        steps = model.get_submodule(name.removesuffix(".original"))
        return next((step.quant_state for step in steps if isinstance(step, Bnb4bitParametrization)), None)
    return getattr(parameter, "quant_state", None)


def is_packed(state: QuantState) -> bool:
    """Say whether codes lie as the fused CPU kernel reads them: `packing_format_for_cpu`, set by the first forward."""
    return getattr(state, "packing_format_for_cpu", False)


def mark_packed(state: QuantState) -> None:
    """Tell bitsandbytes that the codes that belong to this state lie as the fused CPU kernel reads them."""
    state.packing_format_for_cpu = True


_product = lib.gemv_4bit_inference_cpu_nf4_bf16  # where the library has no such function, this raises when it is called


def multiply_packed(x: torch.Tensor, codes: torch.Tensor, state: QuantState) -> torch.Tensor:
    """Multiply by an NF4 weight that lies as the fused CPU kernel reads it: `cextension.lib`, bitsandbytes' C library.

    The registered operator, `torch.ops.bitsandbytes.gemv_4bit`, ends in the same call, so the result is the same to the
    bit. But an operator that is written in Python takes 35 µs to get there, and a token of Mistral 7B makes 224 calls.

    Args:
        x: (M, K), bfloat16, each row in one piece.
        codes: uint8 of N·K/2 bytes in one piece.
        state: of the packed codes, with scales in bfloat16.

    Returns:
        (M, N), bfloat16.
    """
    (M, K), N = x.shape, state.shape[0]
    out = torch.empty(M, N, dtype=torch.bfloat16)
    sizes = (ctypes.c_int64(M), ctypes.c_int64(N), ctypes.c_int64(K))
    tensors = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, codes, state.absmax, out)]
    steps = (ctypes.c_int64(x.stride(0)), ctypes.c_int64(N))  # from row to row of x, and of the result
    _product(*sizes, *tensors, ctypes.c_int64(state.blocksize), *steps)
    return out


class RestoringLinear4bit(Linear4bit):
    """`bitsandbytes.nn.Linear4bit` that calls `unpack` before anybody takes its weight away.

    PyTorch documents no hook for that. `to`, `cuda`, `half` and their like all end in `_apply`, `state_dict` ends in
    `_save_to_state_dict`.
    """

    # transformers 5.15.0 to 5.24.0: its own quantiser looks here whether a weight lies the other way round.
    source_cls = nn.Linear

    def unpack(self) -> None:
        """Put the weight back as it was quantised."""
        raise NotImplementedError

    @contextmanager
    def unpacked(self) -> Iterator[None]:
        """Have the weight as it was quantised while the context is open, and as it was before afterwards."""
        raise NotImplementedError
        yield

    @property
    def fused_kernel(self) -> bool:
        """Whether `Linear4bit.forward` may use the fused kernel of CPUs with AVX512_BF16."""
        return self.support_avx512bf16_for_cpu

    @fused_kernel.setter
    def fused_kernel(self, allowed: bool) -> None:
        self.support_avx512bf16_for_cpu = allowed

    def _apply(self, fn, recurse: bool = True):
        self.unpack()  # what moves to another device or dtype must be what was quantised
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        if keep_vars:  # it is the weight itself that is asked for
            self.unpack()
        with self.unpacked():
            super()._save_to_state_dict(destination, prefix, keep_vars)


class StayingModuleList(nn.ModuleList):
    """A `ModuleList` whose modules stay where they are while `stays` is true, wherever the model around it is moved.

    PyTorch documents no hook for that: `to`, `cuda`, `half` and their like all end in `_apply`.
    """

    stays = False

    def _apply(self, fn, recurse: bool = True):
        return self if self.stays else super()._apply(fn, recurse)


# transformers


def mark_as_loaded(module: nn.Module) -> None:
    """Have transformers draw no random weights for a module, by `_is_hf_initialized`."""
    module._is_hf_initialized = True


class QuantizeTensor(ConversionOps):
    """transformers' step from a tensor of the checkpoint to a parameter of the model."""

    def __init__(self, quantizer: "TransformersQuantizer") -> None:
        self.quantizer = quantizer

    def convert(self, input_dict, full_layer_name=None, model=None, **kwargs):
        """Quantise; transformers calls it with a list of one tensor under the parameter's name."""
        result = {}
        for name, tensors in input_dict.items():
            weight = tensors[0] if isinstance(tensors, list) else tensors
            module = model.get_submodule(name.rpartition(".")[0])
            result[name] = self.quantizer.quantize(name, weight, module)
            mark_as_loaded(module)
        return result


class RestoreTensor(Bnb4bitDeserialize):
    """transformers' step from the parts of a 4-bit tensor to one parameter, for packed codes and for a router too.

    transformers 5 keeps the router of a Mixtral as a bare parameter. Before, it was an `nn.Linear`, which bitsandbytes
    quantised: here such a router is dequantised. `hf_quantizer` is the quantiser.
    """

    # In a checkpoint, after the name of the module; of two that fit, the first counts.
    PARTS = (
        "weight.nested_absmax",
        "weight.nested_quant_map",
        "weight.quant_map",
        "weight.absmax",
        "weight.packed_absmax",
        "weight.quant_state.bitsandbytes__nf4",
        "weight.quant_state.bitsandbytes__fp4",
        "weight",
    )

    def convert(self, input_dict, model=None, full_layer_name=None, **kwargs):
        """Gather the parts of one tensor."""
        parts = {name: value[0] if isinstance(value, list) else value for name, value in input_dict.items()}
        if len(parts) == 1:
            return parts
        owner = model.get_submodule(full_layer_name.rpartition(".")[0])
        codes, scales = parts.pop("weight"), parts.pop("weight.packed_absmax", None)
        state = QuantState.from_dict(parts, device=codes.device)
        if not isinstance(owner, Linear4bit):
            return {"weight": dequantize_4bit(codes, state)}
        mark_as_loaded(owner)
        return {"weight": self.hf_quantizer.restore(codes, state, scales, owner)}


class TransformersQuantizer(Bnb4BitHfQuantizer):
    """transformers' 4-bit quantiser, whose hooks have public names here.

    `from_pretrained` calls them in this order: `lay_out`, `choose_converters`, `quantize` or `restore` for each tensor,
    `finish`.
    """

    def lay_out(self, model: PreTrainedModel, files: list[str] | None) -> None:
        """Replace modules of a model on the meta device, before weights arrive.

        Args:
            model: changed in place.
            files: of the checkpoint; None where a model is laid out without one.
        """
        raise NotImplementedError

    def choose_converters(self, converters: list) -> list:
        """Choose which of transformers' converters from tensors of the checkpoint to parameters are kept."""
        raise NotImplementedError

    def quantize(self, name: str, weight: torch.Tensor, module: nn.Module) -> Params4bit:
        """Make the parameter `name`, which belongs to `module`, of a tensor of the checkpoint."""
        raise NotImplementedError

    def restore(
        self, codes: torch.Tensor, state: QuantState, scales: torch.Tensor | None, module: nn.Module
    ) -> Params4bit:
        """Make the weight of a 4-bit module from what a checkpoint holds of it.

        Args:
            codes, state: of the weight.
            scales: those of packed codes; None: the codes are not packed.
            module: changed in place.
        """
        raise NotImplementedError

    def finish(self, model: PreTrainedModel) -> None:
        """Do what is left to do when all weights are there."""
        raise NotImplementedError

    def kept_modules(self, model: PreTrainedModel) -> set[str]:
        """Name the modules that transformers leaves in 16 or 32 bits, such as the output layer.

        `_keep_in_fp32_modules` are those which a model's author excepts.
        """
        return set(self.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules))

    def _process_model_before_weight_loading(self, model, device_map, checkpoint_files=None, **kwargs):
        self.lay_out(model, checkpoint_files)

    def update_weight_conversions(self, weight_conversions, *model):
        """Hand on the chosen converters.

        transformers 5.15.0 to 5.20.2 hand over the converters alone, from 5.21.1 on the model too.
        """
        return super().update_weight_conversions(self.choose_converters(weight_conversions), *model)

    def get_weight_conversions(self):
        """Put `RestoreTensor` in the place of transformers' own step, which does not know packed codes."""
        if not self.pre_quantized:
            return []
        return [WeightConverter(list(RestoreTensor.PARTS), "weight", [RestoreTensor(self)])]

    def get_quantize_ops(self):
        """Return transformers' step for one tensor."""
        return QuantizeTensor(self)

    def _process_model_after_weight_loading(self, model, **kwargs):
        # save_pretrained undoes every conversion of loading, and the one that gathers a tensor's parts has no way back
        # (huggingface/transformers#45743). None is needed: state_dict() gives the parts under the checkpoint's names.
        model._weight_conversions = [
            entry
            for entry in model._weight_conversions
            if not any(isinstance(operation, Bnb4bitDeserialize) for operation in getattr(entry, "operations", ()))
        ]
        self.finish(model)
        return super()._process_model_after_weight_loading(model, **kwargs)


def merged_into(converter) -> str:
    """Name the parameter into which a converter merges tensors of the checkpoint; "" where it only renames.

    `_original_target_patterns` are the names as the model has them.
    """
    return converter._original_target_patterns[0] if isinstance(converter, WeightConverter) else ""
