"""A picture is shown once, as wide as the page, on white, with two sentences."""

import base64
import io

import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_checks import no_figure_left_open  # noqa: F401 - for all tests of this file

from mistral_lab import figures


def test_a_bare_figure_is_as_wide_as_the_page_and_unknown_to_pyplot():
    figure, axes = figures.bare_figure(2, 3, height_in=2.0)
    assert tuple(figure.get_size_inches()) == (figures.WIDTH_IN, 2.0)
    assert axes.shape == (2, 3)
    assert plt.get_fignums() == []


@pytest.fixture
def displayed(monkeypatch) -> list:
    """What a notebook would be sent: (data, metadata) of a picture, the text of a caption."""
    sent = []

    def note(shown) -> None:
        sent.append(shown.data if isinstance(shown, IPython.display.Markdown) else shown._repr_mimebundle_())

    monkeypatch.setattr(IPython.display, "display", note)
    return sent


def test_show_displays_one_png_and_its_caption_and_closes_the_figure(displayed, capsys):
    figure, _ = figures.new_figure()
    figures.show(figure, "Three bars, mustard's twice as long as the article's.", "Mustard is the likeliest.")
    (data, metadata), caption = displayed
    assert list(data) == ["image/png"]
    assert metadata["image/png"]["alt"] == "Three bars, mustard's twice as long as the article's."
    assert caption == "Mustard is the likeliest."
    assert capsys.readouterr().out == ""
    assert plt.get_fignums() == []


def test_show_draws_on_white_at_twice_the_width_on_the_page(displayed):
    with plt.style.context("dark_background"):
        figure, _ = figures.new_figure()
        figures.show(figure, "An empty frame.", "There is nothing to see.")
    (data, metadata), _ = displayed
    pixels = plt.imread(io.BytesIO(base64.b64decode(data["image/png"])))
    assert pixels.shape[1] == 2 * metadata["image/png"]["width"] == 2 * 100 * figures.WIDTH_IN
    np.testing.assert_array_equal(pixels[0, 0], [1, 1, 1, 1])


@pytest.mark.parametrize("missing", ["", "  ", "A picture"])
def test_show_wants_two_different_sentences(missing, displayed):
    figure, _ = figures.new_figure()
    with pytest.raises(ValueError, match="alt is .* expected a sentence"):
        figures.show(figure, missing, "What to see.")
    with pytest.raises(ValueError, match="caption is .* expected a sentence"):
        figures.show(figure, "An empty frame.", missing)
    with pytest.raises(ValueError, match="are the same"):
        figures.show(figure, "An empty frame.", "An empty frame.\n")
    assert displayed == []
