"""The picture of experts on their way: which each token needs, where each was found, and what was moved."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from .arrays import as_amounts
from .canvas import new_figure
from .language import EXPERTS, QUIET
from .style import INK, MEASURED, STYLE, hide_frame, readable_on
from .tokens import drawable, text_width

HELD, GUESSED, FETCHED = 0, 1, 2  # in the arrays of plot_expert_traffic
MOST_TOKENS = 32  # whose experts' numbers fit beside each other on a page


@mpl.rc_context(STYLE)
def plot_expert_traffic(
    needed: np.ndarray,
    origin: np.ndarray,
    nbytes: np.ndarray,
    *,
    tokens: Sequence[str],
    layers: Sequence[str],
    unit: str,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Draw which experts each token needed in each layer, where each was found, and what was moved for the token.

    An expert is a box in its hue, with its number: filled where it lay in a slot, filled in part where a guess had
    brought it, hollow where it had to be fetched. Behind each row stands how many of its experts lay in a slot.

    Args:
        needed: (T, L, A) numbers of experts.
        origin: (T, L, A), 0 for an expert that lay in a slot, 1 for one that a guess had brought, 2 for one fetched
            when it was needed.
        nbytes: (T,) moved per token, in `unit`.
        tokens: (T,) their texts.
        layers: (L,) their names, the first on top.
        unit: the label of the lower panel's axis.
        axes: two, one above the other; None makes a figure.

    Returns:
        the two Axes: the experts, and the bytes.
    """
    needed, origin = np.asarray(needed), np.asarray(origin)
    if needed.ndim != 3 or needed.shape != origin.shape or needed.shape[:2] != (len(tokens), len(layers)):
        raise ValueError(
            f"needed has shape {needed.shape} and origin {origin.shape}: expected the same (T, L, A), for "
            f"{len(tokens)} tokens and {len(layers)} layers"
        )
    if not np.isin(origin, (HELD, GUESSED, FETCHED)).all():
        raise ValueError("origin holds a number other than 0, 1 and 2: expected slot, guess or fetched")
    if len(tokens) > MOST_TOKENS:
        raise ValueError(f"{len(tokens)} tokens: expected at most {MOST_TOKENS}, or their numbers would overlap")
    nbytes = as_amounts(nbytes, (len(tokens),))
    _, L, A = needed.shape
    words = [drawable(token) for token in tokens]
    if axes is None:
        rows_in, bytes_in, words_in = (A + 0.4) * L * 0.2, 1.1, max(map(text_width, words)) / 72
        height_in = 0.6 + rows_in + bytes_in + words_in
        axes = new_figure(2, 1, height_in=height_in, heights=[rows_in, bytes_in], share_x=True)[1][:, 0]
    above, below = axes
    pitch = A + 0.4  # from layer to layer, where a box is 1 high
    for (token, layer, place), expert in np.ndenumerate(needed):
        _draw_expert(above, token, layer * pitch + place, int(expert), origin[token, layer, place])
    middles = [layer * pitch + (A - 1) / 2 for layer in range(L)]
    for middle, row in zip(middles, np.moveaxis(origin, 1, 0), strict=True):
        hits = f"{(row == HELD).sum()} of {row.size}"
        above.text(1.01, middle, hits, transform=above.get_yaxis_transform(), va="center", fontsize=9)
    above.set_yticks(middles, layers)
    above.set_ylim(L * pitch - 0.8, -0.6)
    above.tick_params(axis="x", labelbottom=False)
    hide_frame(above)
    above.legend(
        _ORIGIN_KEYS.values(),
        _ORIGIN_KEYS.keys(),
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(_ORIGIN_KEYS),
        columnspacing=1.4,
        handlelength=1.4,
        borderaxespad=0.3,
    )
    below.bar(range(len(tokens)), nbytes, width=0.84, color=MEASURED, linewidth=0)
    below.set_xlim(-0.6, len(tokens) - 0.4)
    above.set_xlim(-0.6, len(tokens) - 0.4)
    below.set_xticks(range(len(tokens)), words, rotation=90, parse_math=False)
    below.tick_params(axis="x", length=0, labelsize=9)
    below.set_ylim(0, 1.08 * nbytes.max() or 1)
    below.yaxis.set_major_locator(MaxNLocator(4))
    below.yaxis.set_major_formatter("{x:,g}")
    below.set_ylabel(unit)
    below.grid(axis="y")
    return np.array([above, below])


_FULL, _HOLLOW = Patch(facecolor=QUIET, edgecolor=QUIET), Patch(facecolor="white", edgecolor=QUIET, linewidth=1.2)
_ORIGIN_KEYS = {
    "in a slot (counted at the right)": _FULL,
    "brought by a guess": (_FULL, _HOLLOW),
    "fetched when needed": _HOLLOW,
}


def _draw_expert(ax: Axes, x: float, y: float, expert: int, origin: int) -> None:
    """Draw one expert's box around a place, with its number."""
    colour = EXPERTS[expert % len(EXPERTS)]
    inside = "white" if origin == FETCHED else colour
    ax.add_patch(Rectangle((x - 0.42, y - 0.43), 0.84, 0.86, facecolor=inside, edgecolor=colour, linewidth=1.2))
    if origin == GUESSED:
        ax.add_patch(Rectangle((x - 0.14, y - 0.43), 0.56, 0.86, facecolor="white", edgecolor=colour, linewidth=1.2))
    ink = readable_on(colour) if origin == HELD else INK
    place = x + 0.14 if origin == GUESSED else x
    ax.text(place, y, str(expert), ha="center", va="center_baseline", fontsize=9, color=ink)
