"""A progress bar for a measurement that takes long."""

import time
from collections.abc import Iterator

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
