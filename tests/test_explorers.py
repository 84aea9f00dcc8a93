"""Every explorer: one bundle for all readers, a picture that follows the controls, a sentence that says their state."""

import io
from html import unescape

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
from explorer_checks import drawn
from explorer_makers import MAKERS
from figure_checks import check_whole

from mistral_lab import explorers
from mistral_lab.explorers import base
from mistral_lab.explorers.base import VIEW, Explorer


@pytest.fixture(scope="module", params=MAKERS)
def untouched(request) -> Explorer:
    """One that no test may move."""
    return MAKERS[request.param]()


@pytest.fixture(params=MAKERS)
def explorer(request) -> Explorer:
    return MAKERS[request.param]()


def ends(control) -> list:
    """The first and the last value of a control; for a text, an empty and a long one."""
    if isinstance(control, widgets.Checkbox):
        return [False, True]
    if isinstance(control, widgets.Textarea):
        return ["", "word " * 2_000]
    if options := getattr(control, "options", None):
        return [options[0], options[-1]]
    return [control.min, control.max]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB"))


def test_one_bundle_holds_the_live_view_a_picture_and_the_sentence(untouched):
    data, metadata = untouched._repr_mimebundle_()
    assert set(data) == {VIEW, "image/png", "text/plain"}
    assert data[VIEW]["model_id"] == untouched.widget.model_id
    assert metadata == {"image/png": {"width": 800, "alt": base.ALT}}
    assert data["text/plain"].endswith(".")
    assert len(data["text/plain"].split()) > 5
    assert pixels(data["image/png"]).shape[1] == 1600
    assert len(data["image/png"]) < 60_000  # a lesson with all of its pictures stays below a megabyte


def test_the_picture_that_is_kept_is_the_one_on_the_screen_unless_it_is_a_strip_of_moments(untouched):
    data = untouched._repr_mimebundle_()[0]
    if data["text/plain"] != untouched.sentence:
        assert data["text/plain"].startswith("Four moments")
        return
    kept, live = pixels(data["image/png"]), pixels(untouched.png)
    assert kept.shape == live.shape
    assert np.abs(kept.astype(int) - live).mean() < 1  # of 255: 256 colours are kept


def test_every_explorer_is_made_here_and_timed_by_the_benchmark():
    makers = set(explorers.__all__) - {"Explorer", "Guess", "moving_slider", "loop_picture"}
    assert set(MAKERS) == makers


def test_every_control_is_labelled_and_worked_by_keyboard(untouched):
    by_keyboard = (
        widgets.IntSlider,
        widgets.SelectionSlider,
        widgets.Dropdown,
        widgets.Checkbox,
        widgets.Textarea,
    )
    for control in untouched.controls.values():
        assert control.description
        assert control.style.description_width == "initial"
        assert isinstance(control, by_keyboard)
        row = untouched.widget.children[0].children
        assert control in row or any(control in getattr(box, "children", ()) for box in row)


def test_both_ends_of_every_control_can_be_drawn(explorer):
    for name, control in explorer.controls.items():
        start, states = control.value, []
        for value in ends(control):
            control.value = value
            assert "cannot be drawn" not in explorer.sentence, explorer.sentence
            assert explorer.sentence in unescape(explorer._text.value)
            check_whole(drawn(explorer))
            states.append((explorer.png, explorer.sentence))
        assert states[0] != states[1], f"{name} moves nothing"
        if not isinstance(control, widgets.SelectionSlider) or start in control.options:
            control.value = start


def test_moving_changes_neither_the_bundle_nor_pyplot_nor_the_readers_style(explorer):
    plt.close("all")
    bundle, settings = explorer._repr_mimebundle_(), dict(plt.rcParams)
    for control in explorer.controls.values():
        control.value = ends(control)[0]
    assert explorer._repr_mimebundle_() == bundle
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == settings


def test_the_same_state_gives_the_same_picture(explorer):
    name, control = list(explorer.controls.items())[-1]
    start, first = control.value, (explorer.png, explorer.sentence)
    control.value = ends(control)[1] if ends(control)[1] != start else ends(control)[0]
    assert (explorer.png, explorer.sentence) != first, name
    control.value = start
    assert (explorer.png, explorer.sentence) == first
