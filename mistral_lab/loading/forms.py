"""The form that a checkpoint has on the hub or in a folder: whether it is read here, and what to take instead."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path

import torch

from ..checkpoints import ALIASES, Source
from ..config import ModelConfig
from ..files import decimal_size, read_header, read_json_if_whole
from ..memory import WeightBytes, weight_bytes

# Copies in NF4 with double quantisation that others made of the models with an alias. Each name was read on a page of
# the hub: the two of Mixtral list 24.49 GB in five files and an index as long as one with every expert and router in
# 4 bits (huggingface.co/<id>/tree/main; the config.json of the second says nf4 and double); the others stand beside
# the models that they were made of in unsloth/models/mapper.py of github.com/unslothai/unsloth.
COPIES = {
    "mistral-7b-v0.1": "unsloth/mistral-7b-bnb-4bit",
    "mistral-7b-instruct-v0.1": "unsloth/mistral-7b-instruct-v0.1-bnb-4bit",
    "mistral-7b-v0.3": "unsloth/mistral-7b-v0.3-bnb-4bit",
    "mixtral-8x7b-v0.1": "monsterapi/Mixtral-8x7B-v0.1_4bit_bnb",
    "mixtral-8x7b-instruct-v0.1": "monsterapi/Mixtral-8x7B-Instruct-v0.1_4bit_bnb",
}
METHODS = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "bitsandbytes": "int8 of bitsandbytes"}
FLOATS = ("F16", "BF16", "F32", "F64")


def is_quantised(config) -> bool:
    """Say whether the config of transformers is that of a quantised checkpoint."""
    return bool(getattr(config, "quantization_config", None))


def in_four_bits(config) -> bool:
    """Say whether the config of transformers is that of a checkpoint in 4 bits of bitsandbytes: `four_bit` reads it."""
    entry = _entry(config) or {}
    return bool(entry.get("load_in_4bit")) or str(entry.get("quant_method")).startswith("mistral_lab.")


def quantised_precision(config) -> str | None:
    """Return the name that `memory` has for the weights of a quantised checkpoint; None where it is not quantised.

    GPTQ, AWQ and other forms with about four bits take less than "nf4" and more than "nf4-double". They count as "nf4".

    Args:
        config: of transformers.

    >>> from types import SimpleNamespace
    >>> quantised_precision(SimpleNamespace(quantization_config={"load_in_4bit": True}))
    'nf4'
    """
    entry = _entry(config)
    if entry is None:
        return None
    if entry.get("bnb_4bit_use_double_quant", entry.get("double")) and not entry.get("load_in_8bit"):
        return "nf4-double"
    groups = entry.get("config_groups") or {}  # of compressed-tensors
    bits = [(group.get("weights") or {}).get("num_bits", 8) for group in groups.values()]
    bits += [entry.get("bits") or 8] if "bits" in entry else []
    wide = entry.get("load_in_8bit") or entry.get("quant_method") == "fp8" or max(bits, default=4) > 4
    return "int8" if wide else "nf4"


def check_form(name: str, config, bits: int | None, device: torch.device) -> None:
    """Refuse a form that no installed library reads, or bits that it does not have, before anything is downloaded.

    Args:
        name: of the checkpoint, for the message.
        config: of transformers.
        bits: as `load` takes them.
        device: where the model is to lie.

    Raises:
        ImportError: the library that reads this form is not installed.
        ValueError: the form cannot be read for another reason, or is not in these bits.
    """
    heads = getattr(config, "architectures", None) or ["...ForCausalLM"]
    if not (heads[0].endswith("ForCausalLM") or config.tie_word_embeddings):
        raise ValueError(
            f"{name} was saved as {heads[0]}, without the output layer that predicts a token: {instead(name)}"
        )
    entry = _entry(config)
    if entry is None:
        return
    own = 8 if quantised_precision(config) == "int8" else 4
    if bits not in (None, own):
        raise ValueError(
            f"bits is {bits}, and {name} is quantised already: expected {own}, which it has, or None; or "
            f"{instead(name)}"
        )
    if in_four_bits(config):
        return
    method = str(entry.get("quant_method", "bitsandbytes"))
    kind = METHODS.get(method, method)
    if getattr(config, "num_local_experts", None):
        raise ValueError(
            f"{name} is a mixture of experts in {kind}: expected 16 bits or 4 bits of bitsandbytes; {instead(name)}"
        )
    if reason := library_refuses(entry, device):
        raise type(reason)(f"{name} is in {kind}, which cannot be read here ({_line(reason)}): {instead(name)}")


@contextmanager
def explained(source: Source) -> Iterator[None]:
    """Where a checkpoint has no config or weights to read, say what it has instead, and what to take.

    Raises:
        FileNotFoundError: the error from inside, or one that says more.
    """
    try:
        yield
        return
    except FileNotFoundError:
        reason = _other_form(source)
        if reason is None:
            raise
    raise FileNotFoundError(reason)


def bytes_in_files(files: Iterable[Path], dtype: torch.dtype) -> WeightBytes:
    """Count the bytes that the tensors of a quantised checkpoint will take, from what the files say of them.

    Args:
        files: safetensors files, of which only the headers are read.
        dtype: in which the tensors are loaded that are not quantised.

    Returns:
        the same parts as `memory.weight_parts` gives for a model whose every matrix is quantised, without the offsets
        of the codes. A router in 4 bits counts as it is used, which is written out. The rounded scales of packed codes
        (see `four_bit.kernel_layout`) are not counted: a GPU does not take them, and a CPU maps them.
    """
    tensors = {name: entry for file in files for name, entry in read_header(file).items()}
    bare = {name.partition(".weight.")[0] for name in tensors if name.endswith(".quant_map")}
    bare = {matrix for matrix in bare if matrix.endswith("block_sparse_moe.gate")}
    total = WeightBytes()
    for name, entry in tensors.items():
        begin, end = entry["data_offsets"]
        total += _one(name, entry, end - begin, bare, tensors.keys(), dtype.itemsize)
    return total


def offer_copy(source: Source, config: ModelConfig) -> None:
    """Warn, before a checkpoint in 16 bits is downloaded to be quantised, of its size and of what to load instead."""
    kept = decimal_size(weight_bytes(config, "nf4-double"))
    known = next((alias for alias, (repo, _) in ALIASES.items() if repo == source.repo), None)
    if known:
        other = (
            f"load({COPIES[known]!r}) downloads some {kept} instead, in NF4 already, made by others and not "
            "checked by this lab"
        )
    else:
        other = (
            "load('owner/name') of a repository that holds this model in 4 bits already (its config.json says "
            f"bitsandbytes) would download some {kept} instead"
        )
    warnings.warn(
        f"{source.name} is quantised here, once: {decimal_size(weight_bytes(config, 'bfloat16'))} in 16 bits are "
        f"downloaded and {kept} in 4 bits written; {other}",
        stacklevel=4,  # the line that called `load`
    )


def instead(name: str) -> str:
    """Say what to load instead of a checkpoint; by name, where the checkpoint's name says which model it is.

    >>> instead("someone/Mixtral-8x7B-v0.1-GPTQ")[:36]
    "take load('mixtral-8x7b-v0.1'), with"
    """
    known = [alias for alias in ALIASES if alias in name.lower()]
    if not known:
        return (
            "take the repository of this model in 16 bits (with bits=4 it is quantised here), or one in 4 bits of "
            "bitsandbytes"
        )
    alias = max(known, key=len)
    return f"take load({alias!r}), with bits=4 to quantise it here, or load({COPIES[alias]!r}), which is in NF4 already"


def _entry(config) -> dict | None:
    entry = getattr(config, "quantization_config", None)
    return entry if entry is None or isinstance(entry, dict) else entry.to_dict()


def library_refuses(entry: dict, device: torch.device) -> Exception | None:
    """Return the error with which transformers, or the library behind it, refuses a form; None where it is read."""
    from transformers.quantizers import AutoHfQuantizer

    try:
        AutoHfQuantizer.from_config(dict(entry), pre_quantized=True).validate_environment(device_map={"": device})
    except ImportError as error:
        return ImportError(_line(error))
    except Exception as error:  # each library has its own
        return ValueError(_line(error))
    return None


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _other_form(source: Source) -> str | None:
    """One sentence on a folder or repository without a checkpoint that can be read; None where nothing is known."""
    files, where = _file_names(source), source.name
    if {"model.safetensors", "model.safetensors.index.json"} & set(files):
        return None
    if "adapter_config.json" in files:
        base = "the model that it was trained on"
        with suppress(KeyError, TypeError):
            settings = read_json_if_whole(source.path / "adapter_config.json")
            base = f"that model ({settings['base_model_name_or_path']})"
        return (
            f"{where} holds an adapter, not a model: load {base} with bits=4 and put the adapter on it with "
            "mistral_lab.finetune.load_adapter(loaded, folder)"
        )
    for form, found in (
        ("GGUF files, which llama.cpp reads", [name for name in files if name.endswith(".gguf")]),
        ("the weights in Mistral's own format", [name for name in files if name.startswith("consolidated")]),
    ):
        if found:
            return f"{where} holds {form} ({found[0]}), and no Hugging Face checkpoint: {instead(where)}"
    return None


def _file_names(source: Source) -> list[str]:
    if source.path:
        return sorted(file.name for file in source.path.iterdir())
    from huggingface_hub import HfApi

    with suppress(Exception):  # this explains another error, which stands where the hub does not answer
        return sorted(HfApi().list_repo_files(source.repo, revision=source.revision))
    return []


def _one(name: str, entry: dict, size: int, bare: set[str], names: Iterable[str], itemsize: int) -> WeightBytes:
    """Bytes of one tensor of a file, once it is loaded."""
    matrix, _, part = name.partition(".weight.")
    if matrix in bare or part.startswith(("quant_state", "packed_absmax")) or name.endswith(".weight_format"):
        return WeightBytes()
    if part in ("quant_map", "nested_quant_map"):
        return WeightBytes(code_tables=size)
    if part == "nested_absmax":
        return WeightBytes(nested_absmax=size, offsets=4)
    if part == "absmax" or name.endswith(".SCB"):
        return WeightBytes(absmax=size)
    if name.removesuffix(".weight") in bare:
        return WeightBytes(payload=2 * size * itemsize)
    if entry["dtype"] in FLOATS and f"{name}.quant_map" not in names:
        return WeightBytes(payload=prod(entry["shape"]) * itemsize)
    return WeightBytes(payload=size)
