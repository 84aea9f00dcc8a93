"""Whole experts per rank: every process holds attention and router, and of the 4-bit experts only its own.

R ranks, N tokens, E experts, A experts per token, d the width of the residual stream.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import distributed, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer

from ..arguments import check_count
from ..four_bit import FourBitConfig, FourBitExpert, FourBitExperts
from ..four_bit.quantizer import FourBitQuantizer
from ..memory import split_evenly
from .compat import ignore_unexpected

METHOD = "mistral_lab.distributed"


def experts_of_rank(num_experts: int, ranks: int) -> list[range]:
    """Say which experts each rank holds: neighbours, in the order of the ranks. The first E mod R ranks hold one more.

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

    An all-reduce of one sum per rank moves as much where A = 2, but where A > 2 it adds in an order that depends on R.
    Here each rank adds single answers in the order of the experts, as one process does. So the result is the same to
    the last bit, whatever A and R are, as long as the processors of the ranks compute alike. On processors that do not,
    the ranks may choose different experts, and then they wait for each other in vain.

    Args:
        experts: of the whole layer; those of other ranks are dropped.
        owned: what `experts_of_rank` says, one range per rank.
        rank: the number of this rank.
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
        answers = [x.new_empty(n, x.shape[1]) for n in rows]  # one matrix per rank, expert after expert
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
        """Return what `FourBitConfig` does, under this module's name."""
        return super().to_dict() | {"quant_method": METHOD}


@register_quantizer(METHOD)
class RankQuantizer(FourBitQuantizer):
    """`FourBitQuantizer` for a model from which the experts of other ranks are gone before the weights arrive.

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
