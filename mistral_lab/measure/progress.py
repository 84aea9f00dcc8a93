"""A progress bar for a measurement that takes long."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import torch
from torch import nn
from tqdm.auto import tqdm

BAR_AFTER_S = 8


def with_progress(count: int, what: str) -> Iterator[int]:
    """Yield 0 to count - 1, and show a progress bar once that takes longer than `BAR_AFTER_S` seconds.

    The bar is created and moved between two steps, so that it disturbs no timing inside a step.

    Args:
        count: the number of steps.
        what: what is being done, in words for the bar.
    """
    began, bar = time.perf_counter(), None
    try:
        for number in range(count):
            yield number
            if bar is None and time.perf_counter() - began > BAR_AFTER_S:
                bar = tqdm(total=count, desc=what, leave=False)
            if bar is not None:
                bar.update(number + 1 - bar.n)
    finally:
        if bar is not None:
            bar.close()


@contextmanager
def layer_progress(layers: Sequence[nn.Module], passes: int, what: str) -> Iterator[None]:
    """Show such a bar for as long as the block lasts, which moves whenever one of a model's layers has been passed.

    Args:
        layers: whose output is a tensor, or a tuple that starts with one.
        passes: how many layers are passed in all; a gradient on its way back passes them too.
        what: what is being done, in words for the bar.
    """

    def step(*_: object) -> None:
        next(steps, None)

    def note(layer: nn.Module, arguments: tuple, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        step()
        state = output[0] if isinstance(output, tuple) else output
        if state.requires_grad:
            state.register_hook(step)

    with closing(with_progress(passes, what)) as steps:
        step()
        hooks = [layer.register_forward_hook(note) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
