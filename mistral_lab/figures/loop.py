"""Lesson 1's picture to remember, a token's trip round the loop; and the bytes of which tokens are made."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from .arrays import as_amounts, as_finite
from .language import IDLE, IDLE_EDGE, KEY, QUERY, QUIET, VALUE, WEIGHTS, draw_token, new_stage, pale, write
from .style import INK, STYLE
from .tokens import drawable, text_width, with_spaces

GAP, PADDING = 0.05, 0.12  # inches, between boxes and around their text
BOX, ROW = 0.27, 0.3  # height of a token's box and of its row of numbers
MOST_BARS = 5  # for which the scores have room; fewer are no thicker
ON_WAY = "#cfdcf7"  # the beam of a token that is on its way
MARKS_BELOW = -1  # the floor of a token that still waits in its box

Column = tuple[float, float]  # the middle and the width of a token's box, in inches


class Tower(NamedTuple):
    """Where the parts of `plot_loop` stand, in inches."""

    layers: int
    labelled: bool  # whether the stations are named at the left
    left: float  # edges of the floors
    right: float
    boxes: float  # middle of the tokens' boxes
    table: float  # lower edge of the rows of numbers
    floors: float  # lower edge of the lowest floor
    step: float  # from one floor to the next
    scores: float  # lower edge of the scores
    scores_height: float


@mpl.rc_context(STYLE)
def plot_loop(
    texts: Sequence[str],
    *,
    ids: Sequence[int],
    rows: np.ndarray,
    first: int,
    floor: int,
    layers: int,
    candidates: Sequence[str] = (),
    probabilities: np.ndarray = (),
    kept: Sequence[bool] = (),
    drawn: int | None = None,
    title: str = "",
    note: str = "",
    labelled: bool = False,
    ax: Axes,
) -> Axes:
    """Draw one moment: tokens below, the floors of the model above them, its scores on top.

    A floor that this pass has read is full, the others are pale. On each floor stand the key and the value of every
    token that has passed it. Tokens before `first` have passed all floors.

    Args:
        texts, ids: of all tokens that there are.
        rows: (tokens, numbers) of the table at the entrance, drawn as shades.
        first: number of the first token that is on its way; all from there on go together.
        floor: where those are: -1 in their boxes, 0 in the table, 1 to `layers` on that floor, above it at the scores.
        layers: how many floors there are.
        candidates, probabilities, kept: texts, chances of the likeliest next tokens and whether top-p keeps them; drawn
            above the last floor.
        drawn: which of the candidates is chosen and appended; None while none is.
        title: of the moment.
        note: what to see in it, written where the scores would stand; only while there are none.
        labelled: whether the stations are named at the left, which takes room.
        ax: a stage, in inches: `new_stage` or `as_stage`.
    """
    count = len(texts)
    rows = as_finite(rows, (count, np.shape(rows)[-1] if np.ndim(rows) else 0))
    chances = as_amounts(probabilities, (len(candidates),))
    if len(ids) != count or not 0 <= first < count or not -1 <= floor <= layers + 1:
        raise ValueError(
            f"{count} texts, {len(ids)} ids, first is {first}, floor is {floor}: expected as many ids, first below "
            f"{count}, and a floor from -1 to {layers + 1}"
        )
    width, height = ax.get_xlim()[1], ax.get_ylim()[1]
    left = 1.42 if labelled else 0.12
    appended = drawn is not None
    names = [_short(text) for text in texts] + ([_short(candidates[drawn])] if appended else [])
    places = _columns(names, left=left + 0.06, right=width - (1.6 if labelled else 0.27 if appended else 0.14))
    columns = places[:count]

    tower = _tower(layers, labelled, columns, left=left, top=height - (0.32 if title else 0.08))

    _draw_beams(ax, tower, columns, first, floor)
    _draw_floors(ax, tower, columns, first, floor)
    _draw_table(ax, tower, columns, rows, first, floor)
    for number, (x, wide) in enumerate(places):
        new = number >= first if not appended else number == count
        name = _fitting(names[number], wide)
        draw_token(ax, x, tower.boxes, name, width=wide, height=BOX, state="now" if new else "past")
        if number < count:
            write(ax, x, tower.boxes - BOX / 2 - 0.1, str(ids[number]), fontsize=9, colour=QUIET)
    if floor > layers:
        from_bar = _draw_scores(ax, tower, candidates, chances, kept, drawn)
    else:
        write(ax, left + 0.02, tower.scores + tower.scores_height / 2, note, ha="left", colour=QUIET, fontsize=10)
    if appended:
        _draw_way_back(ax, tower, places[count], from_bar)
    if labelled:
        _name_stations(ax, tower, shown=len(candidates))
    write(ax, left - 0.02, height - 0.14, title, fontsize=10, ha="left", weight="bold")
    return ax


def _short(text: str) -> str:
    """A token without the space before it, so that its box is narrow; a space alone is a sign."""
    return drawable(text.strip()) or "␣"


def _fitting(name: str, wide: float) -> str:
    """As much of a name as its box has room for."""
    while len(name) > 1 and text_width(name) / 72 > wide - 0.04:
        name = name[:-2] + "…"
    return name


def _columns(names: Sequence[str], *, left: float, right: float) -> list[Column]:
    """The middle and the width of each box, one after the other; all are narrower where there is too little room."""
    widths = np.array([text_width(name) / 72 + PADDING for name in names])
    widths = np.maximum(widths, 0.26)
    room = right - left - GAP * (len(names) - 1)
    widths *= min(1, room / widths.sum())
    starts = left + np.concatenate([[0], np.cumsum(widths[:-1] + GAP)])
    return list(zip(starts + widths / 2, widths, strict=True))


def _tower(layers: int, labelled: bool, columns: Sequence[Column], *, left: float, top: float) -> Tower:
    """The heights of all parts, from the boxes up; the floors share what is left below the scores."""
    boxes = 0.36
    table = boxes + BOX / 2 + 0.2
    floors = table + ROW + 0.12
    scores_height = 1.22 if labelled else 0.98
    scores = top - scores_height
    right = max(x + wide / 2 for x, wide in columns) + 0.1
    step = (scores - floors) / (layers + 0.8)
    return Tower(layers, labelled, left, right, boxes, table, floors, step, scores, scores_height)


def _draw_beams(ax: Axes, tower: Tower, columns: Sequence[Column], first: int, floor: int) -> None:
    """The way that the tokens on their way have come, up to where they are; scores are made of the last one alone."""
    base, layers = tower.boxes, tower.layers
    among = tower.floors + tower.step * min(floor - 0.5, layers)
    reached = {MARKS_BELOW: base, 0: tower.floors - 0.12}.get(floor, among)
    above = tower.step * 0.8 + 0.02 if floor > layers else 0
    beams = [
        Rectangle((x - 0.09, base), 0.18, reached - base + (above if number == len(columns) - 1 else 0))
        for number, (x, _) in enumerate(columns)
        if number >= first
    ]
    ax.add_collection(PatchCollection(beams, facecolor=ON_WAY, edgecolor="none", zorder=0.5))


def _draw_floors(ax: Axes, tower: Tower, columns: Sequence[Column], first: int, floor: int) -> None:
    """One slab per layer, full once this pass has read it, and on it keys and values of the tokens that have passed."""
    step, numbers = tower.step, range(1, tower.layers + 1)
    thick = 0.78 * step
    for number in numbers:
        read = number <= floor
        ax.add_patch(
            FancyBboxPatch(
                (tower.left, tower.floors + step * (number - 1) + (step - thick) / 2),
                tower.right - tower.left,
                thick,
                boxstyle=f"round,pad=0,rounding_size={0.2 * thick}",
                facecolor=pale(WEIGHTS, 0.35) if read else pale(WEIGHTS, 0.8),
                edgecolor=WEIGHTS if read else pale(WEIGHTS, 0.55),
                linewidth=1.2 if read else 0.6,
                zorder=0.4,
            )
        )
    size = min(0.15, 0.72 * thick)
    for colour, shift in ((KEY, -0.52 * size), (VALUE, 0.52 * size)):
        for now in (False, True):
            squares = [
                Rectangle((x + shift - size / 2, tower.floors + step * (number - 0.5) - size / 2), size, size)
                for place, (x, _) in enumerate(columns)
                for number in numbers
                if (place >= first) == now and (place < first or number <= floor)
            ]
            face = colour if now else pale(colour, 0.45)
            ax.add_collection(PatchCollection(squares, facecolor=face, edgecolor="white", linewidth=0.5, zorder=1.2))


def _draw_table(ax: Axes, tower: Tower, columns: Sequence[Column], rows: np.ndarray, first: int, floor: int) -> None:
    """Above each box the row that its id picks, as a framed column of shades, once it has been looked up."""
    shades = np.clip(rows / (np.abs(rows).max() or 1), -1, 1)
    cells, faces, frames = [], [], []
    high = ROW / rows.shape[1]
    for number, (x, _) in enumerate(columns):
        if number >= first and floor < 0:
            continue
        for place, value in enumerate(shades[number]):
            cells.append(Rectangle((x - 0.09, tower.table + place * high), 0.18, high))
            shade = pale(INK, 0.55 - 0.4 * value)
            faces.append(shade if number >= first else pale(shade, 0.6))
        frames.append(Rectangle((x - 0.09, tower.table), 0.18, ROW))
    ax.add_collection(PatchCollection(cells, facecolor=faces, edgecolor="white", linewidth=0.4, zorder=1))
    ax.add_collection(PatchCollection(frames, facecolor="none", edgecolor=IDLE_EDGE, linewidth=0.8, zorder=1))


def _draw_scores(
    ax: Axes, tower: Tower, candidates: Sequence[str], chances: np.ndarray, kept: Sequence[bool], drawn: int | None
) -> tuple[float, float]:
    """The likeliest next tokens as bars; what top-p cuts is grey. Returns the place beside the drawn one's number."""
    names = [_short(text) for text in candidates]
    high = (tower.scores_height - 0.1) / max(len(names), MOST_BARS)
    start = tower.left + max((text_width(name) / 72 for name in names), default=0) + 0.2
    scale = (ax.get_xlim()[1] - start - (2.6 if tower.labelled else 0.75)) / max(chances.max(initial=0), 0.25)
    beside = (0.0, 0.0)
    for row, (name, chance) in enumerate(zip(names, chances, strict=True)):
        y = tower.scores + 0.02 + (max(len(names), MOST_BARS) - row - 0.5) * high
        chosen, stays = row == drawn, not len(kept) or kept[row]
        face = QUERY if chosen else pale(QUERY, 0.55) if stays else IDLE
        ax.add_patch(
            Rectangle(
                (start, y - 0.3 * high), chance * scale, 0.6 * high, facecolor=face, edgecolor=face if stays else QUIET
            )
        )
        look = {"colour": INK, "weight": "bold"} if chosen else {"colour": QUIET}
        write(ax, start - 0.08, y, name, ha="right", **look)
        write(ax, start + chance * scale + 0.06, y, f"{chance:.2f}", ha="left", **look)
        if chosen:
            beside = (start + chance * scale + 0.45, y)
    return beside


def _draw_way_back(ax: Axes, tower: Tower, place: Column, from_bar: tuple[float, float]) -> None:
    """From the drawn bar down the right edge to the new box."""
    x, wide = place
    base = tower.boxes
    (bar, y), edge = from_bar, ax.get_xlim()[1] - (1.3 if tower.labelled else 0.08)
    look = {"color": QUERY, "linewidth": 1.6, "solid_joinstyle": "round"}
    ax.plot([bar, edge, edge], [y, y, base], **look)
    head = {"arrowstyle": "-|>", "mutation_scale": 11, "shrinkA": 0, "shrinkB": 1}
    ax.add_patch(FancyArrowPatch((edge, base), (x + wide / 2, base), color=QUERY, linewidth=1.6, **head))
    if tower.labelled:
        write(ax, edge + 0.1, (y + base) / 2, "appended,\nand round again", ha="left", colour=QUIET)


def _name_stations(ax: Axes, tower: Tower, *, shown: int) -> None:
    """What stands in each line, at the left."""
    named = [
        (tower.boxes, "tokens, their ids"),
        (tower.table + ROW / 2, "a row of the\ntable for each id"),
        (
            tower.floors + tower.step * tower.layers / 2,
            f"{tower.layers} floors (layers),\neach keeps a key\n(left) and a value\n(right) of a token",
        ),
    ]
    if shown:
        text = f"chances of the\nnext token, the\n{shown} likeliest;\none is drawn"
        named.append((tower.scores + tower.scores_height / 2, text))
    for y, text in named:
        write(ax, 0.08, y, text, ha="left", colour=QUIET, fontsize=9)


@mpl.rc_context(STYLE)
def plot_pieces(pieces: Sequence[bytes], *, printed: Sequence[str], ax: Axes | None = None) -> Axes:
    """Draw tokens with their bytes, what each is as text by itself, and what a patient printer prints when it comes.

    Args:
        pieces: the bytes of each token.
        printed: what can be printed once it has come.
        ax: a stage of any width; None starts one.
    """
    if len(pieces) != len(printed) or not pieces:
        raise ValueError(f"{len(pieces)} pieces, {len(printed)} texts: expected a text for each of at least one piece")
    lines = (1.45, 0.8, 0.3)
    if ax is None:
        _, (ax,) = new_stage(8, 1.8)
    alone = [piece.decode(errors="replace") for piece in pieces]
    names = [piece.hex(" ").upper() for piece in pieces]
    columns = _columns(names, left=1.6, right=ax.get_xlim()[1] - 0.1)
    for (x, wide), name, text, came in zip(columns, names, alone, printed, strict=True):
        broken = "\ufffd" in text
        draw_token(ax, x, lines[0], _fitting(name, wide), width=wide, height=BOX, state="now" if broken else "past")
        write(ax, x, lines[1], with_spaces(text), fontsize=15, colour=INK if broken else QUIET)
        shown = with_spaces(came) or "·"
        write(ax, x, lines[2], shown, fontsize=15, colour=INK if came else QUIET)
    for y, name in zip(lines, ("tokens, in bytes", "each one alone", "held until whole"), strict=True):
        write(ax, 0.08, y, name, ha="left", colour=QUIET)
    return ax
