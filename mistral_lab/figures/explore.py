"""What only the explorers draw: a ring and what it keeps, tokens coloured by expert, guesses by layer, codes in use."""

from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO

import matplotlib as mpl
import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle, Wedge
from matplotlib.textpath import text_to_path

from .style import COLOURS, COLOURS_KEPT, FADED, FINENESS, INK, PAGE_DPI, STYLE, WIDTH_IN, as_amounts, readable_on
from .windows import MARKED

TOKEN_POINTS = 9.5  # size of a token's letters
TOKEN_GAP, LINE_POINTS = 3, 18  # between tokens, and from line to line
LONGEST_TOKEN = 24  # characters, escapes included; of a longer one the rest is left out
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@mpl.rc_context(STYLE)
def bare_figure(
    rows: int = 1,
    columns: int = 1,
    *,
    height_in: float = 3.0,
    widths: Sequence[float] | None = None,
    heights: Sequence[float] | None = None,
    share: bool = False,
) -> tuple[Figure, np.ndarray]:
    """Start a figure as `new_figure` does, but one that pyplot does not keep: it is gone when its owner lets it go.

    Args:
        rows, columns: of Axes.
        height_in: height of the whole figure in inches; it is 8 inches wide.
        widths, heights: of the columns and rows in proportion; None makes them equal.
        share: whether all Axes have both scales in common.

    Returns:
        the figure, and its Axes as an array of shape (rows, columns).
    """
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = figure.subplots(
        rows, columns, sharex=share, sharey=share, width_ratios=widths, height_ratios=heights, squeeze=False
    )
    return figure, axes


def render(figure: Figure) -> PIL.Image.Image:
    """Draw the figure, twice as fine as the page."""
    figure.set_dpi(FINENESS * PAGE_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def to_png(picture: PIL.Image.Image, *, small: bool) -> bytes:
    """The picture as PNG: in few bytes, as for a file that is kept, or else quickly, as for a screen."""
    png = BytesIO()
    picture = picture.quantize(COLOURS_KEPT, PIL.Image.Quantize.FASTOCTREE)  # faster than all of its colours, too
    picture.save(png, format="png", optimize=small, compress_level=1)
    return png.getvalue()


@mpl.rc_context(STYLE)
def plot_ring(held: np.ndarray, *, written: int, longest: int, ax: Axes) -> Axes:
    """Draw a ring of slots, clockwise from the top, each with the position it holds and a frame around one.

    Args:
        held: (W,) whole numbers, the position in each slot, -1 where it is empty.
        written: the slot to frame.
        longest: the position with the last colour.
    """
    held = np.asarray(held)
    if held.ndim != 1 or not 0 <= written < len(held):
        raise ValueError(f"held has shape {held.shape} and written is {written}: expected (W,), and one of its slots")
    turn = 360 / len(held)
    for slot, position in enumerate(held):
        colour = _position_colour(position, longest)
        start = 90 - (slot + 1) * turn
        ax.add_patch(Wedge((0, 0), 1, start, start + turn, width=0.45, facecolor=colour, edgecolor="white"))
        angle = np.radians(start + turn / 2)
        if position >= 0:
            place = 0.775 * np.cos(angle), 0.775 * np.sin(angle)
            ax.text(*place, str(position), ha="center", va="center", color=readable_on(colour))
        side = "center" if abs(np.cos(angle)) < 0.3 else "left" if np.cos(angle) > 0 else "right"
        place = 1.09 * np.cos(angle), 1.13 * np.sin(angle)
        ax.text(*place, f"slot {slot}", ha=side, va="center", fontsize=9)
    start = 90 - (written + 1) * turn
    ax.add_patch(Wedge((0, 0), 1, start, start + turn, width=0.45, fill=False, edgecolor=MARKED, linewidth=2.5))
    ax.set_aspect("equal")
    ax.set_xlim(-1.6, 1.6)
    ax.set_ylim(-1.3, 1.3)
    ax.axis("off")
    return ax


@mpl.rc_context(STYLE)
def plot_positions(visible: np.ndarray, *, newest: int, title: str, per_row: int = 8, ax: Axes) -> Axes:
    """Draw all positions of a text as cells: those that can be seen in colour, the others grey, the coming ones empty.

    Args:
        visible: (T,) bool.
        newest: the position that is framed; what comes after it is empty.
        title: what the colours are.
        per_row: cells in a row.
    """
    visible = np.asarray(visible)
    if visible.ndim != 1 or visible.dtype != bool or not 0 <= newest < len(visible):
        raise ValueError(
            f"visible has shape {visible.shape} in {visible.dtype}, newest is {newest}: expected bool (T,), one of T"
        )
    for position, seen in enumerate(visible):
        row, column = divmod(position, per_row)
        colour = "white" if position > newest else _position_colour(position if seen else -1, len(visible) - 1)
        edge = FADED if position > newest else "white"
        ax.add_patch(Rectangle((column - 0.46, row - 0.4), 0.92, 0.8, facecolor=colour, edgecolor=edge))
        ink = "#8c8c8c" if position > newest else readable_on(colour)
        ax.text(column, row, str(position), ha="center", va="center", color=ink)
    row, column = divmod(newest, per_row)
    ax.add_patch(Rectangle((column - 0.46, row - 0.4), 0.92, 0.8, fill=False, edgecolor=MARKED, linewidth=2.5))
    ax.set_xlim(-0.6, per_row - 0.4)
    ax.set_ylim((len(visible) - 1) // per_row + 0.6, -0.6)
    ax.axis("off")
    ax.set_title(title)
    return ax


@mpl.rc_context(STYLE)
def plot_code_shares(shares: np.ndarray, *, title: str, ax: Axes) -> Axes:
    """Draw how often each code is used.

    Args:
        shares: (codes,), from 0 to 1.
        title: where.
    """
    shares = as_amounts(shares, np.shape(shares))
    ax.bar(range(len(shares)), 100 * shares, color=COLOURS[0])
    ax.set_xticks(range(0, len(shares), 3))
    ax.set_ylim(0, 105)
    ax.set_xlabel("code")
    ax.set_ylabel("weights that have it, %")
    ax.grid(axis="y")
    ax.set_title(title)
    return ax


@mpl.rc_context(STYLE)
def plot_guesses(
    probabilities: np.ndarray, *, guesses: Sequence[str], names: Sequence[str], same: np.ndarray, ax: Axes
) -> Axes:
    """Draw the likeliest token at each depth as a bar with its text; grey where it is not the last one's.

    Args:
        probabilities: (depths,), of each guess.
        guesses: its text.
        names: of the depths, the first on top.
        same: (depths,) bool, where the guess is that of the last depth.
    """
    probabilities = as_amounts(probabilities, (len(names),))
    same = np.asarray(same)
    if len(guesses) != len(names) or same.shape != (len(names),) or same.dtype != bool:
        raise ValueError(
            f"{len(guesses)} guesses, same has shape {same.shape} in {same.dtype}: expected a guess and a bool for "
            f"each of {len(names)} depths"
        )
    ax.barh(range(len(names)), probabilities, color=[COLOURS[0] if equal else FADED for equal in same], height=0.74)
    for row, (probability, guess) in enumerate(zip(probabilities, guesses, strict=True)):
        text = f"{drawable(guess)}  {probability:.2f}"
        place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        ax.annotate(text, (probability, row), parse_math=False, **place)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(0, 1.45)  # room for the text beside the longest bar
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.set_xlabel("probability of the likeliest next token (grey: not the final answer)")
    ax.tick_params(axis="y", length=0)
    return ax


@mpl.rc_context(STYLE)
def plot_coloured_tokens(
    tokens: Sequence[str], *, experts: Sequence[int], places: np.ndarray, title: str, ax: Axes
) -> Axes:
    """Draw a text in its tokens, each in the colour of its expert, whose number is the subscript.

    Args:
        tokens: their texts.
        experts: a number for each; from the eleventh on, the colours come again.
        places: (tokens, 3): left edge and width in points, and line, as `token_places` gives them.
        title: whose choice it is.
    """
    places = np.asarray(places, float)
    if places.shape != (len(tokens), 3) or len(experts) != len(tokens):
        raise ValueError(
            f"places has shape {places.shape}, for {len(tokens)} tokens and {len(experts)} experts: expected a row and "
            "an expert for each token"
        )
    position = ax.get_position()
    width, height = np.array([position.width, position.height]) * ax.figure.get_size_inches() * 72
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)  # a unit is a point, from the top
    for token, expert, (left, wide, line) in zip(tokens, experts, places, strict=True):
        colour = COLOURS[expert % len(COLOURS)]
        ax.add_patch(Rectangle((left, line * LINE_POINTS), wide, LINE_POINTS - 3, facecolor=colour, linewidth=0))
        ax.text(
            left + 2,
            (line + 0.5) * LINE_POINTS - 1.5,
            _with_number(token, expert),
            fontsize=TOKEN_POINTS,
            va="center_baseline",
            color=readable_on(colour),
            parse_math=False,
        )
    ax.axis("off")
    ax.set_title(title)
    return ax


def token_places(tokens: Sequence[str], *, experts: int, width_in: float) -> np.ndarray:
    """Where each token of a text stands: left edge and width in points, and line.

    Args:
        tokens: their texts.
        experts: how many there are: room is left for the widest number.
        width_in: of the line.

    Returns:
        (tokens, 3) float.
    """
    places, left, line = [], 0.0, 0
    for token in tokens:
        wide = 4 + _width(_with_number(token, experts - 1))
        if left + wide > 72 * width_in and left:
            left, line = 0.0, line + 1
        places.append((left, wide, line))
        left += wide + TOKEN_GAP
        if "\n" in token:
            left, line = 0.0, line + 1
    return np.array(places).reshape(-1, 3)


@mpl.rc_context(STYLE)
def plot_expert_loads(load: np.ndarray, *, ax: Axes) -> Axes:
    """Draw the share of the assignments that each expert gets, in its colour, beside the share if all were even.

    Args:
        load: (E,) shares.
    """
    load = as_amounts(load, np.shape(load))
    colours = [COLOURS[expert % len(COLOURS)] for expert in range(len(load))]
    bars = ax.barh(range(len(load)), 100 * load, color=colours, height=0.74)
    ax.axvline(100 / len(load), color=INK, linewidth=1, linestyle=":")
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # or the line would cross out the numbers
    ax.bar_label(bars, [f"{100 * share:.0f}" for share in load], padding=4, fontsize=9, bbox=paper)
    ax.set_yticks(range(len(load)), [f"expert {expert}" for expert in range(len(load))], fontsize=9)
    ax.set_ylim(len(load) - 0.4, -0.6)
    ax.set_xlim(0, 1.25 * 100 * max(load.max(), 1 / len(load)))
    ax.set_xlabel("load, % (dotted: even)")
    ax.tick_params(axis="y", length=0)
    return ax


def keep_numbers_readable(ax: Axes, *, narrow: float) -> None:
    """Keep the numbers in stacked bars readable where lines cross them, and leave out those that have no room.

    Args:
        ax: of `plot_budget` or `plot_parameters`.
        narrow: a segment of a smaller share of the axis has no room for its number.
    """
    bars = [bar for container in ax.containers for bar in container]
    for bar, number in zip(bars, ax.texts, strict=True):
        if bar.get_width() < narrow * ax.get_xlim()[1]:
            number.set_text("")
        elif number.get_text():
            number.set_bbox({"facecolor": bar.get_facecolor(), "edgecolor": "none", "pad": 1})


def drawable(text: str) -> str:
    """The text as it can be drawn: line breaks and what the font lacks as escapes, and not too long.

    >>> drawable("a 未\\n")
    'a \\\\u672a\\\\n'
    """
    glyphs, drawn = _glyphs(), ""
    for letter in text:
        known = letter.isprintable() and ord(letter) in glyphs
        drawn += letter if known else letter.encode("unicode_escape").decode()
        if len(drawn) > LONGEST_TOKEN:
            return drawn[: LONGEST_TOKEN - 1] + "…"
    return drawn


@lru_cache(1)
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(STYLE["font.family"])).get_charmap())


@lru_cache(4096)
def _width(text: str) -> float:
    font = FontProperties(family=STYLE["font.family"], size=TOKEN_POINTS)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]


def _with_number(token: str, expert: int) -> str:
    return drawable(token) + str(expert).translate(SUBSCRIPTS)


def _position_colour(position: int, longest: int) -> str:
    return FADED if position < 0 else mpl.colors.to_hex(mpl.colormaps["viridis"](Normalize(0, longest)(position)))
