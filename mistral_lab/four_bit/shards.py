"""One file of a checkpoint, read in any form and written in four bits: quantised, packed for this CPU, or unpacked."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from tqdm.auto import tqdm

from ..files import read_header, write_aligned, written_whole
from .kernel_layout import SCALES, in_rows, in_strips
from .matrix import quantize_matrix

PACKED = "avx512_bf16"  # the instruction set that packed codes are for, as files name it
MATRIX = re.compile(r"\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|experts\.\d+\.w[123])\.weight$")
SHARD_BYTES = 2**30  # a longer file is written as several, so that memory holds no more than this


def quantized_tensors(name: str, weight: torch.Tensor, *, packed: bool = False) -> dict[str, torch.Tensor]:
    """Quantise one matrix to what a checkpoint in four bits holds of it.

    Args:
        name: of the tensor, ending in ".weight".
        weight: (out_features, in_features).
        packed: whether the codes lie in strips, as `kernel_layout` says.

    Returns:
        the codes under that name, scales and tables under names that start with it; on the CPU.
    """
    codes, state = quantize_matrix(name, weight, double=True)
    parts = {name: codes} | {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    parts = in_strips(parts) if packed else parts
    return {key: value.cpu() for key, value in parts.items()}


def holds_packed_codes(file: Path) -> bool:
    """Say whether a safetensors file holds codes in strips."""
    return any(name.endswith(f".weight.{SCALES}") for name in read_header(file))


def keeps_matrices_together(files: Iterable[Path]) -> bool:
    """Say whether codes, scales and tables of every 4-bit matrix lie in one file, as `write_four_bits` reads them."""
    places: dict[str, set[Path]] = defaultdict(set)
    for file in files:
        for name in read_header(file):
            places[name.partition(".weight.")[0].removesuffix(".weight")].add(file)
    return all(len(found) == 1 for found in places.values())


def holds_four_bits(file: Path) -> bool:
    """Say whether a safetensors file holds matrices in 4 bits of bitsandbytes."""
    return any(".quant_state." in name for name in read_header(file))


def write_four_bits(
    file: Path, out: Path, *, packed: bool, dtype: torch.dtype, device: torch.device, fingerprint: str, bar: tqdm
) -> None:
    """Write what a file of a checkpoint holds in four bits.

    A result of more than `SHARD_BYTES` becomes several files. The last of them has the name that was asked for: where
    it is, the others are too. A checkpoint that is a single file stays one, and so does a file that is rewritten.

    Args:
        file: safetensors, in 16 or 32 bits, or in 4 bits of bitsandbytes in either layout. It may be `out` itself.
        out: the file to write, whole or not at all.
        packed: whether the codes are to lie in strips.
        dtype: of what is not quantised. Matrices are rounded to it before they are quantised.
        device: the device that quantises.
        fingerprint: goes into the file's header, beside the layout.
        bar: moves by the bytes that were read.

    Raises:
        ValueError: a matrix holds NaN or infinity, or the experts of a layer are fused into one tensor.
    """
    held: dict[str, torch.Tensor] = {}
    about = {"format": "pt", "fingerprint": fingerprint, "packed_for": PACKED if packed else ""}
    splits = file.name != "model.safetensors" and file != out
    part = 0

    def write(path: Path) -> None:
        with written_whole(path) as temporary:
            write_aligned(held, temporary, about)
        held.clear()

    for tensors in _in_four_bits(file, packed, dtype, device, bar):
        size = sum(tensor.nbytes for tensor in held.values())
        if splits and held and size + sum(tensor.nbytes for tensor in tensors.values()) > SHARD_BYTES:
            part += 1
            write(out.with_name(f"{out.stem}.part-{part:02}.safetensors"))
        held |= tensors
    write(out)


def bytes_in_four_bits(file: Path, *, packed: bool, dtype: torch.dtype) -> int:
    """Return the size of what `write_four_bits` writes, or a little more."""
    header, nbytes = read_header(file), 0
    quantised = {name.partition(".quant_state.")[0] for name in header if ".quant_state." in name}
    for name, entry in header.items():
        count = math.prod(entry["shape"])
        begin, end = entry["data_offsets"]
        if name in quantised or MATRIX.search(name):
            weights = 2 * (end - begin) if name in quantised else count
            # Codes, scales, the scales' scales, at most 2 KB of tables; and the rounded scales.
            nbytes += weights // 2 + weights // 64 + weights // 4096 + 2048 + (weights // 32 if packed else 0)
        elif ".weight." not in name:
            nbytes += count * dtype.itemsize
        elif name.endswith((".absmax", ".nested_absmax")):
            nbytes += end - begin
    return nbytes


def _in_four_bits(
    file: Path, packed: bool, dtype: torch.dtype, device: torch.device, bar: tqdm
) -> Iterator[dict[str, torch.Tensor]]:
    """What belongs to one tensor of a model, in four bits where it is a matrix; one after the other."""
    with safe_open(file, framework="pt") as opened:
        together = defaultdict(list)  # name without ".weight" and what follows -> names
        for name in opened.keys():  # noqa: SIM118 - it is no dictionary
            together[name.partition(".weight.")[0].removesuffix(".weight")].append(name)
        for names in together.values():
            stored = {name: opened.get_tensor(name) for name in names}
            if len(stored) > 1:
                yield in_strips(stored) if packed else in_rows(stored)
            else:
                ((name, tensor),) = stored.items()
                if MATRIX.search(name) and not tensor.is_floating_point():
                    raise ValueError(f"{file.name} holds the codes of {name} without their scales: expected both")
                if tensor.dim() == 3:
                    raise ValueError(f"{name} holds all experts of a layer: expected one tensor per expert")
                tensor = tensor.to(dtype)
                matrix = MATRIX.search(name)
                yield quantized_tensors(name, tensor.to(device), packed=packed) if matrix else {name: tensor}
            bar.update(sum(tensor.nbytes for tensor in stored.values()))
