"""A word now and then from a measurement that takes long."""

import time
from collections.abc import Iterator

from tqdm.auto import tqdm

BAR_AFTER_S = 8


def with_progress(count: int, what: str) -> Iterator[int]:
    """Yield 0 to count - 1, and where that takes longer than `BAR_AFTER_S` show how far it is.

    The bar is made and moved between two steps, so that it disturbs no clock inside one.

    Args:
        count: of the steps.
        what: they are, for the bar.
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
