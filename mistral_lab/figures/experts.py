"""Pictures of a mixture: a token's route, experts touched by a batch, loads, repeated choices, balance, traffic."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from .arrays import as_amounts
from .canvas import axes_or_new, new_figure
from .marks import draw_percent_map, label_rows, write_beside
from .style import COLOURS, FADED, INK, MEASURED, PREDICTED, STYLE, doubling_axis, hide_frame, legend_above, readable_on
from .tokens import drawable, text_width

WAY_COLOURS = (MEASURED, COLOURS[4], COLOURS[2])
HELD, GUESSED, FETCHED = 0, 1, 2  # in the arrays of plot_expert_traffic
MOST_TOKENS = 32  # whose experts' numbers fit beside each other on a page


@mpl.rc_context(STYLE)
def plot_route(
    logits: np.ndarray, *, chosen: Sequence[int], weights: Sequence[float], title: str, ax: Axes | None = None
) -> Axes:
    """Draw the logits of one token's router, the chosen experts in colour, each with its weight.

    Args:
        logits: (E,), of any sign.
        chosen: (A,) experts.
        weights: (A,) of the chosen.
        title: which token.
    """
    logits = np.asarray(logits, float)
    if logits.ndim != 1 or not np.isfinite(logits).all() or len(chosen) != len(weights):
        raise ValueError(
            f"logits has shape {logits.shape}, with {len(chosen)} experts chosen and {len(weights)} weights: "
            "expected finite (E,), and a weight for each chosen expert"
        )
    ax = axes_or_new(ax, height_in=3.0)
    ax.bar(range(len(logits)), logits, color=[COLOURS[0] if e in chosen else FADED for e in range(len(logits))])
    for expert, weight in zip(chosen, weights, strict=True):
        write_beside(ax, f"weight {weight:.2f}", (expert, max(logits[expert], 0)), shift=(0, 4), va="bottom")
    ax.axhline(0, color=INK, linewidth=0.8)
    ax.margins(y=0.16)
    ax.set_xticks(range(len(logits)))
    ax.set_xlabel("expert (in colour: chosen)")
    ax.set_ylabel("router logit")
    ax.set_title(title)
    return ax


@mpl.rc_context(STYLE)
def plot_way(
    token: str, *, chosen: Sequence[int], weights: Sequence[float], experts: int, ax: Axes | None = None
) -> Axes:
    """Draw a token's way from the router through its chosen experts to the sum of their answers.

    Args:
        token: its text.
        chosen: (A,) experts.
        weights: (A,) of the chosen, the width of their lines.
        experts: E; those that are not chosen are grey.
    """
    if len(chosen) != len(weights) or not set(chosen) <= set(range(experts)):
        raise ValueError(
            f"chosen is {list(chosen)} with {len(weights)} weights: expected experts below {experts}, a weight for each"
        )
    ax = axes_or_new(ax, height_in=0.7 + 0.3 * experts)
    middle = (experts - 1) / 2
    ax.plot([0.8, 2.6], [middle, middle], color=INK, linewidth=1.5)
    for expert, weight in zip(chosen, weights, strict=True):
        line = {"color": MEASURED, "linewidth": 1 + 4 * weight, "solid_capstyle": "round"}
        ax.plot([2.6, 4, 6.6, 8.4], [middle, expert, expert, middle], **line)
        write_beside(ax, f"× {weight:.2f}", (6.3, expert), shift=(0, 4), va="bottom", fontsize=10)
    for x, y, text, colour in [
        (0.8, middle, token, "white"),
        (2.6, middle, "router", "white"),
        *((5, e, f"expert {e}", MEASURED if e in chosen else FADED) for e in range(experts)),
        (8.4, middle, "sum", "white"),
    ]:
        box = {"boxstyle": "round,pad=0.25", "facecolor": colour, "edgecolor": INK if colour != FADED else FADED}
        ink = INK if colour == "white" else readable_on(colour)
        ax.text(x, y, text, ha="center", va="center", fontsize=9, color=ink, bbox=box)
    ax.set_xlim(0, 9)
    ax.set_ylim(experts - 0.4, -0.9)
    ax.axis("off")
    return ax


@mpl.rc_context(STYLE)
def plot_touched(
    tokens: Sequence[int],
    measured: np.ndarray,
    predicted: np.ndarray,
    *,
    names: Sequence[str],
    experts: int,
    ax: Axes | None = None,
) -> Axes:
    """Draw how many experts of a layer a batch reads: measured (solid) and predicted (dashed).

    Args:
        tokens: (n,) in the batch.
        measured: (ways, n) experts, at most three ways.
        predicted: (n,) experts.
        names: of the ways.
        experts: in the layer.
    """
    measured = as_amounts(measured, (len(names), len(tokens)))
    predicted = as_amounts(predicted, (len(tokens),))
    ax = axes_or_new(ax, height_in=3.2)
    ax.plot(tokens, predicted, "D--", color=PREDICTED, markeredgecolor=INK, markersize=10, label="predicted")
    for line, name, colour, marker in zip(measured, names, WAY_COLOURS[: len(names)], "os^"[: len(names)], strict=True):
        ax.plot(tokens, line, f"{marker}-", color=colour, markeredgecolor=INK, label=name)
    doubling_axis(ax, tokens)
    ax.set_ylim(0, 1.06 * experts)
    ax.set_xlabel("tokens in the batch (logarithmic axis)")
    ax.set_ylabel("experts read in a layer")
    ax.grid()
    legend_above(ax, columns=2)
    return ax


@mpl.rc_context(STYLE)
def plot_load_map(
    loads: np.ndarray, *, names: Sequence[str], title: str, most: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw shares of the assignments in per cent as a heat map: a row per kind of text, a column per expert.

    Args:
        loads: (rows, E) shares.
        names: of the rows.
        title: which layer.
        most: the share with the last colour, so that panels can agree; None takes the largest share here.
    """
    loads = np.asarray(loads, float)
    loads = as_amounts(loads, (len(names), loads.shape[-1] if loads.ndim else 0))
    ax = axes_or_new(ax, height_in=1.2 + 0.35 * len(names))
    draw_percent_map(ax, loads, most=loads.max() if most is None else most)
    ax.set_xticks(range(loads.shape[1]))
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("expert (number: % of assignments)")
    ax.set_title(title)
    return ax


@mpl.rc_context(STYLE)
def plot_load_bars(load: np.ndarray, *, ax: Axes) -> Axes:
    """Draw the share of the assignments that each expert gets, in its colour, beside the share if all were even.

    It shows one row of `plot_load_map` in the colours of `plot_coloured_tokens`, beside which it stands.

    Args:
        load: (E,) shares.
    """
    load = as_amounts(load, np.shape(load))
    colours = [COLOURS[expert % len(COLOURS)] for expert in range(len(load))]
    bars = ax.barh(range(len(load)), 100 * load, color=colours, height=0.74)
    ax.axvline(100 / len(load), color=INK, linewidth=1, linestyle=":")
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # or the line would cross out the numbers
    ax.bar_label(bars, [f"{100 * share:.0f}" for share in load], padding=4, fontsize=9, bbox=paper)
    label_rows(ax, [f"expert {expert}" for expert in range(len(load))], room=0.6)
    ax.tick_params(axis="y", labelsize=9)
    ax.set_xlim(0, 1.25 * 100 * max(load.max(), 1 / len(load)))
    ax.set_xlabel("load, % (dotted: even)")
    return ax


@mpl.rc_context(STYLE)
def plot_repeats(
    rates: Sequence[np.ndarray],
    shuffled: np.ndarray,
    *,
    names: Sequence[str],
    uniform: float,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often the next token takes the same expert: a row per layer, a dot per subject, chance as marks.

    Args:
        rates: for each row (subjects,) shares; their number may differ.
        shuffled: (rows,) shares after shuffling; NaN where they are not known.
        names: of the rows, the first on top.
        uniform: the share under uniform choice.
    """
    rates, shuffled = [as_amounts(row, (len(row),)) for row in rates], np.asarray(shuffled, float)
    if len(rates) != len(names) or shuffled.shape != (len(names),):
        raise ValueError(
            f"{len(rates)} rows of rates, shuffled of shape {shuffled.shape}: expected {len(names)} of each, as names"
        )
    ax = axes_or_new(ax, height_in=1.2 + 0.33 * len(names))
    ax.axvline(100 * uniform, color=PREDICTED, linewidth=2, linestyle="--", label="uniform choice")
    for row, values in enumerate(rates):
        label = "measured" if row == 0 else None
        ax.scatter(100 * values, np.full(len(values), row), s=45, color=MEASURED, edgecolor=INK, label=label)
    ax.scatter(
        100 * shuffled, range(len(names)), s=260, marker="|", color=INK, linewidth=2, label="tokens shuffled, mean"
    )
    label_rows(ax, names)
    ax.set_xlim(0, 1.06 * 100 * max(values.max() for values in rates))
    ax.set_xlabel("next token has the same first choice, %")
    ax.grid(axis="x")
    legend_above(ax, columns=3)
    return ax


@mpl.rc_context(STYLE)
def plot_balance(
    steps: Sequence[int],
    smallest: np.ndarray,
    largest: np.ndarray,
    *,
    names: Sequence[str],
    even: float,
    ax: Axes | None = None,
) -> Axes:
    """Draw the smallest and the largest share of any expert along two trainings.

    Args:
        steps: (n,) of training.
        smallest, largest: (trainings, n) shares of a layer's assignments.
        names: of the trainings, at most two.
        even: the share where all experts carry the same.
    """
    smallest, largest = (as_amounts(values, (len(names), len(steps))) for values in (smallest, largest))
    ax = axes_or_new(ax, height_in=3.2)
    for low, high, name, colour in zip(smallest, largest, names, WAY_COLOURS[: len(names)], strict=True):
        ax.plot(steps, 100 * high, "-", color=colour, label=name)
        ax.plot(steps, 100 * low, "-", color=colour)
    ax.axhline(100 * even, color=INK, linewidth=1, linestyle=":", label="even")
    ax.set_ylim(0, 106 * largest.max())
    ax.set_xlabel("training step")
    ax.set_ylabel("smallest and largest load, %")
    ax.grid(axis="y")
    legend_above(ax, columns=3)
    return ax


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

    An expert is a box in its colour, with its number: filled where it lay in a slot, filled in part where a guess had
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


_KEY = "#595959"
_FULL, _HOLLOW = Patch(facecolor=_KEY, edgecolor=_KEY), Patch(facecolor="white", edgecolor=_KEY, linewidth=1.2)
_ORIGIN_KEYS = {
    "in a slot (counted at the right)": _FULL,
    "brought by a guess": (_FULL, _HOLLOW),
    "fetched when needed": _HOLLOW,
}


def _draw_expert(ax: Axes, x: float, y: float, expert: int, origin: int) -> None:
    """Draw one expert's box around a place, with its number."""
    colour = COLOURS[expert % len(COLOURS)]
    inside = "white" if origin == FETCHED else colour
    ax.add_patch(Rectangle((x - 0.42, y - 0.43), 0.84, 0.86, facecolor=inside, edgecolor=colour, linewidth=1.2))
    if origin == GUESSED:
        ax.add_patch(Rectangle((x - 0.14, y - 0.43), 0.56, 0.86, facecolor="white", edgecolor=colour, linewidth=1.2))
    ink = readable_on(colour) if origin == HELD else INK
    place = x + 0.14 if origin == GUESSED else x
    ax.text(place, y, str(expert), ha="center", va="center_baseline", fontsize=9, color=ink)
