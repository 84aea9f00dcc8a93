"""How a model comes into eight or four bits: as its files have it, while it is read, or through a copy on the disk."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..checkpoints import BUNDLED, Source
from ..config import ModelConfig, read_config
from ..files import Need, has_weights, lab_cache, weight_files
from ..memory import weight_bytes
from .forms import explained, in_four_bits, is_quantised, offer_copy

# bitsandbytes takes a second to import, which most calls need not spend: four_bit is imported where it is used.

PACK_EACH_TIME_BYTES = 2**28  # a checkpoint in four bits up to this size is packed in a fraction of a second


def quantised_while_read(name: str, config, bits: int | None) -> QuantizationConfigMixin | None:
    """Say how transformers has to quantise the weights that it reads; None: it reads them as the files have them.

    Args:
        name: of the model; the bundled ones are small enough to be quantised to 4 bits on every call.
        config: of transformers, as it lies beside the weights.
        bits: as `load` takes them.

    Raises:
        NotImplementedError: a mixture of experts in 8 bits.
    """
    if is_quantised(config):
        return None
    if bits == 8:
        if getattr(config, "num_local_experts", None):
            raise NotImplementedError(
                f"{name} is a mixture of experts, and bits=8 would leave its experts in 16 bits: load it with "
                "bits=4 or bits=None"
            )
        return BitsAndBytesConfig(load_in_8bit=True)
    if bits == 4 and name in BUNDLED:
        from ..four_bit import nf4_config

        return nf4_config()
    return None


def folder_to_read(
    source: Source,
    config_folder: Path,
    config,
    bits: int | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
    beside: Sequence[Need] = (),
) -> Path:
    """Return the folder to read the weights from: the checkpoint's own, or the copy of it in four bits.

    What is missing of the checkpoint is downloaded, and the copy is made where there is none yet. A checkpoint that is
    in four bits already is copied only for a CPU that wants its codes in another order.

    Args:
        source: the checkpoint.
        config_folder: the folder that has its `config.json`, and perhaps not yet its weights.
        config: of transformers, from that folder.
        bits: as `load` takes them.
        dtype, device: as in `four_bit.quantized_folder`.
        beside: what else is going to be written on the disk.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError, OSError: as `Source.folder` does.
        RuntimeError: four bits on a CPU that bitsandbytes has no kernels for.
    """
    quantised = is_quantised(config)
    if device.type == "cpu" and (in_four_bits(config) if quantised else bits == 4):
        from ..four_bit import check_cpu

        check_cpu()
    if in_four_bits(config):
        return _packed_once(source, fetched(source, *beside), dtype=dtype, device=device)
    if bits != 4 or quantised or source.name in BUNDLED:
        return fetched(source, *beside)
    shape = ModelConfig.from_transformers(config)
    if source.repo and not has_weights(config_folder):
        offer_copy(source, shape)
    folder = fetched(source, Need(lab_cache(), weight_bytes(shape, "nf4-double"), "for its copy in four bits"))
    return _in_cache(source, folder, dtype=dtype, device=device)


def _packed_once(source: Source, folder: Path, *, dtype: torch.dtype, device: torch.device) -> Path:
    """Return the folder to read a checkpoint in four bits from: a packed copy where that spares much work.

    Packing takes some seconds for each model of 7B, and memory of its own. So it is done once, for a CPU that wants it,
    and the copy kept. A small model is packed whenever it is loaded.
    """
    from ..four_bit import holds_packed_codes, keeps_matrices_together, packed_for, warn_of_repeated_packing

    files = weight_files(folder)
    large = sum(file.stat().st_size for file in files) > PACK_EACH_TIME_BYTES
    if not (large and packed_for(device)) or any(map(holds_packed_codes, files)) or not keeps_matrices_together(files):
        return folder
    try:
        return _in_cache(source, folder, dtype=dtype, device=device)
    except OSError as error:
        warn_of_repeated_packing(source.name, error, stacklevel=5)
        return folder


def _in_cache(source: Source, folder: Path, *, dtype: torch.dtype, device: torch.device) -> Path:
    from ..four_bit import quantized_folder

    name, commit = source.origin(folder)
    return quantized_folder(
        folder, weight_files(folder), cache=lab_cache(), name=name, revision=commit, dtype=dtype, device=device
    )


def config_found(source: Source) -> tuple[Path, PreTrainedConfig]:
    """Return the folder with the `config.json` of a checkpoint, and the config of transformers that it holds.

    From the hub only that file is fetched. Where there is none, say what the checkpoint has instead.
    """
    with explained(source):
        folder = source.config_folder()
    return folder, read_config(folder)


def config_to_read(folder: Path):
    """Return the transformers config with which the weights of a folder are read.

    A checkpoint in 4 bits of bitsandbytes is read by `four_bit`, instead of by the quantiser of transformers.
    """
    config = read_config(folder)
    if is_quantised(config):
        from ..four_bit import use_our_quantizer

        use_our_quantizer(config)
    return config


def fetched(source: Source, *beside: Need) -> Path:
    """Return the folder with the whole checkpoint; where it has no weights to read, say what it has instead."""
    with explained(source):
        return source.folder(*beside)
