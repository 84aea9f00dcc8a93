"""Low-rank adapters beside four-bit matrices: which matrices get one, and how it is added."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from ..arguments import check_count
from ..checkpoints import locate
from ..config import ModelConfig
from ..loading.loaded import Loaded

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
DENSE, EXPERTS = ("gate_proj", "up_proj", "down_proj"), ("w1", "w2", "w3")


def target_names(config: ModelConfig, targets: str | Sequence[str]) -> tuple[str, ...]:
    """Name the matrices that get an adapter; the router is never among them.

    Args:
        config: the shape of the model.
        targets: "attention"; "all", which adds the feed-forward network or every expert; or names of matrices, each
            of which counts once.

    Raises:
        ValueError: no target, or one that names no matrix of this model.

    >>> from mistral_lab.config import PRESETS
    >>> target_names(PRESETS["mixtral-8x7b-v0.1"], "all")
    ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'w1', 'w2', 'w3')
    """
    if targets == "attention":
        return ATTENTION
    known = ATTENTION + (EXPERTS if config.num_experts else DENSE)
    if targets == "all":
        return known
    names = (targets,) if isinstance(targets, str) else tuple(dict.fromkeys(targets))
    for name in names:
        if name not in known:
            raise ValueError(
                f"no matrix that can be adapted is called {name!r}: expected 'attention', 'all' or some of "
                f"{', '.join(known)}"
            )
    if not names:
        raise ValueError("targets is empty: expected 'attention', 'all' or names of matrices")
    return names


def add_adapter(loaded: Loaded, *, rank: int = 8, targets: str | Sequence[str] = "attention", seed: int = 0) -> Loaded:
    """Freeze a model and put a low-rank adapter beside some of its matrices.

    Equation: y = W x + (alpha / rank) · B (A x), with alpha = 2 · rank. A (rank, in) starts random and B (out, rank)
        starts at zero, so that at first y is what it was. Only A and B are trained, in float32.

    Source: arXiv:2106.09685, section 4.1; arXiv:2305.14314, section 3 (beside four-bit weights).

    Args:
        loaded: what `load(..., bits=4)` returned, without an adapter; its model is changed in place.
        rank: the number of columns of B.
        targets: which matrices get an adapter, as in `target_names`.
        seed: the seed of A. PyTorch's random state is restored afterwards.

    Returns:
        the same model with its adapter: `model` is now a `peft.PeftModel`.

    Raises:
        TypeError, ValueError: a rank below 1, a target that matches nothing, or a model that has an adapter already.
        NotImplementedError: experts that are not separate matrices, as in a Mixtral that is not in four bits.

    Differs: told to adapt w1, w2 and w3 of a Mixtral, PEFT looks for the fused tensors of transformers instead. In four
        bits the experts are separate matrices, so PEFT would warn and adapt none of them. Here each gets an adapter.
    """
    check_count("rank", rank)
    names = target_names(loaded.config, targets)
    check_can_take_adapter(loaded, names)
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
    settings.base_model_name_or_path = base_name(loaded)
    check_complete(loaded, model, names)
    return replace(loaded, model=model.eval())


def adapted(model: peft.PeftModel) -> dict[str, LoraLayer]:
    """The matrices that have an adapter, by their names in the model without one."""
    layers = model.base_model.model.named_modules()
    return {name: layer for name, layer in layers if isinstance(layer, LoraLayer)}


@contextmanager
def separate_experts(model: nn.Module) -> Iterator[None]:
    """Hide from PEFT that this is a Mixtral, both while it adds and while it loads an adapter.

    Otherwise PEFT would send the adapters of w1, w2 and w3 to the fused tensors of transformers, which a model in four
    bits does not have.
    """
    model.config.model_type = "a mixture with separate experts"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT calls transformers by names that will change
            yield
    finally:
        del model.config.model_type  # the class has it


def base_name(loaded: Loaded) -> str:
    """The name by which an adapter knows its model. Of a folder only the last part: the rest names one machine."""
    try:
        path = locate(loaded.name).path
    except (FileNotFoundError, ValueError):  # the folder was moved after loading
        path = Path(loaded.name)
    return Path(os.path.abspath(path)).name if path else loaded.name


def check_can_take_adapter(loaded: Loaded, names: Sequence[str]) -> None:
    """Refuse a model that has an adapter already, and one whose experts are fused.

    The model that `add_adapter` was given has the adapter too, because it was changed in place.
    """
    if _has_adapter(loaded.model):
        raise ValueError(f"{loaded.name} has an adapter already: load the model again for another one")
    present = {name.rpartition(".")[2] for name, _ in loaded.model.named_modules()}
    if missing := [name for name in names if name not in present]:
        raise NotImplementedError(
            f"the experts of {loaded.name} are fused, so there is no {missing[0]} to adapt: load it with bits=4, or "
            "adapt attention alone"
        )


def check_complete(loaded: Loaded, model: peft.PeftModel, names: Sequence[str]) -> None:
    """Count the matrices that got an adapter: PEFT silently skips those that it does not find."""
    config = loaded.config
    expected = config.n_layers * sum(1 if name not in EXPERTS else config.num_experts for name in names)
    if len(adapted(model)) != expected:
        raise RuntimeError(f"{len(adapted(model))} matrices got an adapter, expected {expected}")


def check_adapted(loaded: Loaded) -> None:
    """Refuse a model without an adapter, and the variable that was given to `add_adapter` instead of its result."""
    if isinstance(loaded.model, peft.PeftModel):
        return
    if _has_adapter(loaded.model):
        raise ValueError(f"this is {loaded.name} from before: use what add_adapter or load_adapter returned")
    raise ValueError(f"{loaded.name} has no adapter: add one with add_adapter, or load one with load_adapter")


def _has_adapter(model: nn.Module) -> bool:
    return any(isinstance(module, LoraLayer) for module in model.modules())
