"""Where the layers of an unquantised model go: onto the GPUs, then into the computer's memory, then onto the disk."""

import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from accelerate import infer_auto_device_map
from accelerate.utils import get_balanced_memory
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..files import Need, check_disk, lab_cache
from ..memory import free_bytes
from .compat import undivided_classes

Device = int | str  # the number of a GPU, "cpu" or "disk"
USED = 0.9  # of what is free; the rest is for the cache, the workspace and what a layer takes on its way in


def free_memory() -> dict[Device, int]:
    """Return the bytes that weights may take on each GPU and in the computer's memory, of what is free now."""
    free: dict[Device, int] = {gpu: free_bytes(torch.device("cuda", gpu)) for gpu in range(torch.cuda.device_count())}
    free["cpu"] = free_bytes("cpu")
    return {device: int(USED * size) for device, size in free.items()}


def spread(config, dtype: torch.dtype, room: dict[Device, int]) -> tuple[dict[str, Device], int]:
    """Decide where every layer of an unquantised model lies.

    Args:
        config: of transformers.
        dtype: of the weights.
        room: bytes that weights may take on each device, as `free_memory` gives them. What does not fit goes to the
            disk. Space for the largest layer stays free on the first GPU, where layers from elsewhere are computed.

    Returns:
        module to device, as `from_pretrained` takes it; and the bytes that have to be written to the disk. The layers
        of a dense model are read from the checkpoint itself. The experts of a mixture have to be written, because
        transformers merges them.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    whole = undivided_classes(model)
    room = get_balanced_memory(model, dict(room), no_split_module_classes=whole)
    device_map = infer_auto_device_map(model, room, no_split_module_classes=whole)
    # Where one device takes all, accelerate names the model itself: "".
    on_disk = tuple(f"{module}." if module else "" for module, device in device_map.items() if device == "disk")
    written = sum(
        parameter.nbytes
        for name, parameter in model.named_parameters()
        if parameter.dim() == 3 and f"{name}.".startswith(on_disk)
    )
    return device_map, written


def spread_here(name: str, config, dtype: torch.dtype) -> tuple[dict[str, Device], list[Need]]:
    """Spread an unquantised model over this machine, as `spread` does, and look whether the disk can take its part.

    Args:
        name: of the model, for the messages.
        config, dtype: as in `spread`.

    Returns:
        module to device; and what the disk has to take, nothing where no bytes are written.

    Raises:
        OSError: the disk is too full.

    Warns: of what is written, and where.
    """
    device_map, written = spread(config, dtype, free_memory())
    if not written:
        return device_map, []
    need = need_of_experts(lab_cache(), written)
    check_disk(need)
    warnings.warn(
        f"{name} is larger than the GPUs and the memory: {need.nbytes / 1e9:.1f} GB of its experts are written to "
        f"a folder in {need.folder} for as long as the model is used, and read again for every token; bits=4 takes "
        "a quarter",
        stacklevel=3,  # the line that called `load`
    )
    return device_map, [need]


def need_of_experts(folder: Path, written: int) -> Need:
    """Return what the disk has to take for the bytes of `spread`."""
    return Need(folder, written, "for experts that fit neither the GPUs nor the memory")


@contextmanager
def offload_folder(need: Need) -> Iterator[Path]:
    """Make a new folder in the lab's cache for the layers on the disk; a failure leaves nothing of it.

    Folders left by processes that were killed are removed first. Then the disk is looked at once more: a download may
    have come between, and a disk that fills up under a mapped file ends the process.

    Raises:
        OSError: the disk is too full.
    """
    need.folder.mkdir(parents=True, exist_ok=True)
    for left in need.folder.glob("offload-*-*"):
        owner = left.name.split("-")[1]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    check_disk(need)
    place = Path(tempfile.mkdtemp(prefix=f"offload-{os.getpid()}-", dir=need.folder))
    try:
        yield place
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def remove_with(model: PreTrainedModel, folder: Path) -> None:
    """Remove a folder when the model goes, or the program ends."""
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
