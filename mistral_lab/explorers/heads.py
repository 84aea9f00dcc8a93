"""Explorer of shared heads: tokens arrive and squares stack up, columns merge, and bytes and time shrink."""

import numpy as np
from matplotlib.figure import Figure

from ..figures import draw_kept, new_stage
from ..figures.heads import PAGE, STRIP
from .base import Explorer, moving_slider

# As the bundled models' tokenizer cuts it.
TOKENS = ("My", "favourite", "condiment", "is", "mu", "st", "ard")
HEADS = 4
SQUARE_BYTES = 64 * 4  # a key or value of tiny-mistral, in float32
BYTES_PER_S = 30e9  # a laptop's memory, roughly
STEPS = 4  # from one number of columns to half of it
MOMENTS = ((2, 0), (4, 0), (4, STEPS), (4, 2 * STEPS))  # of the still: tokens, and how far the columns have merged


def kept_squares() -> Explorer:
    """Let tokens arrive, and merge the columns that they leave: multi-head, grouped-query, multi-query.

    The model drawn is one layer of `tiny-mistral`, all its four query heads; it has two KV heads itself. Where no
    kernel runs, four moments stand side by side.
    """

    def view(tokens: int, merged: int) -> tuple[Figure, str]:
        figure, [ax] = new_stage(PAGE.width, PAGE.height, kept=False)
        _draw(ax, tokens, merged, PAGE)
        return figure, _sentence(tokens, merged)

    def still() -> tuple[Figure, str]:
        figure, stages = new_stage(STRIP.width, STRIP.height, columns=len(MOMENTS), kept=False)
        for ax, (tokens, merged) in zip(stages, MOMENTS, strict=True):
            _draw(ax, tokens, merged, STRIP)
        return figure, (
            "Four moments: two tokens and four with a column of keys and values for each of four query heads, "
            "then four tokens with two columns, and with one. " + _sentence(*MOMENTS[-1])
        )

    controls = {
        "tokens": moving_slider("tokens so far", 2, 1, len(TOKENS)),
        "merged": moving_slider("merge columns", 0, 0, 2 * STEPS, interval_ms=250),
    }
    return Explorer(controls, view, still)


def columns_at(merged: int) -> tuple[np.ndarray, float]:
    """Where the column of each head stands after so many steps of merging, and how many columns that counts as.

    >>> columns_at(STEPS)
    (array([0.5, 0.5, 2.5, 2.5]), 2.0)
    """
    whole, part = divmod(merged, STEPS)
    before, after = (_settled(HEADS >> halvings) for halvings in (whole, min(whole + 1, 2)))
    share = part / STEPS
    counted = (1 - share) * len(set(before)) + share * len(set(after))
    return (1 - share) * before + share * after, float(counted)


def _settled(columns: int) -> np.ndarray:
    """(H,) the places of the heads' columns when heads share so many of them: the middle of each group."""
    heads = np.arange(HEADS).reshape(columns, -1)
    return np.repeat(heads.mean(axis=1), heads.shape[1])


def _title(tokens: int, merged: int) -> str:
    count = f"{tokens} token{'s' * (tokens > 1)}"
    return f"{count}, K = {HEADS >> merged // STEPS}" if merged % STEPS == 0 else f"{count}, columns merge"


def _draw(ax, tokens: int, merged: int, layout) -> None:
    places, columns = columns_at(merged)
    kept_bytes, least_s = _cost(tokens, columns)
    draw_kept(
        ax,
        TOKENS[:tokens],
        places,
        layout=layout,
        title=_title(tokens, merged),
        kept_bytes=kept_bytes,
        unshared_bytes=_cost(tokens, HEADS)[0],
        most_bytes=_cost(len(TOKENS), HEADS)[0],
        least_s=least_s,
        bytes_per_s=BYTES_PER_S,
    )


def _cost(tokens: int, columns: float) -> tuple[float, float]:
    """The bytes of so many tokens' keys and values, and the seconds in which memory delivers them at the least."""
    kept_bytes = 2 * columns * tokens * SQUARE_BYTES
    return kept_bytes, kept_bytes / BYTES_PER_S


def _sentence(tokens: int, merged: int) -> str:
    _, columns = columns_at(merged)
    kept_bytes, least_s = _cost(tokens, columns)
    name = {HEADS: "Multi-head", 1: "Multi-query"}.get(columns, "Grouped-query")
    if merged % STEPS:
        return "The columns are on their way to each other."
    return (
        f"{name} attention: {HEADS} query heads over K = {columns:.0f} KV head{'s' * (columns > 1)} keep "
        f"{kept_bytes / 2**10:g} KiB for {tokens} token{'s' * (tokens > 1)} in one layer of tiny-mistral; "
        f"read from memory at {BYTES_PER_S / 1e9:g} GB/s, they need at least {least_s * 1e6:.2f} µs."
    )
