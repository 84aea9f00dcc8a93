"""The wrapper of every explorer: what it displays, what a move draws and leaves, sliders that move, what is offered."""

import base64
import gc
import io
import weakref

import IPython.display
import ipywidgets as widgets
import numpy as np
import PIL.Image
import pytest
from explorer_checks import drawn

from mistral_lab import figures
from mistral_lab.explorers import base
from mistral_lab.explorers.base import VIEW, Explorer


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB"))


def number(value: int):
    figure, axes = figures.bare_figure(height_in=1.0)
    axes[0, 0].set_title(str(value))
    return figure, f"The number is {value}."


def test_the_sentence_stands_below_the_picture_live_or_as_a_line_of_the_page(monkeypatch):
    def view(value: int):
        return number(value)[0], "The token “<s>” costs $2 * 3."

    sent = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw, metadata=None: sent.append((data, metadata)))
    explorer = Explorer({"value": base.count_slider("value", 1, 0, 3)}, view)
    explorer._ipython_display_()
    (picture, metadata), (sentence, _) = sent
    data, described = explorer._repr_mimebundle_()
    assert metadata == described
    assert picture.pop("image/png") == base64.b64encode(data.pop("image/png")).decode()
    assert picture == data
    assert set(sentence) == {VIEW, "text/markdown"}  # a live page shows the widget, another one the line
    assert sentence["text/markdown"] == "The token “&#60;s>” costs &#36;2 &#42; 3."
    live = {widget.model_id for widget in (explorer.widget, *explorer.widget.children)}
    assert sentence[VIEW]["model_id"] == explorer._text.model_id
    assert explorer._text.model_id not in live  # or it would stand there twice


def test_a_lesson_and_an_explorer_keep_the_same_bytes_of_the_same_picture(monkeypatch):
    """Both go through one encoder. This picture has more colours than are kept, so another choice would show."""
    sent = []
    monkeypatch.setattr(IPython.display, "display", lambda image: sent.append(image.data))

    def view(value: int):
        figure, axes = figures.bare_figure(height_in=2.0)
        axes[0, 0].imshow(np.random.default_rng(value).random((8, 20, 3)), aspect="auto")
        axes[0, 0].set_position((0.1, 0.2, 0.8, 0.7))
        return figure, "These are random colours."

    explorer = Explorer({"value": base.count_slider("value", 1, 0, 3)}, view)
    figure = drawn(explorer)
    figures.show(figure, "The same random colours.", "Chance has no pattern.")
    assert sent[:1] == [explorer._repr_mimebundle_()[0]["image/png"]]

    exact = np.asarray(figures.render(figure)).astype(int)
    assert len(np.unique(exact.reshape(-1, 3), axis=0)) > 256
    kept = pixels(sent[0])
    assert np.abs(kept - exact).max() < 16  # the octree has boxes enough here, each 16 of 256 wide
    page = (exact == 255).all(axis=-1)
    assert page.mean() > 0.2
    assert (kept[page] == 255).all()


def test_a_fault_in_a_callback_becomes_a_sentence_and_the_picture_stays():
    def view(value: int):
        if value == 2:
            raise KeyError("no <b>two</b>\nhere")
        return number(value)

    explorer = Explorer({"value": base.count_slider("value", 1, 0, 3)}, view)
    before = explorer.png
    explorer.controls["value"].value = 2
    assert explorer.sentence.startswith("This cannot be drawn: ")
    assert "\n" not in explorer.sentence
    assert "<b>" not in explorer._text.value
    assert explorer.png == before
    explorer.controls["value"].value = 3
    assert explorer.sentence == "The number is 3."
    assert explorer.png != before


def test_the_first_state_must_be_drawable_and_each_control_described():
    with pytest.raises(ZeroDivisionError):
        Explorer({"value": base.count_slider("value", 0, 0, 3)}, lambda value: number(1 // value))
    with pytest.raises(ValueError, match="without a description: value"):
        Explorer({"value": widgets.IntSlider()}, number)


def test_a_still_stands_for_the_explorer_where_no_kernel_runs():
    def still():
        figure, axes = figures.bare_figure(1, 4, height_in=1.5)
        for moment, ax in enumerate(axes[0]):
            ax.set_title(str(moment))
        return figure, "The number at four moments."

    explorer = Explorer({"value": base.count_slider("value", 1, 0, 3)}, number, still)
    data, metadata = explorer._repr_mimebundle_()
    assert data["text/plain"] == "The number at four moments."
    assert pixels(data["image/png"]).shape == (300, 1600, 3)
    assert explorer.sentence == "The number is 1."
    assert pixels(explorer.png).shape == (200, 1600, 3)
    explorer.controls["value"].value = 2
    assert explorer._repr_mimebundle_() == (data, metadata)


def test_a_moving_slider_runs_with_its_play_button_and_stays_within_its_ends():
    slider = base.moving_slider("value", 1, 0, 3, interval_ms=400)
    explorer = Explorer({"value": slider}, number)
    (together,) = explorer.widget.children[0].children  # they stay side by side where a row is full
    assert list(together.children) == [slider, slider.play]
    assert slider.play.interval == 400
    slider.play.value = 2
    assert explorer.sentence == "The number is 2."
    slider.value = 3
    assert slider.play.value == 3
    slider.max = 2
    assert (slider.play.max, slider.play.value, explorer.sentence) == (2, 2, "The number is 2.")


def test_a_move_leaves_no_figure_to_the_collector_and_the_collector_as_it_was():
    made = []

    def view(value: int):
        figure, sentence = number(value)
        made.append(weakref.ref(figure))
        if value == 2:
            raise ValueError("no two")
        return figure, sentence

    explorer = Explorer({"value": base.count_slider("value", 1, 0, 3)}, view)
    made.clear()
    for collecting in (True, False):
        gc.enable() if collecting else gc.disable()
        try:
            for value in (0, 2, 3):
                explorer.controls["value"].value = value
            assert gc.isenabled() == collecting
        finally:
            gc.enable()
    assert [figure() for figure in made] == [None] * 6


def test_a_stage_is_laid_out_by_its_view_alone():
    def view(value: int):
        figure, panels = figures.new_stage(4, 1, columns=value, kept=False)
        figures.draw_query(panels[0], 1, 0.5)
        return figure, f"The number is {value}."

    explorer = Explorer({"value": base.count_slider("value", 1, 1, 3)}, view)
    explorer.controls["value"].value = 3
    assert explorer.sentence == "The number is 3."
    assert [ax.get_position().x0 for ax in drawn(explorer).axes] == pytest.approx([0, 1 / 3, 2 / 3])


def test_what_adapts_a_control_draws_once():
    calls = []

    def view(many: int, few: int):
        calls.append((many, few))
        return number(few)

    def adapt(controls):
        controls["few"].max = controls["many"].value

    controls = {"many": base.count_slider("many", 9, 1, 9), "few": base.count_slider("few", 9, 1, 9)}
    Explorer(controls, view, adapt=adapt)
    controls["many"].value = 4
    assert calls == [(9, 9), (4, 4)]


def test_offer_keeps_what_is_still_offered_and_else_takes_the_largest_below():
    control = base.choice_slider("K", 8, [1, 2, 4, 8])
    base.offer_choices(control, [1, 2, 4, 8, 16])
    assert control.value == 8
    base.offer_choices(control, [1, 2, 3, 6])
    assert control.value == 6
    base.offer_choices(control, [7])
    assert control.value == 7


def test_offer_takes_the_nearest_name_where_the_chosen_one_is_not_offered():
    order = ["a", "b", "c", "d"]
    control = base.choice_list("letter", "b", order)
    base.offer_names(control, ["a", "b"], order=order)
    assert control.value == "b"
    base.offer_names(control, ["c", "d"], order=order)
    assert control.value == "c"
    base.offer_names(control, ["a"], order=order)
    assert control.value == "a"
