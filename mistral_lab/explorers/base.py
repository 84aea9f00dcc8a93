"""What every explorer is made of: controls, a picture that follows them, and a sentence that says what it shows."""

import gc
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape

import ipywidgets as widgets
import matplotlib as mpl
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..figures import WIDTH_IN, render, to_png
from ..figures.canvas import PAGE_DPI
from ..figures.style import STYLE

VIEW = "application/vnd.jupyter.widget-view+json"
ALT = "A picture of this explorer; the sentence below it says what it shows."  # or a screen reader would read it twice
PLAIN = {ord(sign): f"&#{ord(sign)};" for sign in "\\`*_<[$~"}  # signs that Markdown would take for its own
CSS_CLASS = "mistral-lab-explorer"  # the browser test finds explorers by it
LIVE_STYLE = STYLE | {"axes.titley": 1.0}  # given, matplotlib does not measure every tick to find where a title goes


class Explorer:
    """Controls over a picture and its sentence. Where no kernel runs, one picture and its sentence stand for it.

    It is displayed as two outputs, because a notebook shows of each output one form alone: the controls with the
    picture, and below it the sentence. Live, both are widgets; without a kernel they are the picture and a line of
    Markdown.

    Args:
        controls: name -> widget with a description and a value; shown in this order, `moving_slider` with its buttons.
        view: called with the controls' values under their names; returns the figure and the sentence.
        still: called once, without arguments; returns the figure and the sentence that stand for the explorer where no
            kernel runs, such as a strip of four moments. None takes those of the first state.
        adapt: called with the controls before each drawing, to stop offering what the other values no longer allow.

    Raises:
        ValueError: a control has no description, or the first state cannot be drawn.
    """

    def __init__(
        self,
        controls: Mapping[str, widgets.DOMWidget],
        view: Callable[..., tuple[Figure, str]],
        still: Callable[[], tuple[Figure, str]] | None = None,
        *,
        adapt: Callable[[Mapping[str, widgets.DOMWidget]], None] | None = None,
    ):
        if unnamed := [name for name, control in controls.items() if not control.description]:
            raise ValueError(f"controls without a description: {', '.join(unnamed)}")
        self.controls = dict(controls)
        self._view, self._adapt, self._adapting = view, adapt, False
        self._places: dict[tuple[float, float, int], list] = {}  # size of a figure, number of Axes -> where they are
        figure, self.sentence = self._drawn()
        picture = render(figure)
        self._kept_png, self._kept_sentence = to_png(picture, small=True), self.sentence
        if still:
            with mpl.rc_context(STYLE):
                figure, self._kept_sentence = still()
                self._kept_png = to_png(render(figure), small=True)
        self._image = widgets.Image(
            value=to_png(picture, small=False),
            format="png",
            layout={"width": f"{_page_width()}px", "max_width": "100%"},
        )
        self._text = widgets.HTML(_as_html(self.sentence))
        row = widgets.Box(layout={"flex_flow": "row wrap"})
        for control in self.controls.values():  # a slider and its buttons stay side by side where a row is full
            row.children += (widgets.Box([control, control.play]) if isinstance(control, MovingSlider) else control,)
        self.widget = widgets.VBox([row, self._image])
        self.widget.add_class(CSS_CLASS)
        for control in self.controls.values():
            control.observe(self._changed, names="value")

    @property
    def png(self) -> bytes:
        """The picture as it is now."""
        return self._image.value

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        """One bundle for every reader: the live view, a picture with its alt text, the sentence as plain text."""
        data = {VIEW: _view_of(self.widget), "image/png": self._kept_png, "text/plain": self._kept_sentence}
        return data, {"image/png": {"width": _page_width(), "alt": ALT}}

    def _ipython_display_(self) -> None:
        """Display the bundle, and below it the sentence in the page's font: live as it changes, or as it was kept."""
        from IPython.display import display

        data, metadata = self._repr_mimebundle_()
        encoded = data | {"image/png": b64encode(data["image/png"]).decode()}
        display(encoded, metadata=metadata, raw=True)
        # No plain text: a terminal, which shows nothing else, has it from the bundle.
        display({VIEW: _view_of(self._text), "text/markdown": self._kept_sentence.translate(PLAIN)}, raw=True)

    def _changed(self, change) -> None:
        """Draw again. An error is reported in the view, because a reader would not see its traceback."""
        if self._adapting:
            return
        with _only_new_garbage():
            try:
                self._redraw()
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                self.sentence = f"This cannot be drawn: {reason}. The picture shows the state before."
        self._text.value = _as_html(self.sentence)

    def _redraw(self) -> None:
        figure, self.sentence = self._drawn()
        self._image.value = to_png(render(figure), small=False)

    def _drawn(self) -> tuple[Figure, str]:
        self._adapting = True
        try:
            if self._adapt:
                self._adapt(self.controls)
        finally:
            self._adapting = False
        with mpl.rc_context(LIVE_STYLE):
            figure, sentence = self._view(**{name: control.value for name, control in self.controls.items()})
        self._lay_out(figure)
        return figure, sentence

    def _lay_out(self, figure: Figure) -> None:
        """Lay the Axes out once for each size of figure. Otherwise they jump, and every drawing is laid out twice.

        The labels of the axes stay too: to find their place, matplotlib would measure every number beside an axis.
        """
        if not isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
            return  # a stage has its place already
        kind = (*figure.get_size_inches(), len(figure.axes))
        if kind not in self._places:
            figure.draw_without_rendering()
            self._places[kind] = [
                (ax.get_position(), _place_of_label(ax.xaxis), _place_of_label(ax.yaxis)) for ax in figure.axes
            ]
        figure.set_layout_engine("none")
        for ax, (place, below, beside) in zip(figure.axes, self._places[kind], strict=True):
            ax.set_position(place)
            ax.xaxis.set_label_coords(*below)
            ax.yaxis.set_label_coords(*beside)


@contextmanager
def _only_new_garbage() -> Iterator[None]:
    """Collect no garbage inside, and afterwards only what came into being there.

    A figure is full of cycles, so only the collector frees it. Left to itself, the collector would now and then look
    through everything that the process holds, with torch and transformers for 0.2 to 0.5 s, in the midst of a redraw.
    This way a dropped figure is found among some thousand new objects in 3 ms, and never becomes old.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        gc.collect(0)


def count_slider(description: str, value: int, least: int, most: int) -> widgets.IntSlider:
    """Make a slider over whole numbers, with its whole description."""
    return widgets.IntSlider(value, least, most, description=description, style=FULL, layout=WIDE)


class MovingSlider(widgets.IntSlider):
    """A slider over moments in time, and `play`, the buttons that move it; `moving_slider` makes them."""

    play: widgets.Play


def moving_slider(description: str, value: int, least: int, most: int, interval_ms: int = 700) -> MovingSlider:
    """Make a slider over moments: arrow keys step through them, a Play button beside it runs through them.

    Nothing moves before the reader presses Play, and it stops at the last moment. A reader who asked for reduced motion
    therefore sees none, and no setting of hers has to be asked for.

    Args:
        description: what is counted, such as "token".
        value: the moment that is shown first.
        least, most: the first and the last moment.
        interval_ms: time between two moments while it plays. Moments are left out where drawing takes longer: a browser
            sends the next value of a widget after the last one was handled, and keeps only the newest until then.
    """
    slider = MovingSlider(value, least, most, description=description, style=FULL, layout=WIDE)
    slider.play = widgets.Play(value=value, min=least, max=most, interval=interval_ms, description="play")
    for end in ("min", "max"):  # an explorer may change them
        widgets.dlink((slider, end), (slider.play, end))
    widgets.link((slider.play, "value"), (slider, "value"))
    return slider


def choice_slider(description: str, value, options: Sequence) -> widgets.SelectionSlider:
    """Make a slider over the given values."""
    return widgets.SelectionSlider(options=options, value=value, description=description, style=FULL, layout=WIDE)


def choice_list(description: str, value: str, options: Sequence[str]) -> widgets.Dropdown:
    """Make a list to choose from."""
    return widgets.Dropdown(options=options, value=value, description=description, style=FULL)


def offer_choices(control: widgets.SelectionSlider, options: Sequence[int]) -> None:
    """Offer these ascending numbers. If the chosen one is not among them, choose the largest below it."""
    chosen = control.value
    control.options = options
    control.value = max((option for option in options if option <= chosen), default=options[0])


def offer_names(control: widgets.Dropdown, options: Sequence[str], *, order: Sequence[str]) -> None:
    """Offer these names. If the chosen one is not among them, choose the nearest to it in the order of all."""
    place = order.index(control.value)
    control.options = options
    control.value = min(options, key=lambda option: abs(order.index(option) - place))


def binary_unit(most: int) -> tuple[str, int]:
    """The largest unit that is not larger than `most` bytes, and its own bytes."""
    units = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
    return next(((unit, size) for unit, size in units.items() if most >= size), ("bytes", 1))


def bytes_text(amount: int) -> str:
    """The number of bytes in the unit that suits it, in four digits."""
    unit, size = binary_unit(amount)
    return f"{amount / size:,.4g} {unit}"


FULL = {"description_width": "initial"}
WIDE = {"width": "24em"}


def _place_of_label(axis: Axis) -> tuple[float, float]:
    """Where the label of an axis stands after a drawing, in shares of the Axes' width and height."""
    on_screen = axis.label.get_transform().transform(axis.label.get_position())
    return tuple(axis.axes.transAxes.inverted().transform(on_screen))


def _view_of(widget: widgets.DOMWidget) -> dict:
    return {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}


def _page_width() -> int:
    return round(WIDTH_IN * PAGE_DPI)


def _as_html(sentence: str) -> str:
    return f'<div role="status" style="line-height: 1.4; max-width: {_page_width()}px">{escape(sentence)}</div>'
