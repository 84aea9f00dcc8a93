"""Quantise the files of a checkpoint once: shard by shard, resumed where it stopped, and read only when it is whole."""

import hashlib
import json
import math
import re
import shutil
import warnings
from pathlib import Path

import bitsandbytes
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ..files import (
    Need,
    check_disk,
    full_disk_explained,
    one_process_at_a_time,
    read_json_if_whole,
    still_needed,
    write_index,
    write_json,
    written_whole,
)
from .matrix import quantize_matrix
from .quantizer import nf4_config

MATRIX = re.compile(r"\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|experts\.\d+\.w[123])\.weight$")
MANIFEST = "quantized.json"  # written last: where it is, the folder is whole
LAYOUT = 1  # counted up when the tensors that are written change


def quantized_folder(
    folder: Path,
    files: list[Path],
    *,
    cache: Path,
    name: str,
    revision: str | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Path:
    """Return a folder with the checkpoint in NF4 with double quantisation, made now or on an earlier call.

    One tensor at a time is read, quantised on the device and freed there, and memory holds one finished shard. A
    finished shard is renamed into place, so an interrupted call goes on with the shard that it was at. Of two processes
    the second waits for the first, and says so.

    Args:
        folder: a Mistral, Mixtral or Llama checkpoint in 16 or 32 bits.
        files: its safetensors files.
        cache: the folder that holds the quantised folders of all models.
        name: of the model, for the folder's name.
        revision: the commit that the files belong to. None: there is none, and the files' times tell versions apart.
        dtype: the kept tensors are stored in it, and matrices are rounded to it before they are quantised.
        device: the device that quantises; a GPU takes minutes where a CPU takes half an hour.

    Raises:
        ValueError: a matrix holds NaN or infinity, or the experts of a layer are fused into one tensor.
        OSError: the disk is too small, which is said before anything is written, or it filled up; what is finished
            stays.

    Warns: of a folder that is damaged or was made from something else; it is renamed and made again.
    """
    fingerprint = _fingerprint(folder, files, revision, dtype)
    target = cache / f"{re.sub(r'[^A-Za-z0-9._-]+', '--', name).strip('-.')}-nf4-{fingerprint[:12]}"
    if _whole(target, fingerprint):
        return target
    with one_process_at_a_time(
        cache / ".locks" / f"{target.name}.lock", f"another process is quantising {name}: waiting for it to finish"
    ):
        if not _whole(target, fingerprint):
            _set_aside_what_is_foreign(target, fingerprint)
            _make(folder, files, target, name, fingerprint, dtype, device)
    return target


def _make(
    folder: Path, files: list[Path], target: Path, name: str, fingerprint: str, dtype: torch.dtype, device: torch.device
) -> None:
    """Quantise the shards that are not there yet, under one progress bar over the bytes of all shards."""

    def missing() -> list[Path]:
        return [file for file in files if not (target / file.name).exists()]

    def left() -> Need:
        return Need(target, sum(_bytes_in_four_bits(file, dtype) for file in missing()), f"for {name} in four bits")

    target.mkdir(parents=True, exist_ok=True)
    for half in target.glob(".*.[0-9]*"):
        half.unlink()  # the beginning of a file, left by a process that was killed: no other process works here
    check_disk(left())
    todo = missing()
    total = sum(file.stat().st_size for file in files)
    done = total - sum(file.stat().st_size for file in todo)
    with (
        full_disk_explained(lambda: still_needed(left())),
        tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=f"Quantising {name}") as bar,
    ):
        for file in todo:
            quantize_file(file, target / file.name, fingerprint, dtype, device, bar)
        _finish(folder, files, target, fingerprint, dtype)


def _bytes_in_four_bits(file: Path, dtype: torch.dtype) -> int:
    """The size of a shard in four bits, or a little more."""
    nbytes = 0
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - it is no dictionary
            count = math.prod(opened.get_slice(name).get_shape())
            # Codes, scales, the scales' scales, and at most 2 KB of tables.
            packed = count // 2 + count // 64 + count // 4096 + 2048
            nbytes += packed if MATRIX.search(name) else count * dtype.itemsize
    return nbytes


def _fingerprint(folder: Path, files: list[Path], revision: str | None, dtype: torch.dtype) -> str:
    """A hexadecimal number that changes with anything that the result depends on."""
    stats = [(file.name, file.stat().st_size, None if revision else file.stat().st_mtime_ns) for file in files]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    basis = [LAYOUT, bitsandbytes.__version__, revision, config, stats, str(dtype)]
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()


def _whole(target: Path, fingerprint: str) -> bool:
    """Whether a finished result of the same origin lies there, every file with its size."""
    manifest = read_json_if_whole(target / MANIFEST)
    try:
        return manifest["fingerprint"] == fingerprint and all(
            (target / name).stat().st_size == size for name, size in manifest["files"].items()
        )
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def _set_aside_what_is_foreign(target: Path, fingerprint: str) -> None:
    """Rename a folder that does not hold the beginning of this work."""
    if not target.exists():
        return
    reason = "its list of files does not fit them" if (target / MANIFEST).exists() else None
    for file in sorted(target.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                made_from = (opened.metadata() or {}).get("fingerprint")
        except (SafetensorError, OSError):
            reason = f"{file.name} is damaged"
        else:
            reason = reason if made_from == fingerprint else f"{file.name} was made from something else"
    if reason is None:
        return
    number = 1
    while (aside := target.with_name(f"{target.name}.aside-{number}")).exists():
        number += 1
    target.rename(aside)
    warnings.warn(f"{target.name}: {reason}; it is kept as {aside.name}, and quantised again", stacklevel=3)


def quantize_file(file: Path, out: Path, fingerprint: str, dtype: torch.dtype, device: torch.device, bar: tqdm) -> None:
    """Write one shard in four bits, whole or not at all."""
    tensors = {}
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - it is no dictionary
            stored = opened.get_tensor(name)
            if stored.dim() == 3:
                raise ValueError(f"{name} holds all experts of a layer: expected one tensor per expert")
            tensor = stored.to(dtype)
            tensors |= quantized_tensors(name, tensor.to(device)) if MATRIX.search(name) else {name: tensor}
            bar.update(stored.nbytes)
    with written_whole(out) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", "fingerprint": fingerprint})


def quantized_tensors(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Quantise one matrix to what a checkpoint of bitsandbytes holds of it.

    Args:
        name: of the tensor, ending in ".weight".
        weight: (out_features, in_features).

    Returns:
        the codes under that name, scales and tables under names that start with it; on the CPU.
    """
    codes, state = quantize_matrix(name, weight, double=True)
    parts = {name: codes} | {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    return {key: value.cpu() for key, value in parts.items()}


def _finish(folder: Path, files: list[Path], target: Path, fingerprint: str, dtype: torch.dtype) -> None:
    """Write what makes a checkpoint of the shards: index, tokenizer, config and, last, the manifest."""
    if len(files) > 1:
        write_index(target, [file.name for file in files])
    for file in [*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("tokenizer.model")]:
        if file.name not in ("config.json", "model.safetensors.index.json"):
            shutil.copyfile(file, target / file.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"dtype": str(dtype).removeprefix("torch."), "quantization_config": nf4_config().to_dict()}
    write_json(target / "config.json", config)
    sizes = {file.name: (target / file.name).stat().st_size for file in files}
    write_json(target / MANIFEST, {"fingerprint": fingerprint, "files": sizes})
