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
from .fitting import as_held, check_fits, out_of_memory_explained, plan_here, planned_precision
from .forms import check_form, in_four_bits, quantised_precision
from .loaded import Loaded
from .one_row import use_one_row
from .outside import cost_line, keep_outside, plan_mapped, plan_within, prepare_mapped
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
    device_bytes: int | None = None,
) -> Loaded:
    """Load a Mistral, Mixtral or Llama model with its tokenizer, ready to generate.

    Weights come from safetensors files alone, and no code of a checkpoint is ever run. Bundled models and folders are
    loaded without the network. A checkpoint can be in 16 bits, or in 4 bits of bitsandbytes, NF4 or FP4; then
    everything stays in 4 bits that its files hold so. A dense model can also be in any other form, such as int8, GPTQ
    or AWQ, for which the library that transformers needs is installed.

    A model in 4 bits may be larger than its device. Of a mixture, a GPU then holds as many experts of each layer as fit
    beside the rest, those that were used last; the others stay in the computer's memory, or on the disk, until they are
    needed. On a CPU every model in 4 bits is mapped from its files, and the system keeps in memory what was used last.
    In both cases one line says what lies where, and what a token costs at least. The answers are the same.

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
        device_bytes: for a mixture in 4 bits, what it may take on the device; None is what the device has. On a CPU,
            experts are then copied into that much memory.

    Raises:
        FileNotFoundError: there is no such folder, repository or revision, or it has no config or no safetensors file.
            Where it holds GGUF files, Mistral's own format or an adapter, the message says what to take instead.
        PermissionError, ConnectionError: the hub wants a token, or is out of reach.
        MemoryError: the device is too small, which is said before anything is downloaded, or memory ran out. For a
            mixture in 4 bits it is too small where it cannot hold A experts of each layer and the rest.
        OSError: the disk is too small for the download, the copy or the layers that go there, which is said beforehand;
            or the checkpoint is truncated, damaged or incomplete, or holds more experts than its config says. A model
            in 4 bits raises it later too, when it is called after the files have changed that it is mapped from.
        RuntimeError: a GPU that is not there; four bits on a CPU without AVX2; or four bits that did not come out as
            four bits.
        NotImplementedError: a mixture of experts with `bits=8`.
        ImportError: the library that reads this quantised form is not installed.
        TypeError, ValueError: a quantised form that is not read, bits that it does not have, `device_bytes` that are
            too few or for a model without experts in 4 bits, or any other argument that means nothing.

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
    # On a CPU a model in four bits is mapped from its files, so only the rest has to fit.
    four_bits = bits == 4 if stored is None else in_four_bits(transformers_config)
    mapped = four_bits and target.type == "cpu" and source.name not in BUNDLED
    device_map, beside, outside = target, [], None
    if device_bytes is not None or (four_bits and config.num_experts and target.type == "cuda" and not shortest.fits):
        precision = (stored or "nf4-double") if four_bits else None
        outside = plan_within(source.name, config, precision, target, device_bytes)
        if outside.outcome == "fits":
            outside = None
    if outside:
        if not outside.runs:
            raise MemoryError(f"{source.name} does not fit this device: {outside}")
        device_map = torch.device("cpu")
    elif device is None and target.type == "cuda" and kept_bits not in (4, 8):
        device_map, beside = spread_here(source.name, transformers_config, dtype)
    else:
        check_fits(source.name, config, shortest, mapped=mapped)
    # The folder to read, and the model from it.
    with quiet() if source.name in BUNDLED else nullcontext():
        with out_of_memory_explained(source.name, config, shortest):
            quantisation = quantised_while_read(source.name, transformers_config, bits)
            folder = folder_to_read(
                source, config_folder, transformers_config, bits, dtype=dtype, device=target, beside=beside
            )
        if stored and not outside:
            shortest = as_held(shortest, folder, dtype)
            check_fits(source.name, config, shortest, mapped=mapped)
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
            partly = plan_mapped(config, shortest) if mapped and not (outside or shortest.fits) else None
            if mapped or (outside and source.name not in BUNDLED):
                prepare_mapped(model, folder, fits=shortest.fits, plan=partly)
            if outside:
                keep_outside(model, outside, target)
        tokenizer = read_tokenizer(folder)
    if outside or (mapped and not shortest.fits):
        print(cost_line(source.name, outside or partly, shortest))
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
