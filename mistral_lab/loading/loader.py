"""`load` and `quantized_copy`: the steps from a name to a model that answers, or to its copy in four bits."""

import os
from contextlib import nullcontext
from pathlib import Path

import torch

from ..checkpoints import BUNDLED, locate
from ..config import ModelConfig
from ..files import has_weights
from .attending import use_groups
from .choosing import check_dtype, choose_device, choose_dtype
from .fitting import as_held, does_not_fit, out_of_memory_explained, plan_here, planned_precision
from .forms import check_form, quantised_precision
from .loaded import Loaded
from .one_row import use_one_row
from .placement import offload_folder, remove_with, spread_here
from .quantising import config_found, config_to_read, fetched, folder_to_read, quantised_while_read
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

    Weights come from safetensors files alone, and no code of a checkpoint is ever run. Bundled models and folders are
    loaded without the network. A checkpoint can be in 16 bits, or in 4 bits of bitsandbytes, NF4 or FP4; then
    everything stays in 4 bits that its files hold so. A dense model can also be in any other form, such as int8, GPTQ
    or AWQ, for which the library that transformers needs is installed.

    Args:
        name: "tiny-mistral" or "tiny-mixtral", which are in the package; "mistral-7b-v0.1", "mistral-7b-v0.3",
            "mistral-7b-instruct-v0.1", "mixtral-8x7b-v0.1" or "mixtral-8x7b-instruct-v0.1", each at one commit of the
            hub; a folder; or a hub id "owner/name". None is what the environment variable MISTRAL_LAB_MODEL names, or
            else "tiny-mistral".
        bits: 4 is NF4 with double quantisation, experts included. The copy in 4 bits is made once and kept, in the
            folder that the environment variable MISTRAL_LAB_CACHE names, or else in `mistral_lab` beside the hub's
            downloads. 8 is LLM.int8(), for a dense model. 16 and 32 are unquantised, and None chooses between them. A
            checkpoint that is quantised already stays as it is: give None, or the bits that it has. Giving 4 makes
            sure that all matrices of attention, feed-forward networks and experts are in 4 bits.
        device: "cpu", "cuda", "cuda:1" or "mps". None is CUDA where there is a GPU, otherwise the CPU. A quantised
            model lies whole on one device. With None, an unquantised one is spread over all GPUs, and over memory and
            disk where the GPUs are too small. The experts of a mixture are then written again, to a folder in the same
            place as the copies in 4 bits, which is removed together with the model.
        dtype: of the weights, or with 4 bits of the arithmetic. On a GPU, None is bfloat16 from compute capability 8.0
            on, and float16 below. On a CPU it is float32 up to 1 GiB of weights, and bfloat16 beyond that and with 4
            bits. With 8 bits it is float16, in which LLM.int8() multiplies.
        revision: branch, tag or commit on the hub. None is the commit that goes with a known name, otherwise "main".

    Raises:
        FileNotFoundError: there is no such folder, repository or revision, or it has no config or no safetensors file.
            Where it holds GGUF files, Mistral's own format or an adapter, the message says what to take instead.
        PermissionError, ConnectionError: the hub wants a token, or is out of reach.
        MemoryError: the device is too small, which is said before anything is downloaded, or memory ran out.
        OSError: the disk is too small for the download, the copy or the layers that go there, which is said beforehand;
            or the checkpoint is truncated, damaged or incomplete, or holds more experts than its config says.
        RuntimeError: a GPU that is not there; four bits on a CPU without AVX2; or four bits that did not come out as
            four bits.
        NotImplementedError: a mixture of experts with `bits=8`.
        ImportError: the library that reads this quantised form is not installed.
        TypeError, ValueError: a quantised form that is not read, bits that it does not have, or any other argument that
            means nothing.

    Warns: before a download in 16 bits that `bits=4` needs, of its size and of a smaller download in 4 bits; and where
        experts have to be written to the disk.

    >>> load("tiny-mixtral").config.num_experts
    8
    """
    if bits not in (None, 4, 8, 16, 32):
        raise ValueError(f"bits is {bits!r}: expected 4, 8, 16, 32 or None")
    source = locate(_named(name), revision)
    target = choose_device(device)
    config_folder, transformers_config = config_found(source)
    check_form(source.name, transformers_config, bits, target)
    # What it takes, and whether that fits: before anything is downloaded.
    config = ModelConfig.from_transformers(transformers_config)
    stored = quantised_precision(transformers_config)
    kept_bits = bits if stored is None else 8 if stored == "int8" else 4
    dtype = choose_dtype(target, kept_bits, config) if dtype is None else check_dtype(dtype, bits)
    shortest = plan_here(config, stored or planned_precision(bits, dtype), target)
    if stored and has_weights(config_folder):
        shortest = as_held(shortest, fetched(source), dtype)
    device_map, beside = target, []
    if device is None and target.type == "cuda" and kept_bits not in (4, 8):
        device_map, beside = spread_here(source.name, transformers_config, dtype)
    elif not shortest.fits:
        raise MemoryError(does_not_fit(source.name, config, shortest))
    # The folder to read, and the model from it.
    with quiet() if source.name in BUNDLED else nullcontext():
        with out_of_memory_explained(source.name, config, shortest):
            quantisation = quantised_while_read(source.name, transformers_config, bits)
            folder = folder_to_read(
                source, config_folder, transformers_config, bits, dtype=dtype, device=target, beside=beside
            )
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
    if target.type == "cpu":
        use_groups(model)
        use_one_row(model)
    return Loaded(model, tokenizer, source.name, config)


def quantized_copy(
    name: str | os.PathLike | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> Path:
    """Download a checkpoint in 16 bits and write it in four bits, once, without loading the model.

    The device has to hold one matrix at a time, and the memory one file of the copy. So the copy can be made where the
    whole model is too large for the device, as before `distributed.load_rank` spreads it over several.

    Args:
        name, revision: as in `load`, but no bundled model, which is quantised while it is read.
        device: the device that quantises; a GPU takes minutes where a CPU takes half an hour. None as in `load`.
        dtype: of what is not quantised; matrices are rounded to it before they are quantised. None as in
            `load(name, bits=4)`.

    Returns:
        the folder with the copy. It is the one that `load(name, bits=4)` makes and reads, and its path is a name for
        `load` and `load_rank`. For a checkpoint that is quantised already it is that checkpoint's own folder.

    Raises:
        ValueError: a bundled model.
        Exception: what `load` raises for the other arguments, the download and the disk.
    """
    source = locate(_named(name), revision)
    if source.name in BUNDLED:
        raise ValueError(f"{source.name} is quantised as it is read and has no copy: use load({source.name!r}, bits=4)")
    target = choose_device(device)
    config_folder, transformers_config = config_found(source)
    check_form(source.name, transformers_config, 4, target)
    config = ModelConfig.from_transformers(transformers_config)
    dtype = choose_dtype(target, 4, config) if dtype is None else check_dtype(dtype, 4)
    return folder_to_read(source, config_folder, transformers_config, 4, dtype=dtype, device=target)


def _named(name: str | os.PathLike | None) -> str | os.PathLike:
    return os.environ.get("MISTRAL_LAB_MODEL") or DEFAULT_MODEL if name is None else name
