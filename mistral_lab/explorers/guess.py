"""A guess before a measurement: the reader commits a number, and the figure that measures it draws her number too."""

import math
from html import escape
from numbers import Real

import ipywidgets as widgets
import numpy as np

from .base import FULL, VIEW, WIDE

CSS_CLASS = "mistral-lab-guess"  # the browser test finds guesses by it
PLACES = 100  # between the ends of the slider, at most
# (question, unit) -> what the reader entered, and whether she pressed the button; until the kernel restarts
_entered: dict[tuple[str, str], tuple[float, bool]] = {}


class Guess:
    """A question to be answered with a number, by a slider or by typing. The button says what to do with it next.

    `value` and `label` go to the figure that shows the measurement, and are the reader's as soon as she moved or typed.
    Where no kernel runs, one line states a guess. What she entered is kept in this process, so running the cell again
    does not lose it. It is forgotten when the kernel restarts, and not used where a changed range leaves it out.

    Args:
        question: what is asked; the same question in the same unit finds again what was entered.
        least, most: the range of the slider and of what may be typed.
        stated: the guess that stands for the reader's until she enters her own.
        unit: of the number, such as "ms"; "" for a number without one.
        log: whether the slider moves by factors rather than by differences.

    Raises:
        TypeError: a number is none, or a text is none.
        ValueError: no question, an empty range, one that a logarithmic slider cannot cover, or `stated` outside of it.
    """

    def __init__(self, question: str, *, least: float, most: float, stated: float, unit: str = "", log: bool = False):
        _check(question, least, most, stated, unit, log)
        self.question, self.least, self.most, self.unit = question, float(least), float(most), unit
        self._stated = float(stated)
        self._places = _places(self.least, self.most, log=log)
        kept, committed = _entered.get((question, unit), (math.nan, False))
        self._own = least <= kept <= most
        self._value, self._committed = (kept, committed) if self._own else (self._stated, False)
        self._moving = False

        # The slider moves over places, not over numbers: a browser would move a typed number to the slider's next step.
        self.slider = widgets.IntSlider(
            self._nearest(), 0, len(self._places) - 1, description="your guess", readout=False, style=FULL, layout=WIDE
        )
        self.number = widgets.FloatText(self._value, description="or type it", style=FULL, layout={"width": "13em"})
        self.button = widgets.Button(description="That is my guess", button_style="primary")
        self._text = widgets.HTML()
        row = [self.slider, self.number, *([widgets.Label(unit)] if unit else []), self.button]
        asked = widgets.HTML(f"<b>{escape(question)}</b>")
        self.widget = widgets.VBox([asked, widgets.Box(row, layout={"flex_flow": "row wrap"}), self._text])
        self.widget.add_class(CSS_CLASS)
        self._say(self._state())
        self.slider.observe(lambda change: self._enter(float(self._places[change["new"]])), names="value")
        self.number.observe(lambda change: self._enter(change["new"]), names="value")
        self.button.on_click(self._commit)

    @property
    def value(self) -> float:
        """The guess, in the unit of the question."""
        return self._value

    @property
    def label(self) -> str:
        """What a figure writes beside it: whether it is the reader's own."""
        return "your guess" if self._own else "a guess"

    @property
    def sentence(self) -> str:
        """The line below the controls."""
        return self._sentence

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        """One bundle for every reader: the live controls, and the stated guess, which no reader's entry changes."""
        stated = f"A guess to compare with: {self._in_words(self._stated)} (move the slider to enter your own)"
        return {
            VIEW: {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id},
            "text/plain": stated,
        }

    def _enter(self, number: float) -> None:
        """Take a number from the slider or from the field, and show it in both."""
        if self._moving:
            return
        if self.least <= number <= self.most:
            self._keep(number, self._committed)
        else:
            reason = f"{self._in_words(number)} is outside of {_digits(self.least)} to {self._in_words(self.most)}"
            self._say(f"{reason}, so the guess is still {self._in_words(self._value)}.")
        self._moving = True
        try:
            self.slider.value, self.number.value = self._nearest(), self._value
        finally:
            self._moving = False

    def _commit(self, button: widgets.Button) -> None:
        self._keep(self._value, True)

    def _keep(self, number: float, committed: bool) -> None:
        self._value, self._committed, self._own = number, committed, True
        _entered[self.question, self.unit] = (number, committed)
        self._say(self._state())

    def _state(self) -> str:
        if not self._own:
            return f"A guess to compare with is {self._in_words(self._value)}. Move the slider, or type your own."
        guess = f"Your guess is {self._in_words(self._value)}."
        if self._committed:
            return f"{guess} The cells below now draw it: run them, again if they ran before."
        return f"{guess} Press “{self.button.description}” when you are sure."

    def _say(self, sentence: str) -> None:
        self._sentence = sentence
        self._text.value = f'<div role="status" style="line-height: 1.4">{escape(sentence)}</div>'

    def _nearest(self) -> int:
        return int(np.abs(self._places - self._value).argmin())

    def _in_words(self, number: float) -> str:
        return f"{_digits(number)} {self.unit}".rstrip()


def _places(least: float, most: float, *, log: bool) -> np.ndarray:
    """The numbers that the slider offers: both ends, and between them what two digits or a round step can say."""
    if log:
        places = [float(f"{place:.1e}") for place in np.geomspace(least, most, PLACES + 1)[1:-1]]
    else:
        step = next(s for s in _round_steps(most - least) if (most - least) / s <= PLACES)
        places = [float(f"{place:.12g}") for place in step * np.arange(math.ceil(least / step), most / step)]
    return np.unique([least, *(place for place in places if least < place < most), most])


def _round_steps(width: float):
    """1, 2, 5, 10, 20 and so on, from below a thousandth of the width."""
    power = math.floor(math.log10(width)) - 3
    while True:
        yield from (digit * 10.0**power for digit in (1, 2, 5))
        power += 1


def _digits(number: float) -> str:
    return f"{number:,.10g}"


def _check(question: str, least: float, most: float, stated: float, unit: str, log: bool) -> None:
    for name, text in (("question", question), ("unit", unit)):
        if not isinstance(text, str):
            raise TypeError(f"{name} is {text!r}: expected a text")
    if not question.strip():
        raise ValueError(f"question is {question!r}: expected what the reader is to guess")
    for name, number in (("least", least), ("most", most), ("stated", stated)):
        if not isinstance(number, Real) or isinstance(number, bool):
            raise TypeError(f"{name} is {number!r}: expected a number")
    if not isinstance(log, bool):
        raise TypeError(f"log is {log!r}: expected True or False")
    if not (math.isfinite(most - least) and least < most):
        raise ValueError(f"least is {least} and most is {most}: expected two finite numbers, least below most")
    if log and least <= 0:
        raise ValueError(f"least is {least}: expected a number above 0, because the slider is logarithmic")
    if not least <= stated <= most:
        raise ValueError(f"stated is {stated}: expected a number from {least} to {most}")
