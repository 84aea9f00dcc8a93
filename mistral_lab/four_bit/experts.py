"""The experts of a layer as separate 4-bit matrices, in the place of transformers' two tensors for all of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import MixtralConfig
from transformers.activations import ACT2FN

from .compat import StayingModuleList
from .linear import ExactLinear4bit


class FourBitExpert(nn.Module):
    """One expert, w2(silu(w1 x) * w3 x), under the names that Mixtral's checkpoints give its matrices."""

    def __init__(self, dim: int, hidden_dim: int, activation, *, compute_dtype: torch.dtype, double: bool) -> None:
        super().__init__()
        settings = {"compute_dtype": compute_dtype, "double": double}
        self.w1 = ExactLinear4bit(dim, hidden_dim, **settings)
        self.w2 = ExactLinear4bit(hidden_dim, dim, **settings)
        self.w3 = ExactLinear4bit(dim, hidden_dim, **settings)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, dim) -> (N, dim)."""
        return self.w2(self.activation(self.w1(x)) * self.w3(x))


@dataclass(frozen=True)
class ExpertUse:
    """What one layer's experts did in one forward. Experts are numbered from 0 and listed in ascending order."""

    layer: int
    tokens: int
    needed: tuple[int, ...]  # by at least one token
    held: tuple[int, ...]  # of those needed, what the layer had already
    guessed: tuple[int, ...]  # of those needed, what had been brought on the layer before's guess
    brought: tuple[int, ...]  # of those needed, what had to be waited for
    computed_outside: tuple[int, ...]  # of those needed, what was computed where it lies
    ahead: tuple[int, ...]  # experts of the next layer that were brought on a guess
    moved_bytes: int  # `brought` and `ahead`


class FourBitExperts(StayingModuleList):
    """All experts of a layer as separate modules; called like transformers' `MixtralExperts`, whose place they take."""

    watched: tuple[int, list[ExpertUse]] | None = None  # the layer's number and where to note what it does
    passing: dict[int, tuple[int, ...]] | None = None  # what `share_page_cache` gives back: number -> where it lies

    def forward(self, x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Send each token through the experts chosen for it; an expert that nobody chose is not touched.

        Args:
            x: (N, dim).
            indices, weights: (N, A), the experts of each token and what their outputs are multiplied by.

        Returns:
            (N, dim).
        """
        out = torch.zeros_like(x)
        for number, expert in self.in_turn(x, indices):
            token, choice = torch.where(indices == number)
            y = expert(x[token]) * weights[token, choice, None]
            out.index_add_(0, token, y.to(out.dtype))
        return out

    def in_turn(self, x: torch.Tensor, indices: torch.Tensor) -> Iterator[tuple[int, Callable]]:
        """Hand out the experts that are needed, each with its number, in ascending order."""
        needed = indices.unique().tolist()
        for number in needed:
            yield number, self[number]
        if self.watched is not None:
            layer, uses = self.watched
            uses.append(ExpertUse(layer, len(x), tuple(needed), tuple(needed), (), (), (), (), 0))


def experts_by_name(model: nn.Module) -> dict[str, FourBitExperts]:
    """Find the experts of each layer of a 4-bit Mixtral, in the order of the layers, by the names of the modules.

    Raises:
        ValueError: a model without experts in 4 bits.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, FourBitExperts)}
    if not found:
        raise ValueError(f"{type(model).__name__} has no experts in 4 bits: expected a Mixtral loaded with bits=4")
    return found


@contextmanager
def watch_experts(model: nn.Module) -> Iterator[list[ExpertUse]]:
    """Note what the experts of a 4-bit Mixtral do while the context lasts: one `ExpertUse` per layer and forward.

    Where all experts lie on the device, each one that is needed is held.

    Args:
        model: with experts in 4 bits.

    Yields:
        the list that grows, in the order of the forwards. A layer whose forward fails adds nothing.

    Raises:
        ValueError: a model without experts in 4 bits.
    """
    layers = list(experts_by_name(model).values())
    before = [layer.watched for layer in layers]
    uses: list[ExpertUse] = []
    try:
        for number, layer in enumerate(layers):
            layer.watched = number, uses
        yield uses
    finally:
        for layer, watched in zip(layers, before, strict=True):
            layer.watched = watched


def new_experts(config: MixtralConfig, *, compute_dtype: torch.dtype, double: bool) -> FourBitExperts:
    """Make the experts of one layer, without weights.

    Args:
        config: of the model.
        compute_dtype, double: as in `ExactLinear4bit`.
    """
    shape = (config.hidden_size, config.intermediate_size, ACT2FN[config.hidden_act])
    settings = {"compute_dtype": compute_dtype, "double": double}
    return FourBitExperts([FourBitExpert(*shape, **settings) for _ in range(config.num_local_experts)])
