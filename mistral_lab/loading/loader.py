"""`load` and `quantized_copy`: the steps from a name to a model that answers, or to its copy in four bits."""

import os
from contextlib import nullcontext
from pathlib import Path

import torch

from ..checkpoints import BUNDLED, locate
from ..config import ModelConfig, read_config
from ..files import has_weights
from .choosing import check_dtype, choose_device, choose_dtype
from .fitting import as_held, does_not_fit, out_of_memory_explained, plan_here, planned_precision
from .forms import check_form, explained, quantised_precision
from .loaded import Loaded
from .placement import offload_folder, remove_with, spread_here
from .quantising import config_to_read, fetched, folder_to_read, quantised_while_read
from .reading import check_four_bits, quiet, read_model, read_tokenizer

DEFAULT_MODEL = "tiny-mistral"


def load(
    name: str | os.PathLike | None = None,
    *,
    bits: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> Loaded:
    """Load a Mistral, Mixtral or Llama model with its tokenizer, ready to generate.

    Weights come from safetensors files alone and no code of a checkpoint is ever run. For bundled models and folders
    nothing goes to the network. A checkpoint in 16 bits is read, and one in 4 bits of bitsandbytes, NF4 or FP4, with
    everything in 4 bits that its files hold so. A dense model is also read in any other form, such as int8, GPTQ or
    AWQ, for which transformers finds the library that reads it.

    Args:
        name: "tiny-mistral" or "tiny-mixtral", which are in the package; "mistral-7b-v0.1", "mistral-7b-v0.3",
            "mistral-7b-instruct-v0.1", "mixtral-8x7b-v0.1" or "mixtral-8x7b-instruct-v0.1", each at one commit of the
            hub; a folder; or a hub id "owner/name". None is what the environment variable MISTRAL_LAB_MODEL names, or
            else "tiny-mistral".
        bits: 4 is NF4 with double quantisation, experts included. It is made once and kept: in the folder that the
            environment variable MISTRAL_LAB_CACHE names, or else `mistral_lab` beside the hub's downloads. 8 is
            LLM.int8(), for a dense model. 16 and 32 are unquantised, as None is, which chooses between them. A
            checkpoint that is quantised already stays as it is: None takes it, and so do the bits that it has, of which
            4 insist that all matrices of attention, feed-forward networks and experts are in 4 bits.
        device: "cpu", "cuda", "cuda:1" or "mps". None is CUDA where there is a GPU, otherwise the CPU. A quantised
            model lies whole on one device. An unquantised one is spread, with None, over all GPUs, and over memory and
            disk where they are too small; for that the experts of a mixture are written again, to a folder beside the
            quantised models that goes when the model does.
        dtype: of the weights, or with 4 bits of the arithmetic. None is, on a GPU, bfloat16 from compute capability 8.0
            on and float16 below; on a CPU, float32 up to 1 GiB of weights, bfloat16 beyond that and in 4 bits. In 8
            bits it is float16, in which LLM.int8() multiplies.
        revision: branch, tag or commit on the hub. None is the commit that goes with a known name, otherwise "main".

    Raises:
        FileNotFoundError: no such folder, repository or revision, or no config or safetensors in it: GGUF files alone,
            Mistral's own format or an adapter, of which the message says what to take instead.
        PermissionError, ConnectionError: the hub wants a token, or is out of reach.
        MemoryError: the device is too small, said before anything is downloaded, or memory ran out.
        OSError: too small a disk for the download, the copy or the layers that go there, said beforehand; a truncated,
            damaged or incomplete checkpoint.
        RuntimeError: a GPU where there is none; four bits on a CPU without AVX2, or that did not come out as four bits.
        NotImplementedError: a mixture of experts with `bits=8`.
        ImportError: a quantised form whose library is not installed.
        TypeError, ValueError: a quantised form that is not read, other bits than it has, or any other argument that
            means nothing.

    Warns: before a download in 16 bits that `bits=4` needs, of its size and of a copy in 4 bits that spares it; and
        where experts have to be written to the disk.

    >>> load("tiny-mixtral").config.num_experts
    8
    """
    if bits not in (None, 4, 8, 16, 32):
        raise ValueError(f"bits is {bits!r}: expected 4, 8, 16, 32 or None")
    source = locate(_named(name), revision)
    target = choose_device(device)
    with explained(source):
        there = source.config_folder()
    found = read_config(there)
    check_form(source.name, found, bits, target)

    config = ModelConfig.from_transformers(found)
    stored = quantised_precision(found)
    kept_bits = bits if stored is None else 8 if stored == "int8" else 4
    dtype = choose_dtype(target, kept_bits, config) if dtype is None else check_dtype(dtype, bits)
    shortest = plan_here(config, stored or planned_precision(bits, dtype), target)
    if stored and has_weights(there):
        shortest = as_held(shortest, fetched(source), dtype)
    device_map, beside = target, []
    if device is None and target.type == "cuda" and kept_bits not in (4, 8):
        device_map, beside = spread_here(source.name, found, dtype)
    elif not shortest.fits:
        raise MemoryError(does_not_fit(source.name, config, shortest))

    with quiet() if source.name in BUNDLED else nullcontext():
        with out_of_memory_explained(source.name, config, shortest):
            quantisation = quantised_while_read(source.name, found, bits)
            folder = folder_to_read(source, there, found, bits, dtype=dtype, device=target, beside=beside)
        if stored and not (shortest := as_held(shortest, folder, dtype)).fits:
            raise MemoryError(does_not_fit(source.name, config, shortest))
        with (
            out_of_memory_explained(source.name, config, shortest),
            offload_folder(*beside) if beside else nullcontext() as offload,
        ):
            model = read_model(
                folder,
                config_to_read(folder),
                dtype=dtype,
                device_map=device_map,
                quantisation=quantisation,
                offload=offload,
            )
            if offload:
                remove_with(model, offload)
        tokenizer = read_tokenizer(folder)
    if bits == 4:
        check_four_bits(model, source.name)
    return Loaded(model, tokenizer, source.name, config)


def quantized_copy(
    name: str | os.PathLike | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> Path:
    """Download a checkpoint in 16 bits and write it in four bits, once, without loading the model.

    On the device it needs room for one matrix at a time, and in memory for one file of the copy. So it makes the copy
    also where the whole model is too large for the device, as before `distributed.load_rank` spreads it over several.

    Args:
        name, revision: as in `load`, but of no bundled model, which is quantised as it is read.
        device: what quantises; a GPU takes minutes where a CPU takes half an hour. None as in `load`.
        dtype: of what is not quantised, and what a matrix is rounded to before. None as in `load(name, bits=4)`.

    Returns:
        the folder with the copy. It is the one that `load(name, bits=4)` makes and reads, and its path is a name for
        `load` and `load_rank`. Of a checkpoint that is quantised already it is that checkpoint's own folder.

    Raises:
        ValueError: a bundled model.
        Exception: what `load` raises for the other arguments, the download and the disk.
    """
    source = locate(_named(name), revision)
    if source.name in BUNDLED:
        raise ValueError(f"{source.name} is quantised as it is read and has no copy: use load({source.name!r}, bits=4)")
    target = choose_device(device)
    with explained(source):
        there = source.config_folder()
    found = read_config(there)
    check_form(source.name, found, 4, target)
    config = ModelConfig.from_transformers(found)
    dtype = choose_dtype(target, 4, config) if dtype is None else check_dtype(dtype, 4)
    return folder_to_read(source, there, found, 4, dtype=dtype, device=target)


def _named(name: str | os.PathLike | None) -> str | os.PathLike:
    return os.environ.get("MISTRAL_LAB_MODEL") or DEFAULT_MODEL if name is None else name
