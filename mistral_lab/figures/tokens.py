"""Tokens in pictures: how their text can be drawn, where they stand in lines, the colours of their experts."""

from collections.abc import Collection, Sequence
from functools import lru_cache

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path

from .language import EXPERTS
from .style import STYLE, readable_on

TOKEN_POINTS = 9.5  # size of a token's letters
TOKEN_GAP, LINE_POINTS = 3, 18  # between tokens, and from line to line
LONGEST_TOKEN = 24  # characters, escapes included; a longer token is cut
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def drawable(text: str) -> str:
    """The text as it can be drawn: with escapes for line breaks and for what the font lacks, and cut if it is long.

    >>> drawable("a 未\\n")
    'a \\\\u672a\\\\n'
    """
    drawn = _escaped(text)
    return drawn if len(drawn) <= LONGEST_TOKEN else drawn[: LONGEST_TOKEN - 1] + "…"


def with_spaces(text: str) -> str:
    """The text as it can be drawn, each space as a sign: a token that begins with one differs from one that does not.

    >>> with_spaces(" She\\n")
    '␣She\\\\n'
    """
    return drawable(text.replace(" ", "␣"))


def quoted(text: str) -> str:
    """The text in quotes, as Python would write it, with escapes for what the font lacks.

    >>> quoted(" 未\\n")
    "' \\\\u672a\\\\n'"
    """
    return _escaped(repr(text))


def boxes_in_lines(widths: Sequence[float], *, line_width: float, gap: float, ends: Collection[int] = ()) -> np.ndarray:
    """Where boxes stand that follow each other like words, line after line.

    Args:
        widths: of the boxes.
        line_width: of a line; a box that is wider has a line of its own.
        gap: between two boxes.
        ends: numbers of the boxes after which a line ends.

    Returns:
        (boxes, 3) float: left edge, width and line of each.

    >>> boxes_in_lines([4.0, 5.0, 3.0], line_width=10.0, gap=1.0).tolist()
    [[0.0, 4.0, 0.0], [5.0, 5.0, 0.0], [0.0, 3.0, 1.0]]
    """
    places, left, line = [], 0.0, 0
    for box, width in enumerate(widths):
        if left and left + width > line_width:
            left, line = 0.0, line + 1
        places.append((left, width, line))
        left += width + gap
        if box in ends:
            left, line = 0.0, line + 1
    return np.array(places, float).reshape(-1, 3)


def token_places(tokens: Sequence[str], *, experts: int, width_in: float) -> np.ndarray:
    """Where each token of a text stands: left edge and width in points, and line.

    Args:
        tokens: their texts.
        experts: how many there are, because the widest number has to fit.
        width_in: of the line.

    Returns:
        (tokens, 3) float.
    """
    widths = [4 + text_width(_with_number(token, experts - 1)) for token in tokens]
    ends = {place for place, token in enumerate(tokens) if "\n" in token}
    return boxes_in_lines(widths, line_width=72 * width_in, gap=TOKEN_GAP, ends=ends)


@mpl.rc_context(STYLE)
def plot_coloured_tokens(
    tokens: Sequence[str], *, experts: Sequence[int], places: np.ndarray, title: str, ax: Axes
) -> Axes:
    """Draw a text token by token, each in the hue of its expert, whose number is the subscript.

    Args:
        tokens: their texts.
        experts: the number of each token's expert; eight experts have hues of their own, then they repeat.
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
        colour = EXPERTS[expert % len(EXPERTS)]
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


def _escaped(text: str) -> str:
    glyphs = font_letters()
    return "".join(
        letter if letter.isprintable() and ord(letter) in glyphs else letter.encode("unicode_escape").decode()
        for letter in text
    )


@lru_cache(1)
def font_letters() -> frozenset[int]:
    """The code points that the font can draw."""
    return frozenset(get_font(findfont(STYLE["font.family"])).get_charmap())


@lru_cache(4096)
def text_width(text: str) -> float:
    """The width of a token's text, in points."""
    font = FontProperties(family=STYLE["font.family"], size=TOKEN_POINTS)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]


def _with_number(token: str, expert: int) -> str:
    shown = drawable(token)
    return (shown if shown.strip() else shown.replace(" ", "␣")) + str(expert).translate(SUBSCRIPTS)
