"""Low-rank adapters beside four-bit matrices: where they go, and how they are put on."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import peft
import torch
from peft.tuners.lora import LoraLayer

from ..arguments import check_count
from ..checkpoints import locate

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
DENSE, EXPERTS = ("gate_proj", "up_proj", "down_proj"), ("w1", "w2", "w3")


def target_names(config, targets: str | Sequence[str]) -> tuple[str, ...]:
    """Name the matrices that an adapter goes beside; the router is never among them.

    Args:
        config: a ModelConfig.
        targets: "attention"; "all", which adds the feed-forward network or every expert; or names of matrices, each
            of which counts once.

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


def base_name(loaded) -> str:
    """The name by which an adapter knows its model: of a folder the last part, because the rest names one machine."""
    try:
        path = locate(loaded.name).path
    except (FileNotFoundError, ValueError):  # moved since it was loaded
        path = Path(loaded.name)
    return Path(os.path.abspath(path)).name if path else loaded.name


def check_can_take_adapter(loaded, names: Sequence[str]) -> None:
    """Refuse a model that has an adapter, even under the name that it had before, and experts that are fused."""
    if _has_adapter(loaded.model):
        raise ValueError(f"{loaded.name} has an adapter already: load the model again for another one")
    present = {name.rpartition(".")[2] for name, _ in loaded.model.named_modules()}
    if missing := [name for name in names if name not in present]:
        raise NotImplementedError(
            f"the experts of {loaded.name} are fused, so there is no {missing[0]} to adapt: load it with bits=4, or "
            "adapt attention alone"
        )


def check_complete(loaded, model, names: Sequence[str]) -> None:
    """Count what got an adapter: PEFT passes over what it does not find."""
    config = loaded.config
    expected = config.n_layers * sum(1 if name not in EXPERTS else config.num_experts for name in names)
    if len(adapted(model)) != expected:
        raise RuntimeError(f"{len(adapted(model))} matrices got an adapter, expected {expected}")


def check_adapted(loaded) -> None:
    """Refuse a model without an adapter, and the name that a model had before it got one."""
    if isinstance(loaded.model, peft.PeftModel):
        return
    if _has_adapter(loaded.model):
        raise ValueError(f"this is {loaded.name} from before: use what add_adapter or load_adapter returned")
    raise ValueError(f"{loaded.name} has no adapter: add one with add_adapter, or load one with load_adapter")


def _has_adapter(model) -> bool:
    return any(isinstance(module, LoraLayer) for module in model.modules())
