"""An adapter as files: saved whole, and loaded onto the model that it belongs to."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import peft
from safetensors import SafetensorError, safe_open
from torch import nn

from ..checkpoints import ALIASES
from ..files import private_place
from ..loading.loaded import Loaded
from .adapters import base_name, check_adapted, check_can_take_adapter, check_complete, separate_experts, target_names

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def save_adapter(loaded: Loaded, folder: str | os.PathLike) -> int:
    """Write the adapter alone, as PEFT does: the name of its model, and A and B of every adapted matrix.

    Args:
        loaded: what `add_adapter` or `load_adapter` returned.
        folder: created where it is missing. An adapter in it is replaced once the new one is whole; other files stay.

    Returns:
        the size of the weights file in bytes.

    Raises:
        ValueError: the model has no adapter.
    """
    check_adapted(loaded)
    folder = Path(folder)
    with private_place(folder / WEIGHTS) as place:
        # Without this argument PEFT asks the hub about the vocabulary. PEFT's README is an empty form: it is left out.
        loaded.model.save_pretrained(place, save_embedding_layers=False)
        for file in (WEIGHTS, SETTINGS):
            (place / file).replace(folder / file)
    return (folder / WEIGHTS).stat().st_size


def load_adapter(loaded: Loaded, folder: str | os.PathLike) -> Loaded:
    """Put a saved adapter onto the model that it was trained with.

    Args:
        loaded: what `load(..., bits=4)` returned, without an adapter; its model is changed in place.
        folder: a folder that `save_adapter` wrote.

    Returns:
        the same model with its adapter: `model` is now a `peft.PeftModel`, which can be trained further.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: the adapter is for another model, by its name or by its matrices and their shapes; or its files are
            damaged.
    """
    folder = Path(folder)
    for file in (SETTINGS, WEIGHTS):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} has no {file}: expected a folder that save_adapter wrote")
    owner, targets, rank = _read_settings(folder / SETTINGS)
    here = base_name(loaded)
    if ALIASES.get(owner, (owner,))[0] != ALIASES.get(here, (here,))[0]:
        raise ValueError(f"the adapter in {folder} was trained for {owner}, and this is {here}")
    names = target_names(loaded.config, targets)
    check_can_take_adapter(loaded, names)
    _check_tensors(folder, _expected_shapes(loaded.model, names, rank))
    with separate_experts(loaded.model):
        model = peft.PeftModel.from_pretrained(loaded.model, str(folder), is_trainable=True)
    check_complete(loaded, model, names)
    return replace(loaded, model=model.eval())


def _read_settings(file: Path) -> tuple[str, list[str], int]:
    """The name of the model, the names of the matrices and the rank."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        return settings["base_model_name_or_path"], sorted(settings["target_modules"]), settings["r"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is damaged: copy it again, or save the adapter again") from None


def _expected_shapes(model: nn.Module, names: Sequence[str], rank: int) -> dict[str, tuple[int, int]]:
    """The tensors that an adapter for these matrices must have, with their shapes."""
    shapes = {}
    for matrix, module in model.named_modules():
        if matrix.rpartition(".")[2] in names:
            shapes[f"base_model.model.{matrix}.lora_A.weight"] = (rank, module.in_features)
            shapes[f"base_model.model.{matrix}.lora_B.weight"] = (module.out_features, rank)
    return shapes


def _check_tensors(folder: Path, expected: dict[str, tuple[int, int]]) -> None:
    """Compare the names and shapes of tensors with the expected ones, and refuse values that are not finite.

    PEFT would fill a missing tensor with random numbers.
    """
    foreign = f"the adapter in {folder} is for another model"
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as tensors:
            found = set(tensors.keys())
            for name in sorted(found - expected.keys()):
                raise ValueError(f"{foreign}: there is no {_matrix_name(name)} here that its settings name")
            for name in sorted(expected.keys() - found):
                raise ValueError(f"{foreign}, or incomplete: it has no {name}")
            for name, shape in expected.items():
                _check_shape(folder, foreign, name, tuple(tensors.get_slice(name).get_shape()), shape)
                if not tensors.get_tensor(name).isfinite().all():
                    raise ValueError(f"the adapter in {folder} holds numbers that are not finite, in {name}")
    except SafetensorError:
        raise ValueError(f"{folder / WEIGHTS} is damaged: copy it again, or save the adapter again") from None


def _check_shape(folder: Path, foreign: str, name: str, found: tuple[int, ...], expected: tuple[int, int]) -> None:
    """Refuse a tensor whose shape is not the rank by the width of its matrix."""
    rank_axis, matrix_axis = (0, 1) if ".lora_A." in name else (1, 0)
    if len(found) != 2 or found[rank_axis] != expected[rank_axis]:
        raise ValueError(
            f"the adapter in {folder} is damaged: by its settings {name} has shape {expected}, in its file {found}"
        )
    if found[matrix_axis] != expected[matrix_axis]:
        side = "inputs" if matrix_axis else "outputs"
        raise ValueError(
            f"{foreign}: its {_matrix_name(name)} has {found[matrix_axis]} {side}, here it has {expected[matrix_axis]}"
        )


def _matrix_name(tensor_name: str) -> str:
    """The name of the matrix that a tensor of an adapter belongs to."""
    return tensor_name.removesuffix(".weight").removeprefix("base_model.model.").rpartition(".")[0]
