"""The visual language of all lessons: what a token, a query, a key, a value, an expert and a byte look like.

A drawn picture stands on a stage: Axes without ticks, on which a unit is as wide as it is high. What is now is full,
what is past is pale, what is idle is grey. Each sign has one colour and one shape, so that a picture can be read where
colours cannot be told apart. docs/visual-language.md shows every sign once.
"""

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path

from .canvas import WIDTH_IN, bare_figure, new_figure
from .style import INK, MEASURED, PREDICTED, STYLE, readable_on

QUERY, KEY, VALUE = "#2f6fde", "#e8870e", "#1f8f62"
WEIGHTS = "#7b6fb4"  # bytes of weights; bytes of keys and values have the keys' colour
ATTENTION = "#463a80"  # the weights of attention, where they stand beside those of experts or feed-forward networks
EXPERTS = ("#2f6fde", "#d99a00", "#1f8f62", "#b5359c", "#5b6472", "#c8402a", "#0e93a8", "#8a6d1c")
GUESS = "#c2257f"
WRONG = EXPERTS[5]  # what must not be seen and is, or the other way round; always with a word beside it
FLOOR = INK
IDLE, IDLE_EDGE = "#eef0f4", "#cbd2df"
QUIET = "#5a6478"  # small text that is no longer in the middle of things; 5 to 1 on what is idle, 6 on white
STATES = ("now", "past", "idle")
MORE_OR_LESS = LinearSegmentedColormap.from_list("more or less", (QUIET, "white", MEASURED))  # as expected is white


def pale(colour: str, share: float = 0.55) -> str:
    """Mix a colour with white, as what is past is drawn; share 0 keeps it, 1 is white."""
    return to_hex([c + (1 - c) * share for c in to_rgb(colour)])


def by_depth(number: int) -> list[str]:
    """Shades for so many lines in an order, such as layers: the first one the palest, the last one full."""
    return [pale(MEASURED, 0.62 * (1 - place / max(1, number - 1))) for place in range(number)]


def in_state(colour: str, state: str) -> str:
    """The colour of a sign that is "now" (full), "past" (pale) or "idle" (grey)."""
    if state not in STATES:
        raise ValueError(f"state is {state!r}: expected one of {', '.join(STATES)}")
    return {"now": colour, "past": pale(colour), "idle": IDLE}[state]


@mpl.rc_context(STYLE)
def new_stage(width: float, height: float, *, columns: int = 1, kept: bool = True) -> tuple[Figure, list[Axes]]:
    """Start a figure as wide as the page, with blank Axes side by side to draw signs on.

    Args:
        width, height: of each stage in its own units; a unit is as wide as it is high.
        columns: how many stages, each with the same units.
        kept: whether pyplot keeps the figure, as `show` needs; an explorer drops its own.

    Returns:
        the figure, and its Axes from the left.
    """
    start = new_figure if kept else bare_figure
    figure, axes = start(columns=columns, height_in=WIDTH_IN * height / (width * columns))
    figure.set_layout_engine("none")
    for column, ax in enumerate(axes[0]):
        ax.set_position((column / columns, 0, 1 / columns, 1))
        as_stage(ax, width, height)
    return figure, list(axes[0])


def as_stage(ax: Axes, width: float, height: float) -> None:
    """Make Axes a stage: (0, 0) is its lower left corner, (width, height) its upper right one, and no frame shows."""
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.set_axis_off()


def draw_token(
    ax: Axes,
    x: float,
    y: float,
    text: str,
    *,
    width: float = 1.0,
    height: float = 0.5,
    state: str = "past",
    colour: str = QUERY,
    fontsize: float = 9,
) -> None:
    """Draw a token: a rounded box with its text.

    Args:
        x, y: its middle.
        state: "now" frames it in `colour`, as the newest token; "past" has a grey frame; "idle" has none.
        colour: the query's, unless the token stands for something else, such as a name that is looked for.
    """
    in_state(colour, state)  # refuses another state
    edge = {"now": colour, "past": IDLE_EDGE, "idle": IDLE}[state]
    face = pale(colour, 0.85) if state == "now" else IDLE
    _draw_box(ax, x, y, width, height, corner=0.22, face=face, edge=edge, linewidth=2 if state == "now" else 1)
    write(ax, x, y, text, fontsize=fontsize, colour=INK if state == "now" else QUIET)


def draw_query(ax: Axes, x: float, y: float, text: str = "", *, size: float = 0.5, state: str = "now") -> None:
    """Draw a query: a circle, hollow, because it asks and is gone. `size` is its diameter."""
    edge = in_state(QUERY, state) if state != "idle" else IDLE_EDGE
    ax.add_patch(Circle((x, y), size / 2, facecolor="white", edgecolor=edge, linewidth=2))
    write(ax, x, y, text, colour=QUERY if state == "now" else QUIET)


def draw_key(ax: Axes, x: float, y: float, text: str = "", *, size: float = 0.4, state: str = "now") -> None:
    """Draw a key: a square, filled, because it is kept."""
    _draw_square(ax, x, y, text, size, in_state(KEY, state))


def draw_value(ax: Axes, x: float, y: float, text: str = "", *, size: float = 0.4, state: str = "now") -> None:
    """Draw a value: a square like its key's, in its own colour."""
    _draw_square(ax, x, y, text, size, in_state(VALUE, state))


def draw_expert(
    ax: Axes, x: float, y: float, number: int, *, width: float = 0.8, height: float = 1.2, state: str = "now"
) -> None:
    """Draw an expert: a door with its number, in its own hue while it is used."""
    face = in_state(EXPERTS[number % len(EXPERTS)], state)
    edge = IDLE_EDGE if state == "idle" else face
    _draw_box(ax, x, y, width, height, corner=0.12, face=face, edge=edge, linewidth=1)
    write(ax, x, y, str(number), fontsize=12, weight="bold", colour=QUIET if state == "idle" else readable_on(face))


def draw_bytes(
    ax: Axes,
    x: float,
    y: float,
    amount: float,
    *,
    scale: float,
    text: str = "",
    colour: str = KEY,
    height: float = 0.25,
    most: float | None = None,
    mark: float | None = None,
) -> None:
    """Draw bytes: a bar whose width is its bytes, with its label below.

    Args:
        x, y: the middle of its left end.
        amount: bytes.
        scale: width of one byte, the same for every bar of a picture.
        colour: `KEY` for keys and values, `WEIGHTS` for weights.
        most: bytes of the grey track behind the bar; None draws none.
        mark: bytes at which an upright line stands, for comparison.
    """
    if most is not None:
        ax.add_patch(Rectangle((x, y - height / 2), most * scale, height, facecolor=IDLE, edgecolor="none"))
    ax.add_patch(Rectangle((x, y - height / 2), amount * scale, height, facecolor=colour, edgecolor="none"))
    if mark is not None:
        ax.plot([x + mark * scale] * 2, [y - 0.8 * height, y + 0.8 * height], color=INK, linewidth=2)
    write(ax, x, y - 1.3 * height, text, ha="left", va="top")


def draw_link(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    colour: str = QUERY,
    width: float = 1.2,
    state: str = "now",
    curved: bool = False,
) -> None:
    """Draw a line from one sign to another: who reads what, or how something travels. `width` is in points."""
    (x0, y0), (x1, y1) = start, end
    middle = (y0 + y1) / 2
    points = [start, (x0, middle), (x1, middle), end] if curved else [start, end]
    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4] if curved else [Path.MOVETO, Path.LINETO]
    edge = IDLE_EDGE if state == "idle" else in_state(colour, state)
    ax.add_patch(
        PathPatch(Path(points, codes), facecolor="none", edgecolor=edge, linewidth=width, capstyle="round", zorder=0.9)
    )


def draw_measured(ax: Axes, x: float | Sequence[float], y: float | Sequence[float]) -> None:
    """Mark what was measured on the Axes of a chart: a solid dot."""
    ax.plot(x, y, "o", color=MEASURED, markersize=7, zorder=4)


def draw_predicted(ax: Axes, x: float | Sequence[float], y: float | Sequence[float]) -> None:
    """Mark what was predicted on the Axes of a chart: a hollow dot."""
    ax.plot(x, y, "o", markerfacecolor="white", markeredgecolor=PREDICTED, markeredgewidth=2, markersize=8, zorder=3)


def draw_floor(ax: Axes, at: float, *, text: str = "at least") -> None:
    """Draw a floor on the Axes of a chart: an upright line at the least amount, which nothing crosses, labelled."""
    ax.axvline(at, color=FLOOR, linewidth=1.5, zorder=2)
    ax.annotate(text, (at, 1), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points", va="top")


def draw_guess(ax: Axes, x: float, y: float, *, label: str = "a guess") -> None:
    """Mark a guess on the Axes of a chart: a flag, planted at the place, with its label.

    The place has to lie within the limits of the axes; the caller makes room for it.
    """
    pole, cloth = 22, 13  # points
    ax.annotate("", (x, y), (0, pole), textcoords="offset points", arrowprops={"arrowstyle": "-", "color": GUESS})
    flag = [(0, 0), (cloth, -cloth / 3), (0, -2 * cloth / 3)]
    ax.annotate(
        label,
        (x, y),
        (cloth + 3, pole - 1),
        textcoords="offset points",
        color=GUESS,
        va="top",
        fontsize=9,
        zorder=6,
    )
    place = mpl.transforms.offset_copy(ax.transData, ax.figure, 0, pole, units="points")
    corner = mpl.transforms.ScaledTranslation(x, y, place)
    inches = [(a / 72, b / 72) for a, b in flag]
    at_corner = ax.figure.dpi_scale_trans + corner
    ax.add_patch(Polygon(inches, facecolor=GUESS, edgecolor="none", transform=at_corner, zorder=6, clip_on=False))


def write(
    ax: Axes,
    x: float,
    y: float,
    text: str,
    *,
    fontsize: float = 9,
    colour: str = INK,
    ha: str = "center",
    va: str = "center",
    weight: str = "normal",
) -> None:
    """Write beside a sign or in it; a dollar sign in the text stays one."""
    if text:
        ax.text(x, y, text, fontsize=fontsize, color=colour, ha=ha, va=va, weight=weight, parse_math=False)


def _draw_box(
    ax: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    corner: float,
    face: str,
    edge: str,
    linewidth: float,
) -> None:
    """Draw a box around its middle, whose corners are rounded by a share of its shorter side."""
    rounded = f"round,pad=0,rounding_size={corner * min(width, height)}"
    place = (x - width / 2, y - height / 2)
    ax.add_patch(
        FancyBboxPatch(place, width, height, boxstyle=rounded, facecolor=face, edgecolor=edge, linewidth=linewidth)
    )


def _draw_square(ax: Axes, x: float, y: float, text: str, size: float, face: str) -> None:
    ax.add_patch(Rectangle((x - size / 2, y - size / 2), size, size, facecolor=face, edgecolor="white", linewidth=0.8))
    write(ax, x, y, text, colour=readable_on(face))
