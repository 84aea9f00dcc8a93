"""Write a checkpoint in four bits once: shard by shard, resumed where it stopped, and read only when it is whole.

The codes lie in rows, as bitsandbytes has them, or in the strips that the fused kernel of this CPU reads (see
`kernel_layout`). Reordering them loses nothing, so the disk holds them once: a folder that was made for a GPU is packed
when a CPU wants it, one shard after the other.
"""

import hashlib
import json
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes
import torch
from safetensors import SafetensorError, safe_open
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
)
from .compat import has_fused_kernel
from .quantizer import nf4_config, our_entry
from .shards import PACKED, bytes_in_four_bits, holds_four_bits, write_four_bits

MANIFEST = "quantized.json"  # written last: where it is, the folder is whole
PACKING = "Reordering {} for this machine"
LAYOUT = 1  # counted up when the tensors that are written change


@dataclass(frozen=True)
class _Job:
    """What a folder in four bits is made of; the arguments of `quantized_folder`."""

    folder: Path
    files: list[Path]
    target: Path
    name: str
    fingerprint: str
    dtype: torch.dtype
    device: torch.device


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

    One tensor at a time is read, quantised on the device and freed there. Memory holds one file of the result: at most
    1 GiB, or the whole of a checkpoint that is a single file. A finished shard is renamed into place, so an interrupted
    call goes on with the shard that it was at. Of two processes the second waits for the first, and says so.

    For a CPU with the fused kernel the codes are written packed. A folder whose codes lie otherwise is converted, which
    loses nothing; a program that has the old files mapped keeps them. A GPU reads either.

    Args:
        folder: a Mistral, Mixtral or Llama checkpoint in 16 or 32 bits; or one in 4 bits of bitsandbytes, of which only
            the layout changes.
        files: its safetensors files.
        cache: the folder that holds the quantised folders of all models.
        name: of the model, for the folder's name.
        revision: the commit that the files belong to. None: there is none, and the files' times tell versions apart.
        dtype: the kept tensors are stored in it, and matrices are rounded to it before they are quantised.
        device: the device that quantises, and for which the codes are laid out. A GPU takes minutes where a CPU takes
            half an hour.

    Raises:
        ValueError: a matrix holds NaN or infinity, or the experts of a layer are fused into one tensor.
        OSError: the disk is too small, which is said before anything is written, or it filled up; what is finished
            stays.

    Warns: of a folder that is damaged or was made from something else; it is renamed and made again. And where a
        folder cannot be packed because nothing can be written there: then each process packs anew.
    """
    fingerprint = _fingerprint(folder, files, revision, dtype)
    target = cache / f"{re.sub(r'[^A-Za-z0-9._-]+', '--', name).strip('-.')}-nf4-{fingerprint[:12]}"
    job = _Job(folder, files, target, name, fingerprint, dtype, device)
    if _ready(job):
        return target
    try:
        with one_process_at_a_time(
            cache / ".locks" / f"{target.name}.lock", f"another process is quantising {name}: waiting for it to finish"
        ):
            if not _ready(job):
                _set_aside_what_is_foreign(job)
                _make(job)
    except OSError as error:
        if not _readable(job):
            raise
        warn_of_repeated_packing(name, error, stacklevel=6)
    return target


def packed_for(device: torch.device) -> bool:
    """Say whether a device reads packed codes: it is a CPU with AVX512_BF16."""
    return device.type == "cpu" and has_fused_kernel()


def warn_of_repeated_packing(name: str, error: OSError, *, stacklevel: int) -> None:
    """Warn that the packed codes of a model cannot be kept; `stacklevel` leads to the line that called `load`."""
    reason = str(error.strerror or error).rstrip(".")
    warnings.warn(
        f"{name} cannot be packed for this CPU on the disk ({reason}): every process packs it anew in its own memory, "
        "before the first token",
        stacklevel=stacklevel,
    )


def _ready(job: _Job) -> bool:
    """Whether the folder is whole, in a layout that the device reads."""
    manifest = _manifest(job)
    if manifest is None:
        return False
    return job.device.type != "cpu" or manifest.get("packed_for") == (PACKED if packed_for(job.device) else None)


def _readable(job: _Job) -> bool:
    """Whether every file is there, whatever the layout of each: the tensors themselves say how they lie."""
    return (job.target / "config.json").exists() and all((job.target / file.name).exists() for file in job.files)


def _manifest(job: _Job) -> dict | None:
    """What says that a finished result of the same origin lies there, every file with its size; None: it does not."""
    manifest = read_json_if_whole(job.target / MANIFEST)
    try:
        whole = manifest["fingerprint"] == job.fingerprint and all(
            (job.target / name).stat().st_size == size for name, size in manifest["files"].items()
        )
    except (OSError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole else None


def _make(job: _Job) -> None:
    """Quantise the shards that are not there yet, and convert those that are laid out for something else."""
    packed, target = packed_for(job.device), job.target

    def missing() -> list[Path]:
        return [file for file in job.files if not (target / file.name).exists()]

    def otherwise() -> list[Path]:
        layout = PACKED if packed else ""
        return [file for file in sorted(target.glob("*.safetensors")) if _about(file).get("packed_for", "") != layout]

    def left() -> Need:
        new = sum(bytes_in_four_bits(file, packed=packed, dtype=job.dtype) for file in missing())
        again = [file.stat().st_size for file in otherwise()]
        grow = sum(again) // 15 if packed else 0  # 1/32 byte per weight beside 0.52
        return Need(target, new + grow + max(again, default=0), f"for {job.name} in four bits")

    target.mkdir(parents=True, exist_ok=True)
    for half in target.glob(".*.[0-9]*"):
        half.unlink()  # the beginning of a file, left by a process that was killed: no other process works here
    check_disk(left())
    (target / MANIFEST).unlink(missing_ok=True)  # while it is converted the folder is not whole
    how = {"packed": packed, "dtype": job.dtype, "device": job.device, "fingerprint": job.fingerprint}
    with full_disk_explained(lambda: still_needed(left())):
        todo, total = missing(), sum(file.stat().st_size for file in job.files)
        done = total - sum(file.stat().st_size for file in todo)
        doing = PACKING if any(map(holds_four_bits, job.files)) else "Quantising {}"
        with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=doing.format(job.name)) as bar:
            for file in todo:
                write_four_bits(file, target / file.name, **how, bar=bar)
        if again := otherwise():
            total = sum(file.stat().st_size for file in again)
            with tqdm(total=total, unit="B", unit_scale=True, desc=PACKING.format(job.name)) as bar:
                for file in again:
                    write_four_bits(file, file, **how, bar=bar)
        _finish(job, packed)


def _fingerprint(folder: Path, files: list[Path], revision: str | None, dtype: torch.dtype) -> str:
    """A hexadecimal number that changes with anything that the result depends on, but for the layout."""
    stats = [(file.name, file.stat().st_size, None if revision else file.stat().st_mtime_ns) for file in files]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    basis = [LAYOUT, bitsandbytes.__version__, revision, config, stats, str(dtype)]
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()


def _set_aside_what_is_foreign(job: _Job) -> None:
    """Rename a folder that does not hold the beginning of this work."""
    target = job.target
    if not target.exists():
        return
    reason = "its list of files does not fit them" if (target / MANIFEST).exists() and not _manifest(job) else None
    for file in sorted(target.glob("*.safetensors")):
        try:
            made_from = _about(file).get("fingerprint")
        except (SafetensorError, OSError):
            reason = f"{file.name} is damaged"
        else:
            reason = reason if made_from == job.fingerprint else f"{file.name} was made from something else"
    if reason is None:
        return
    number = 1
    while (aside := target.with_name(f"{target.name}.aside-{number}")).exists():
        number += 1
    target.rename(aside)
    warnings.warn(f"{target.name}: {reason}; it is kept as {aside.name}, and quantised again", stacklevel=3)


def _about(file: Path) -> dict[str, str]:
    """What the header of a safetensors file says beside its tensors."""
    with safe_open(file, framework="np") as opened:
        return opened.metadata() or {}


def _finish(job: _Job, packed: bool) -> None:
    """Write what makes a checkpoint of the shards: index, tokenizer, config and, last, the manifest."""
    folder, target = job.folder, job.target
    shards = sorted(target.glob("*.safetensors"))
    if len(shards) > 1:
        write_index(target, [file.name for file in shards])
    for file in [*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("tokenizer.model")]:
        if file.name not in ("config.json", "model.safetensors.index.json", MANIFEST):
            shutil.copyfile(file, target / file.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    entry = our_entry(config.get("quantization_config")) or nf4_config().to_dict()
    config |= {"dtype": str(job.dtype).removeprefix("torch."), "quantization_config": entry}
    write_json(target / "config.json", config)
    sizes = {file.name: file.stat().st_size for file in shards}
    made = {"fingerprint": job.fingerprint, "packed_for": PACKED if packed else None, "files": sizes}
    write_json(target / MANIFEST, made)
