"""Low-rank adapters beside four-bit matrices: put on, saved, and loaded on the model they belong to."""

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import peft
import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from .._checks import check_count

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
DENSE, EXPERTS = ("gate_proj", "up_proj", "down_proj"), ("w1", "w2", "w3")
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def target_names(config, targets: str | Sequence[str]) -> tuple[str, ...]:
    """Name the matrices that an adapter goes beside; the router is never among them.

    Args:
        config: a ModelConfig.
        targets: "attention"; "all", which adds the feed-forward network or every expert; or names of matrices.

    >>> from mistral_lab.config import PRESETS
    >>> target_names(PRESETS["mixtral-8x7b-v0.1"], "all")
    ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'w1', 'w2', 'w3')
    """
    if targets == "attention":
        return ATTENTION
    known = ATTENTION + (EXPERTS if config.num_experts else DENSE)
    if targets == "all":
        return known
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    for name in names:
        if name not in known:
            raise ValueError(
                f"no matrix that can be adapted is called {name!r}: expected 'attention', 'all' or some of "
                f"{', '.join(known)}"
            )
    if not names:
        raise ValueError("targets is empty: expected 'attention', 'all' or names of matrices")
    return names


def add_adapter(loaded, *, rank: int = 8, targets: str | Sequence[str] = "attention", seed: int = 0):
    """Freeze a model and put an adapter of low rank beside some of its matrices.

    Equation: y = W x + (alpha / rank) · B (A x), with alpha = 2 · rank; A (rank, in) random, B (out, rank) zero, so
        that at first y is what it was. Only A and B are trained, in float32.

    Source: arXiv:2106.09685, section 4.1; arXiv:2305.14314, section 3 (beside four-bit weights).

    Args:
        loaded: of `load(..., bits=4)`, without an adapter; its model is changed in place.
        rank: columns of B.
        targets: as in `target_names`.
        seed: of A. PyTorch's random state is put back.

    Returns:
        the same, with a `peft.PeftModel` as its model.

    Raises:
        TypeError, ValueError: a rank below 1, a target that matches nothing, or a model that has an adapter already.
        NotImplementedError: experts that are not separate matrices, as in a Mixtral that is not in four bits.

    Differs: PEFT, told to adapt w1, w2 and w3 of a Mixtral, looks for the fused tensors of transformers instead. In
        four bits the experts are separate matrices: it would warn and adapt none of them; here each gets an adapter.
    """
    check_count("rank", rank)
    names = target_names(loaded.config, targets)
    if isinstance(loaded.model, peft.PeftModel):
        raise ValueError(f"{loaded.name} has an adapter already: load the model again for another one")
    _check_separate_experts(loaded, names)
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(names),
        task_type="CAUSAL_LM",
    )
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices), separate_experts(loaded.model):
        torch.manual_seed(seed)
        model = peft.get_peft_model(loaded.model, settings)
    settings.base_model_name_or_path = loaded.name  # not the folder it lies in, which names one machine
    _check_complete(loaded, model, names)
    return replace(loaded, model=model.eval())


def save_adapter(loaded, folder: str | os.PathLike) -> int:
    """Write the adapter alone, as PEFT does: the name of its model, and A and B of every matrix.

    Args:
        loaded: of `add_adapter` or `load_adapter`.
        folder: made where it is missing.

    Returns:
        bytes of the weights file.
    """
    _check_adapted(loaded)
    loaded.model.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the hub about the vocabulary
    Path(folder, "README.md").unlink(missing_ok=True)  # a form with nothing filled in
    return Path(folder, WEIGHTS).stat().st_size


def load_adapter(loaded, folder: str | os.PathLike):
    """Put a saved adapter on the model that it was trained with.

    Args:
        loaded: of `load(..., bits=4)`, without an adapter; its model is changed in place.
        folder: of `save_adapter`.

    Returns:
        the same, with a `peft.PeftModel` as its model; it can be trained further.

    Raises:
        FileNotFoundError: no adapter in the folder.
        ValueError: an adapter for another model, by its name or by the shape of a matrix.
    """
    folder = Path(folder)
    for file in (SETTINGS, WEIGHTS):
        if not (folder / file).exists():
            raise FileNotFoundError(f"{folder} has no {file}: expected a folder that save_adapter wrote")
    if isinstance(loaded.model, peft.PeftModel):
        raise ValueError(f"{loaded.name} has an adapter already: load the model again for another one")
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    owner = settings.get("base_model_name_or_path")
    if owner != loaded.name:
        raise ValueError(f"the adapter in {folder} was trained for {owner}, and this is {loaded.name}")
    names = target_names(loaded.config, sorted(settings["target_modules"]))
    _check_separate_experts(loaded, names)
    _check_shapes(loaded, folder)
    with separate_experts(loaded.model):
        model = peft.PeftModel.from_pretrained(loaded.model, str(folder), is_trainable=True)
    _check_complete(loaded, model, names)
    return replace(loaded, model=model.eval())


def adapted(model) -> dict[str, LoraLayer]:
    """The matrices that have an adapter, by their name in the model without one."""
    layers = model.base_model.model.named_modules()
    return {name: layer for name, layer in layers if isinstance(layer, LoraLayer)}


@contextmanager
def separate_experts(model) -> Iterator[None]:
    """Hide from PEFT that this is a Mixtral: it would send adapters of w1, w2 and w3 to fused tensors of transformers,
    which a model in four bits does not have, both when it adds and when it loads them."""
    model.config.model_type = "a mixture with separate experts"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by names that will change
            yield
    finally:
        del model.config.model_type  # the class has it


def _check_separate_experts(loaded, names: Sequence[str]) -> None:
    present = {name.rpartition(".")[2] for name, _ in loaded.model.named_modules()}
    if missing := [name for name in names if name not in present]:
        raise NotImplementedError(
            f"the experts of {loaded.name} are fused, so there is no {missing[0]} to adapt: load it with bits=4, or "
            "adapt attention alone"
        )


def _check_complete(loaded, model, names: Sequence[str]) -> None:
    config = loaded.config
    expected = config.n_layers * sum(1 if name not in EXPERTS else config.num_experts for name in names)
    if len(adapted(model)) != expected:
        raise RuntimeError(f"{len(adapted(model))} matrices got an adapter, expected {expected}")


def _check_adapted(loaded) -> None:
    if not isinstance(loaded.model, peft.PeftModel):
        raise ValueError(f"{loaded.name} has no adapter: add one with add_adapter, or load one with load_adapter")


def _check_shapes(loaded, folder: Path) -> None:
    """Compare the width of every A, and the height of every B, with the matrix beside which they are to stand."""
    with safe_open(folder / WEIGHTS, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - a handle of safetensors is no dict
            matrix, _, part = name.removesuffix(".weight").removeprefix("base_model.model.").rpartition(".")
            side = 1 if part == "lora_A" else 0
            try:
                module = loaded.model.get_submodule(matrix)
            except AttributeError:
                raise ValueError(f"the adapter in {folder} is for another model: there is no {matrix} here") from None
            expected = module.in_features if side else module.out_features
            found = tensors.get_slice(name).get_shape()[side]
            if found != expected:
                raise ValueError(
                    f"the adapter in {folder} is for another model: its {matrix} has {found} "
                    f"{'inputs' if side else 'outputs'}, here it has {expected}"
                )
