"""The weights of a checkpoint on disk: safetensors files, the index that names them, and whether all are whole."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .whole import write_json

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a checkpoint: the only one, or those that the index names.

    Raises:
        FileNotFoundError: there is neither a single file nor an index.
        OSError: the index is damaged.
    """
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        pickles = sorted(file.name for end in ("bin", "pt", "pth") for file in folder.glob(f"*.{end}"))
        found = f" (only {pickles[0]})" if pickles else ""
        raise FileNotFoundError(
            f"no {WEIGHTS} in {folder}{found}: weights are read from safetensors alone, because opening a "
            "pickle file (.bin, .pt, .pth) can run any code; load the safetensors copy of this model"
        )
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OSError(f"{index} is damaged: copy or download it again") from None


def check_weights(folder: Path) -> None:
    """Raise unless every weight file of a checkpoint is there and has the size that its header states.

    Raises:
        FileNotFoundError: a file is missing.
        OSError: a file or the index is truncated or damaged.
    """
    for file in weight_files(folder):
        try:
            check_safetensors(file)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder} lacks {file.name}, named by its index: copy or download it again"
            ) from None


def has_weights(folder: Path) -> bool:
    """Say whether every weight file of a checkpoint is there; whether each is whole, `check_weights` finds out."""
    try:
        return all(file.is_file() for file in weight_files(folder))
    except OSError:
        return False


def check_safetensors(file: Path) -> None:
    """Open the header of a safetensors file. It states the file's size, so a file that was cut short is noticed.

    Raises:
        FileNotFoundError: the file is missing.
        OSError: the file is truncated or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):
            pass
    except SafetensorError as error:
        raise OSError(f"{file} is truncated or damaged ({error}): copy or download it again") from None


def read_header(path: str | os.PathLike) -> dict[str, dict]:
    """Read what a safetensors file holds, without its tensors.

    Source: github.com/huggingface/safetensors, README, "Format": eight bytes of length, then a JSON object.

    Returns:
        for each tensor name a dict with "dtype", "shape" and "data_offsets".
    """
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return header


def write_shards(tensors: Iterable[tuple[str, "torch.Tensor"]], folder: Path, *, shard_bytes: int) -> None:
    """Write the weights of a checkpoint, and an index where there is more than one file.

    Args:
        tensors: name and tensor, one at a time; no more than one shard is held in memory.
        folder: an empty one.
        shard_bytes: a shard is written as soon as its tensors reach this size.
    """
    from safetensors.torch import save_file

    shard: dict[str, torch.Tensor] = {}
    names: list[str] = []

    def write() -> None:
        names.append(f"model-{len(names) + 1:05}.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in shard.items()}, folder / names[-1], {"format": "pt"})
        shard.clear()

    for name, tensor in tensors:
        shard[name] = tensor
        if sum(held.nbytes for held in shard.values()) >= shard_bytes:
            write()
    if shard:
        write()
    if len(names) == 1:
        (folder / names[0]).rename(folder / WEIGHTS)
    else:
        write_index(folder, names)


ALIGNMENT = 64  # bytes: a cache line, and what AVX-512 loads at once
TYPES = {  # torch's name -> safetensors' name
    "float64": "F64",
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
}


def write_aligned(tensors: dict[str, "torch.Tensor"], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file whose large tensors begin at multiples of 64 bytes.

    A program that maps the file then reads whole cache lines. safetensors itself aligns by 8 bytes: a product with
    4-bit weights of which each load touches two lines takes twice as long. All tensors whose size is a multiple of 64
    bytes come first, the rest in the order of its types, the widest first; and spaces fill the header up.

    Source: github.com/huggingface/safetensors, README, "Format": eight bytes of length, a JSON object that may end in
    spaces, the tensors without holes.

    Args:
        tensors: on the CPU, of one of `TYPES`.
        path: the file.
        metadata: texts that go into the header.
    """
    import torch

    ordered = sorted(tensors.items(), key=lambda item: (item[1].nbytes % ALIGNMENT > 0, -item[1].itemsize, item[0]))
    header: dict[str, dict] = {"__metadata__": metadata}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        kind = TYPES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, tensor in ordered:
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy())


def write_index(folder: Path, names: Sequence[str]) -> None:
    """Write the index of a checkpoint: which of its files holds which tensor.

    Args:
        folder: with the files in it.
        names: of the files.
    """
    where: dict[str, str] = {}
    total = 0
    for name in names:
        header = read_header(folder / name)
        where |= dict.fromkeys(header, name)
        total += sum(_nbytes(entry) for entry in header.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _nbytes(entry: dict) -> int:
    begin, end = entry["data_offsets"]
    return end - begin
