"""The device and the dtype of a model: chosen where the reader leaves them open, checked where she does not."""

import torch

from ..config import ModelConfig
from ..memory import weight_bytes

SMALL_BYTES = 2**30  # on a CPU, weights up to this size in float32 are kept in float32


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device to load on; None is CUDA where there is a GPU, otherwise the CPU.

    Raises:
        ValueError: no device that PyTorch knows and the lab supports.
        RuntimeError: a GPU that is not there.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device is {device!r}: expected 'cpu', 'cuda', 'cuda:1' or 'mps'") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device is {str(device)!r}: expected 'cpu', 'cuda', 'cuda:1' or 'mps'")
    gpus = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= gpus:
        raise RuntimeError(
            f"device is {str(device)!r}, but PyTorch sees {gpus or 'no'} such GPU here: use device='cpu'"
        )
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def choose_dtype(device: torch.device, bits: int | None, config: ModelConfig) -> torch.dtype:
    """Return the dtype of the weights, or with 4 bits of the arithmetic, on a device.

    Args:
        bits: 4, 8, 16 or 32; None leaves the choice between 16 and 32 to this function.
        config: of the model, whose size decides on a CPU.
    """
    if bits == 32:
        return torch.float32
    if bits == 8 or device.type == "mps":
        return torch.float16
    if device.type == "cuda":
        return dtype_of_card(device)
    small = bits is None and weight_bytes(config, "float32") <= SMALL_BYTES
    return torch.float32 if small else torch.bfloat16


def dtype_of_card(device: torch.device) -> torch.dtype:
    """Return the 16-bit dtype in which a CUDA card multiplies fast: bfloat16 from compute capability 8.0 on."""
    # Not `torch.cuda.is_bf16_supported()`: it is true on a T4 (7.5), which emulates bfloat16 slowly.
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def check_dtype(dtype: str | torch.dtype, bits: int | None) -> torch.dtype:
    """Return the dtype that the reader asked for.

    Raises:
        ValueError: no dtype that weights can have, or one that contradicts `bits`.
    """
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if chosen not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype is {dtype!r}: expected torch.float32, torch.bfloat16 or torch.float16, or its name")
    if bits in (16, 32) and chosen.itemsize * 8 != bits:
        raise ValueError(f"bits is {bits} and dtype is {dtype!r}: expected one of them, or two that agree")
    return chosen
