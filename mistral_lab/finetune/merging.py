"""The adapter merged into its model, and the result as 16-bit files that plain transformers reads."""

import copy
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from ..checkpoints import locate
from ..files import folder_written_whole, write_shards
from ..four_bit import ExactLinear4bit
from ..loading.loaded import Loaded
from .adapters import adapted, base_name, check_adapted

SHARD_BYTES = 2 * 2**30
DTYPE = torch.bfloat16


def export(loaded: Loaded, folder: str | os.PathLike) -> Path:
    """Merge an adapter into its model and write a plain Hugging Face checkpoint in bfloat16, whole or not at all.

    Equation: W' = dequantised(W) + (alpha / rank) · B A, added in float32, rounded once

    The four-bit weights are dequantised and the sum is not quantised again, so no part of the adapter is rounded to
    sixteen values. The tokenizer is written too, and CHANGES.md, because section 4(b) of the Apache License 2.0
    requires changed files to say so. LICENSE and NOTICE files beside the model's own weights are copied, as 4(a) and
    4(d) require.

    Args:
        loaded: what `add_adapter` or `load_adapter` returned, in four bits; it is not changed.
        folder: where to write; it must not exist.

    Returns:
        the folder.

    Raises:
        FileExistsError: there is something at that path already.
        ValueError: the model has no adapter, or is not in four bits (PEFT's `loaded.model.merge_and_unload()` merges
            such a model exactly).

    Differs: PEFT's `merge_and_unload` quantises the sum to four bits again, which rounds away part of the adapter.
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
def merged(loaded: Loaded) -> Iterator[tuple[str, torch.Tensor]]:
    """Give the tensors of the model with its adapter merged, one at a time, under the names that a checkpoint uses.

    Args:
        loaded: what `add_adapter` or `load_adapter` returned, in four bits.

    Yields:
        the name and the tensor, in bfloat16 on the CPU.
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


def _checkpoint_name(loaded: Loaded, name: str) -> str:
    return name.replace(".mlp.", ".block_sparse_moe.") if loaded.config.num_experts else name


def _write_changes(loaded: Loaded, folder: Path) -> None:
    settings = loaded.model.peft_config["default"]
    (folder / "CHANGES.md").write_text(
        f"These weights are a changed version of {base_name(loaded)}.\n\n"
        "Changed: its matrices were rounded to four bits (NF4) and written out in bfloat16,\n"
        f"and a low-rank adapter of rank {settings.r}, trained beside\n"
        f"{', '.join(sorted(settings.target_modules))}, was added to them.\n",
        encoding="utf-8",
    )


def _licences(loaded: Loaded) -> list[Path]:
    """The licence files of the original model; what was loaded may be the lab's own copy of it in four bits."""
    try:
        origin = locate(loaded.name).config_folder()
    except (OSError, ValueError):  # the original was moved or is out of reach, which is no reason to fail
        return []
    return [file for pattern in ("LICENSE*", "NOTICE*") for file in sorted(origin.glob(pattern)) if file.is_file()]
