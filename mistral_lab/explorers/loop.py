"""The explorer of lesson 1's picture: a text on its way round the loop, step by step, with a model's own tokens."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..figures import bare_figure, drawable, new_stage, plot_loop
from ..figures.language import as_stage
from .base import Explorer, moving_slider

STOPS = 4  # on the way up the floors; a tall tower is climbed several floors at a time
INTERVAL_MS = 700
LEAST_SHOWN = 0.005  # a smaller chance is written as 0.00 and has no bar
SIZE = (8.0, 4.6)  # inches
STILL = (4.0, 3.2)  # of one moment of the strip


class Moment(NamedTuple):
    """A state of the loop: how many tokens there are, the first on its way, its floor, and whether one is drawn."""

    tokens: int
    first: int
    floor: int
    drawn: bool


def moments(prompt_tokens: int, new_tokens: int, layers: int) -> list[Moment]:
    """List the states of a whole trip: for each new token the boxes, rows of the table, floors, scores, the draw.

    >>> [moment.floor for moment in moments(5, 1, layers=2)]
    [-1, 0, 1, 2, 3, 3]
    """
    stops = sorted({round(layers * stop / STOPS) for stop in range(1, STOPS + 1)} - {0})
    found = []
    for number in range(new_tokens):
        tokens = prompt_tokens + number
        first = tokens - 1 if number else 0
        found += [Moment(tokens, first, floor, drawn=False) for floor in (-1, 0, *stops, layers + 1)]
        found.append(Moment(tokens, first, layers + 1, drawn=True))
    return found


def token_loop(trip) -> Explorer:
    """Step through a model's loop: the prompt goes up at once, each new token alone, and what is kept grows.

    Args:
        trip: what `experiments.follow_tokens` noted.
    """
    states = moments(trip.prompt_tokens, len(trip.drawn), trip.layers)

    def view(moment: int):
        figure, (ax,) = new_stage(*SIZE, kept=False)
        _draw_moment(ax, trip, states[moment], labelled=True)
        return figure, _say(trip, states[moment])

    def still():
        figure, axes = bare_figure(2, 2, height_in=2 * STILL[1])
        figure.set_layout_engine("none")
        middle = trip.layers // 2 or 1
        for place, (ax, state, title, note) in enumerate(zip(axes.flat, *_strip(trip, middle), strict=True)):
            ax.set_position((place % 2 / 2, 0.5 - place // 2 / 2, 0.5, 0.5))
            as_stage(ax, *STILL)
            _draw_moment(ax, trip, state, title=title, note=note)
        return figure, (
            f"Four moments: the {trip.prompt_tokens} tokens of the prompt go up through {trip.layers} floors at once; "
            f"{_named(trip, 0)} is drawn and appended; it goes up alone, past the keys and values that the others left "
            f"on every floor; {_named(trip, 1)} is drawn."
        )

    return Explorer({"moment": moving_slider("moment", 0, 0, len(states) - 1, INTERVAL_MS)}, view, still)


def loop_picture(trip) -> tuple[Figure, str, str]:
    """Draw the whole loop at the moment at which the first new token is appended.

    Args:
        trip: what `experiments.follow_tokens` noted.

    Returns:
        the figure, what it shows, and what to see in it: the arguments of `figures.show`.
    """
    figure, (ax,) = new_stage(*SIZE, kept=False)
    _draw_moment(ax, trip, Moment(trip.prompt_tokens, 0, trip.layers + 1, drawn=True), labelled=True)
    return (
        figure,
        f"{trip.prompt_tokens} tokens rise through {trip.layers} floors; above stand the chances of the likeliest next "
        f"tokens, and {_named(trip, 0)} is drawn and appended.",
        "Text becomes tokens, each token a row of numbers. The rows rise through all floors, on top stand the chances "
        "of the next token, one is drawn, and the loop begins again.",
    )


def _draw_moment(ax: Axes, trip, moment: Moment, *, title: str = "", note: str = "", labelled: bool = False) -> None:
    """Draw one moment of a trip on a stage in inches; the rest as `figures.plot_loop` takes it."""
    tokens, first, floor, drawn = moment
    draw = tokens - trip.prompt_tokens
    shown = [
        place
        for place, chance in enumerate(trip.probabilities[draw])
        if floor > trip.layers and (chance >= LEAST_SHOWN or place == trip.drawn[draw])
    ]
    plot_loop(
        trip.texts[:tokens],
        ids=trip.ids[:tokens],
        rows=trip.rows[:tokens],
        first=first,
        floor=floor,
        layers=trip.layers,
        candidates=[trip.candidates[draw][place] for place in shown],
        probabilities=[trip.probabilities[draw][place] for place in shown],
        kept=[trip.kept[draw][place] for place in shown],
        drawn=shown.index(trip.drawn[draw]) if drawn else None,
        title=title,
        note=note,
        labelled=labelled,
        ax=ax,
    )


def _strip(trip, middle: int) -> tuple[Sequence[Moment], Sequence[str], Sequence[str]]:
    """The four moments of the still, with their titles and notes."""
    prompt, top = trip.prompt_tokens, trip.layers + 1
    states = (
        Moment(prompt, 0, middle, drawn=False),
        Moment(prompt, 0, top, drawn=True),
        Moment(prompt + 1, prompt, middle, drawn=False),
        Moment(prompt + 1, prompt, top, drawn=True),
    )
    titles = (
        "1  Prefill: the prompt goes up at once",
        "2  One is drawn, and appended",
        "3  Decode: it goes up alone",
        "4  The next one is drawn",
    )
    notes = (
        f"{prompt} tokens, one pass:\nevery floor is read once",
        "",
        "1 token, one pass:\nevery floor is read again",
    )
    return states, titles, (*notes, "")


def _say(trip, moment: Moment) -> str:
    """What happens at a moment, in a sentence or two."""
    tokens, first, floor, drawn = moment
    draw = tokens - trip.prompt_tokens
    going = f"{_named(trip, draw - 1)} goes up alone" if first else f"the {tokens} tokens of the prompt go up at once"
    if drawn:
        times = "once" if draw == 0 else f"{draw + 1} times"
        return f"{_named(trip, draw)} is drawn and appended. Every floor has now been read {times}."
    if floor > trip.layers:
        return (
            f"The last token has become a score for each of {trip.vocab_size:,} tokens, and each score a chance; here "
            "are the likeliest."
        )
    if floor < 0:
        return f"{'Decode' if first else 'Prefill'}: {going}."
    if floor == 0:
        return f"Each id picks its row of the table, which has {trip.vocab_size:,}. The other rows are not read."
    return f"Floor {floor} of {trip.layers} is read, and keeps the keys and values of {tokens} tokens."


def _named(trip, draw: int) -> str:
    """The token of one draw, in quotes."""
    return f"“{drawable(trip.candidates[draw][trip.drawn[draw]].strip()) or 'a space'}”"
