"""A tuned model as files of one's own: the adapter merged into 16-bit weights that plain transformers reads."""

import copy
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from ..checkpoints import locate
from ..files import folder_written_whole, write_shards
from ..four_bit import ExactLinear4bit
from .adapters import adapted, base_name, check_adapted

SHARD_BYTES = 2 * 2**30
DTYPE = torch.bfloat16


def export(loaded, folder: str | os.PathLike) -> Path:
    """Merge an adapter into its model and write a plain Hugging Face checkpoint in bfloat16, whole or not at all.

    Equation: W' = dequantised(W) + (alpha / rank) · B A, added in float32, rounded once

    The four-bit weights are written out and not quantised again, so nothing of the adapter is lost to sixteen values.
    Beside the weights it writes a tokenizer, and CHANGES.md: section 4(b) of the Apache License 2.0 asks that changed
    files say so. LICENSE and NOTICE files that lie beside the model's own weights are copied, as 4(a) and 4(d) ask.

    Args:
        loaded: of `add_adapter` or `load_adapter`, in four bits; it stays as it is.
        folder: must not exist.

    Returns:
        the folder.

    Raises:
        FileExistsError: something is there already.
        ValueError: no adapter, or a model that is not in four bits (`loaded.model.merge_and_unload()` of PEFT merges
            that exactly).

    Differs: `merge_and_unload` of PEFT quantises the sum to four bits again, which rounds the adapter away in part.
    """
    check_adapted(loaded)
    folder = Path(folder)
    if not any(isinstance(module, ExactLinear4bit) for module in loaded.model.modules()):
        raise ValueError(f"{loaded.name} is not in four bits: merge it with loaded.model.merge_and_unload()")
    with folder_written_whole(folder) as place:
        write_shards(merged(loaded), place, shard_bytes=SHARD_BYTES)
        config = copy.deepcopy(loaded.model.config)
        del config.quantization_config
        config.dtype = DTYPE
        config.save_pretrained(place)
        loaded.tokenizer.save_pretrained(place)
        _write_changes(loaded, place)
        for file in _licences(loaded):
            shutil.copyfile(file, place / file.name)
    return folder


@torch.no_grad()
def merged(loaded) -> Iterator[tuple[str, torch.Tensor]]:
    """Give every tensor of the model with its adapter merged, one at a time, under the names of a checkpoint.

    Args:
        loaded: of `add_adapter` or `load_adapter`, in four bits.

    Yields:
        name and tensor, bfloat16, on the CPU.
    """
    model = loaded.model.base_model.model
    beside = adapted(loaded.model)
    for name, module in model.named_modules():
        if isinstance(module, ExactLinear4bit):
            place = name.removesuffix(".base_layer")
            weight = module.dequantized().float()
            if place in beside:
                weight += beside[place].get_delta_weight("default").float()
            yield _checkpoint_name(loaded, f"{place}.weight"), weight.to(DTYPE).cpu()
        elif ".lora_" not in name and not (name == "lm_head" and loaded.config.tied_embeddings):
            for key, parameter in module.named_parameters(recurse=False):
                yield _checkpoint_name(loaded, f"{name}.{key}"), parameter.to(DTYPE).cpu()


def _checkpoint_name(loaded, name: str) -> str:
    return name.replace(".mlp.", ".block_sparse_moe.") if loaded.config.num_experts else name


def _write_changes(loaded, folder: Path) -> None:
    settings = loaded.model.peft_config["default"]
    (folder / "CHANGES.md").write_text(
        f"These weights are a changed version of {base_name(loaded)}.\n\n"
        "Changed: its matrices were rounded to four bits (NF4) and written out in bfloat16,\n"
        f"and a low-rank adapter of rank {settings.r}, trained beside\n"
        f"{', '.join(sorted(settings.target_modules))}, was added to them.\n",
        encoding="utf-8",
    )


def _licences(loaded) -> list[Path]:
    """What lies beside the original; the folder from which weights were read may be the lab's own copy in four bits."""
    try:
        origin = locate(loaded.name).config_folder()
    except (OSError, ValueError):  # moved since, or out of reach: no reason to lose what was trained
        return []
    return [file for pattern in ("LICENSE*", "NOTICE*") for file in sorted(origin.glob(pattern)) if file.is_file()]
