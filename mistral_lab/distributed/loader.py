"""This rank's part of a mixture of experts, from a name to a model that all ranks call together."""

import os

import torch
from torch import distributed
from transformers import PreTrainedModel

from ..checkpoints import locate
from ..config import ModelConfig
from ..loading.choosing import check_dtype, dtype_of_card
from ..loading.fitting import out_of_memory_explained, short_context
from ..loading.forms import check_form, is_quantised, quantised_precision
from ..loading.quantising import config_found, config_to_read, folder_to_read
from ..loading.reading import check_four_bits, read_model
from ..memory import Plan, plan, total_bytes
from .experts import METHOD, RankConfig, experts_of_rank


def load_rank(
    name: str | os.PathLike | None = None, *, dtype: str | torch.dtype | None = None, revision: str | None = None
) -> PreTrainedModel:
    """Load this rank's part of a mixture of experts in NF4 with double quantisation, ready to be called on all ranks.

    Every rank calls it, then calls the model with the same tokens; `generate` works too, greedily or with one seed.
    With `torchrun` or `launch` the process group is there, or is made here: NCCL and one card per rank where the
    machine has a card for each of its ranks, otherwise gloo and the CPU.

    Args:
        name: as in `load`; None is "tiny-mixtral". Of a checkpoint in 16 bits the four-bit copy of `quantized_copy` is
            read, which is made where it is missing. One that is in four bits is read as it is, and a bundled one is
            quantised while it is read. A rank reads its own experts alone.
        dtype: of the arithmetic and of what is not quantised. None is what `load(name, bits=4)` takes: bfloat16, or
            float16 on a card below compute capability 8.0.
        revision: as in `load`.

    Returns:
        a model of transformers; `audit` counts what this rank holds.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError, OSError: as in `load`.
        RuntimeError: this process is no rank, or four bits did not come out as four bits.
        MemoryError: the rank's part does not fit, as `check_room` says before anything is downloaded, or memory ran
            out.
        ImportError, ValueError: a model without experts, or with fewer than there are ranks; a form that is not read;
            or another argument that means nothing.

    Warns: as in `load`, before a download in 16 bits.

    Differs: `load(name, bits=4)` holds every expert.
    """
    if not distributed.is_initialized() and "RANK" not in os.environ:
        raise RuntimeError("this process is no rank: start it with `torchrun --nproc_per_node 2 ...`, or with launch()")
    source = locate(name or "tiny-mixtral", revision)
    config_folder, transformers_config = config_found(source)
    if not getattr(transformers_config, "num_local_experts", None):
        raise ValueError(f"{source.name} has no experts to spread: expected a mixture, such as tiny-mixtral")
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = _join(local_ranks)
    check_form(source.name, transformers_config, None, device)

    config = ModelConfig.from_transformers(transformers_config)
    if dtype is None:
        dtype = dtype_of_card(device) if device.type == "cuda" else torch.bfloat16
    dtype = check_dtype(dtype, 4)
    precision = quantised_precision(transformers_config) or "nf4-double"
    made = check_room(config, distributed.get_world_size(), local_ranks=local_ranks, precision=precision)

    with out_of_memory_explained(source.name, config, made):
        folder = folder_to_read(source, config_folder, transformers_config, 4, dtype=dtype, device=device)
        to_read = config_to_read(folder)
        quantised = is_quantised(to_read)
        if quantised:
            to_read.quantization_config |= {"quant_method": METHOD}
        model = read_model(
            folder, to_read, dtype=dtype, device_map=device, quantisation=None if quantised else RankConfig()
        )
    check_four_bits(model, source.name)
    return model


def check_room(
    config: ModelConfig, ranks: int, *, local_ranks: int | None = None, precision: str = "nf4-double"
) -> Plan:
    """Refuse to spread a mixture in NF4 over ranks that are too small for it, before anything is downloaded.

    Totals are compared and not what is free: the plan is made before the ranks have begun to share the machine.

    Args:
        config: of the model.
        ranks: all of them.
        local_ranks: those of this machine, each with a card of its own or, where there are fewer cards, with an equal
            part of the computer's memory. None: all.
        precision: of the matrices, "nf4" or "nf4-double".

    Returns:
        the plan of the fullest rank with a short text.

    Raises:
        MemoryError: the fullest rank needs more than its card or its part of the memory has in all.
        TypeError, ValueError: a count that is none, or more ranks than experts.
    """
    experts_of_rank(config.num_experts, ranks)
    local_ranks = local_ranks or ranks
    if _card_per_rank(local_ranks):
        place, room = "card", min(total_bytes(torch.device("cuda", card)) for card in range(local_ranks))
    else:
        place, room = f"part of the memory, 1 of {local_ranks},", total_bytes("cpu") // local_ranks
    context = short_context(config)
    made = plan(config, precision=precision, context=context, device_bytes=room, devices=ranks, split="experts")
    if not made.fits:
        raise MemoryError(f"a rank's {place} is too small ({made}): take more ranks or larger cards")
    return made


def _join(local_ranks: int) -> torch.device:
    """Make this process a rank unless it is one, and return its device."""
    on_cards = _card_per_rank(local_ranks)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_cards else torch.device("cpu")
    if on_cards:
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if on_cards else "gloo")
    return device


def _card_per_rank(local_ranks: int) -> bool:
    return torch.cuda.device_count() >= local_ranks
