"""Whole experts a rank: every process holds attention and router, and of the 4-bit experts only its own.

R ranks, N tokens, E experts, A experts a token, d width of the residual stream.
"""

import os
from collections.abc import Sequence
from itertools import accumulate, pairwise

import psutil
import torch
from torch import distributed, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer

from ..arguments import check_count
from ..checkpoints import BUNDLED, locate
from ..config import ModelConfig, read_config
from ..four_bit import FourBitConfig, FourBitExpert, FourBitExperts, audit, use_our_quantizer
from ..four_bit.quantizer import FourBitQuantizer
from ..loading.fitting import SHORT_CONTEXT
from ..loading.forms import quantised_precision
from ..loading.loader import dtype_of_card, quantized_copy
from ..memory import plan, split_evenly
from .compat import ignore_unexpected

METHOD = "mistral_lab.distributed"


def experts_of_rank(num_experts: int, ranks: int) -> list[range]:
    """Which experts each rank holds: neighbours, in the order of the ranks; the first E mod R ranks hold one more.

    Raises:
        TypeError, ValueError: a count below 1, or more ranks than experts.

    >>> experts_of_rank(8, 3)
    [range(0, 3), range(3, 6), range(6, 8)]
    """
    check_count("num_experts", num_experts)
    check_count("ranks", ranks)
    if ranks > num_experts:
        raise ValueError(f"{ranks} ranks for {num_experts} experts: expected at most one rank for each expert")
    bounds = accumulate(split_evenly(num_experts, ranks), initial=0)
    return [range(start, end) for start, end in pairwise(bounds)]


class ExpertsOfRank(nn.ModuleDict):
    """One rank's experts of a layer, in the place, and with the call, of `FourBitExperts`.

    Every rank has all tokens and the router's choices, because attention and router run on every rank. So nothing has
    to be sent to an expert; only its answers have to reach the other ranks:

        rank 0 holds experts 0-3    answers a0 a2  --broadcast-->  a0 a2 a5
        rank 1 holds experts 4-7    answers a5     --broadcast-->  a0 a2 a5     and both add them up, a0 first

    An all-reduce of one sum a rank moves as much where A = 2, but where A > 2 it adds in an order that depends on R.
    Here each rank adds single answers in the order of the experts, as one process does: the result is the same to the
    last bit, whatever A and R, where the ranks' processors compute alike. On unlike ones the choices may differ, and
    then the ranks wait for each other in vain.

    Args:
        experts: of the whole layer; those of other ranks are dropped.
        owned: what `experts_of_rank` says, a range a rank.
        rank: this one.
    """

    def __init__(self, experts: Sequence[FourBitExpert], owned: Sequence[range], rank: int) -> None:
        super().__init__({str(expert): experts[expert] for expert in owned[rank]})
        self.owned, self.rank = owned, rank

    def forward(self, x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Send each token through the experts chosen for it, wherever they are.

        Args:
            x: (N, d), the same on every rank.
            indices, weights: (N, A), the same on every rank.

        Returns:
            (N, d), the same on every rank.
        """
        chosen = {expert: torch.where(indices == expert) for expert in indices.unique().tolist()}
        rows = [sum(len(chosen[e][0]) for e in mine if e in chosen) for mine in self.owned]
        answers = [x.new_empty(n, x.shape[1]) for n in rows]  # one matrix a rank, expert after expert
        end = 0
        for expert in self.owned[self.rank]:
            if expert in chosen:
                token, choice = chosen[expert]
                start, end = end, end + len(token)
                answers[self.rank][start:end] = self[str(expert)](x[token]) * weights[token, choice, None]
        sent = []
        for rank, matrix in enumerate(answers):
            if len(matrix):
                sent.append(distributed.broadcast(matrix, src=rank, async_op=True))
        for work in sent:
            work.wait()
        out = torch.zeros_like(x)
        answered = torch.cat(answers).split([len(token) for token, _ in chosen.values()])
        for (token, _), y in zip(chosen.values(), answered, strict=True):
            out.index_add_(0, token, y)
        return out


@register_quantization_config(METHOD)
class RankConfig(FourBitConfig):
    """`FourBitConfig` for one rank of the default process group."""

    def __init__(self, double: bool = True, compute_dtype: torch.dtype | str | None = None) -> None:
        super().__init__(double, compute_dtype)
        self.quant_method = METHOD

    def to_dict(self) -> dict:
        """As `FourBitConfig`, under this room's name."""
        return super().to_dict() | {"quant_method": METHOD}


@register_quantizer(METHOD)
class RankQuantizer(FourBitQuantizer):
    """`FourBitQuantizer` for a model from which other ranks' experts are gone before weights arrive.

    transformers then finds no place for those tensors of the checkpoint, and does not read them.
    """

    def lay_out(self, model: PreTrainedModel, files: list[str] | None) -> None:
        """Lay out 4-bit layers, and drop the experts of other ranks."""
        super().lay_out(model, files)
        rank, owned = distributed.get_rank(), None
        for name, module in list(model.named_modules()):
            if isinstance(module, FourBitExperts):
                owned = owned or experts_of_rank(len(module), distributed.get_world_size())
                model.set_submodule(name, ExpertsOfRank(module, owned, rank))
        ignore_unexpected(model, r"\.experts\.")


def check_room(
    config: ModelConfig, ranks: int, *, local_ranks: int | None = None, precision: str = "nf4-double"
) -> None:
    """Refuse to spread a mixture in NF4 over ranks that are too small for it, before anything is downloaded.

    Args:
        config: of the model.
        ranks: all of them.
        local_ranks: those of this machine, each with a card of its own or, where there are fewer cards, with an equal
            part of the computer's memory. None: all.
        precision: of the matrices, "nf4" or "nf4-double".

    Raises:
        MemoryError: a rank needs more for a short text than its card or its part of the memory has in all.
        TypeError, ValueError: a count that is none, or more ranks than experts.
    """
    experts_of_rank(config.num_experts, ranks)
    local_ranks = local_ranks or ranks
    if torch.cuda.device_count() >= local_ranks:
        place, room = "card", min(torch.cuda.get_device_properties(n).total_memory for n in range(local_ranks))
    else:
        place, room = f"part of the memory, 1 of {local_ranks},", psutil.virtual_memory().total // local_ranks
    context = min(SHORT_CONTEXT, config.max_positions)
    split = {"devices": ranks, "split": "experts"}
    made = plan(config, precision=precision, context=context, device_bytes=room, **split)
    if not made.fits:
        raise MemoryError(f"a rank's {place} is too small ({made}): take more ranks or larger cards")


def load_rank(name=None, *, dtype: str | torch.dtype | None = None) -> PreTrainedModel:
    """Load this rank's part of a mixture of experts in NF4 with double quantisation, ready to be called on all ranks.

    Every rank calls it, then calls the model with the same tokens; `generate` works too, greedily or with one seed.
    With `torchrun` or `launch` the process group is there, or is made here: NCCL and one card a rank where the machine
    has a card for each of its ranks, otherwise gloo and the CPU.

    Args:
        name: as in `load`; None is "tiny-mixtral". Of a checkpoint in 16 bits the four-bit copy of `quantized_copy` is
            read, which is made where it is missing; one that is in four bits is read as it is, a bundled one is
            quantised as it is read. A rank reads its own experts alone.
        dtype: of the arithmetic and of what is not quantised. None is what `load(name, bits=4)` takes: bfloat16, or
            float16 on a card below compute capability 8.0.

    Returns:
        a model of transformers; `audit` counts what this rank holds.

    Raises:
        RuntimeError: not one of several processes, or four bits did not come out as four bits.
        MemoryError: the rank's part does not fit, as `check_room` says.
        OSError: an incomplete checkpoint.
        ValueError: a model without experts, or with fewer than there are ranks.

    Differs: `load(name, bits=4)` holds every expert.
    """
    if not distributed.is_initialized() and "RANK" not in os.environ:
        raise RuntimeError("this process is no rank: start it with `torchrun --nproc_per_node 2 ...`, or with launch()")
    source = locate(name or "tiny-mixtral")
    config = read_config(source.config_folder())
    experts = getattr(config, "num_local_experts", None)
    if not experts:
        raise ValueError(f"{source.name} has no experts to spread: expected a mixture, such as tiny-mixtral")
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    on_cards = torch.cuda.device_count() >= local_ranks
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_cards else torch.device("cpu")
    if on_cards:
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if on_cards else "gloo")
    check_room(
        ModelConfig.from_transformers(config),
        distributed.get_world_size(),
        local_ranks=local_ranks,
        precision="nf4" if quantised_precision(config) == "nf4" else "nf4-double",
    )
    if dtype is None:
        dtype = dtype_of_card(device) if on_cards else torch.bfloat16
    if source.name in BUNDLED or use_our_quantizer(config):
        folder = source.folder()
    else:
        folder = quantized_copy(name, device=device, dtype=dtype)
        config = read_config(folder)
    quantised = use_our_quantizer(config)
    if quantised:
        config.quantization_config |= {"quant_method": METHOD}
    model, loading = AutoModelForCausalLM.from_pretrained(
        str(folder),
        config=config,
        dtype=dtype,
        device_map=device,
        quantization_config=None if quantised else RankConfig(),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    if missing := sorted(loading["missing_keys"]):  # transformers fills them with random numbers
        raise OSError(f"{source.name} lacks {len(missing)} of this rank's tensors, {missing[0]} first: copy it again")
    report = audit(model)
    if not report.passed:
        raise RuntimeError(f"{source.name} was to be in 4 bits, but {report.verdict}")
    return model.eval()
