"""What a picture says is what the arrays say; and it is shown once, readable, with its sentence."""

import base64
import io

import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_checks import (
    EveryPlot,
    check_refused,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
)
from matplotlib.colors import to_rgba

from mistral_lab import figures
from mistral_lab.figures import model, style

PARTS = ["attention", "feed-forward", "embedding"]
AMOUNTS = np.array([[1.5, 5.5, 0.25], [1.5, 45.0, 0.25]])
TOKENS = [" mustard", " the", " not"]
PROBABILITIES = np.array([0.6, 0.3, 0.1])
TASKS = ["a prompt token", "a new token", "a larger model"]
MEASURED_S = np.array([0.0004, 0.012, np.nan])
PREDICTED_S = np.array([0.00001, 0.0005, 0.3])


def parameters(ax=None):
    return figures.plot_parameters(AMOUNTS, models=["one", "two"], parts=PARTS, unit="billion parameters", ax=ax)


def next_tokens(ax=None):
    return figures.plot_next_tokens(PROBABILITIES, tokens=TOKENS, kept=PROBABILITIES > 0.2, title="half", ax=ax)


def times(ax=None):
    return figures.plot_times(MEASURED_S, PREDICTED_S, tasks=TASKS, ax=ax)


@pytest.mark.parametrize("plot", [parameters, next_tokens, times])
class TestEveryPlot(EveryPlot):
    pass


def names_from_top(ax) -> list[str]:
    labels = [label.get_text() for label in ax.get_yticklabels()]
    return labels if ax.yaxis_inverted() else labels[::-1]


def test_parameters_are_stacked_in_the_order_of_the_parts():
    ax = parameters()
    for bars, part, column in zip(ax.containers, PARTS, range(3), strict=True):
        assert bars.get_label() == part
        np.testing.assert_array_equal([bar.get_width() for bar in bars], AMOUNTS[:, column])
        np.testing.assert_array_equal([bar.get_x() for bar in bars], AMOUNTS[:, :column].sum(axis=1))
    assert names_from_top(ax) == ["one", "two"]
    assert ax.get_xlabel() == "billion parameters"


def test_each_part_has_its_colour_wherever_it_stands():
    for parts in (PARTS, PARTS[::-1]):
        ax = figures.plot_parameters(AMOUNTS, models=["one", "two"], parts=parts, unit="billion parameters")
        colours = {bars.get_label(): bars[0].get_facecolor() for bars in ax.containers}
        assert colours == {part: to_rgba(model.PART_COLOURS[part]) for part in parts}
    assert model.PART_COLOURS["cache"] == figures.KEY
    assert model.PART_COLOURS["weights"] == model.PART_COLOURS["experts"] == figures.WEIGHTS


def test_what_comes_with_a_model_is_grey():
    for part in ("runtime", "workspace", "overhead", "gradients", "optimiser"):
        assert np.ptp(to_rgba(model.PART_COLOURS[part])[:3]) < 0.12  # hardly any hue


def test_only_segments_with_room_carry_their_number():
    assert [text.get_text() for text in parameters().texts if text.get_text()] == ["5.5", "45"]


def test_numbers_stand_out_from_their_segment():
    assert style.readable_on("#ffa90e") == "black"
    assert style.readable_on("#bd1f01") == "white"


def test_next_tokens_are_drawn_from_the_top_with_their_number():
    ax = next_tokens()
    bars = sorted(ax.patches, key=lambda bar: bar.get_y())
    np.testing.assert_array_equal([bar.get_width() for bar in bars], PROBABILITIES)
    assert names_from_top(ax) == ["␣mustard", "␣the", "␣not"]
    assert [text.get_text() for text in ax.texts] == ["0.60", "0.30", "0.10"]
    assert ax.get_title(loc="left") == "half"


def test_tokens_left_out_look_different_without_colour():
    ax = next_tokens()
    hatched = [bool(bar.get_hatch()) for bar in sorted(ax.patches, key=lambda bar: bar.get_y())]
    assert hatched == [False, False, True]
    assert "left out" in ax.get_xlabel()


def test_what_the_font_cannot_draw_is_escaped(recwarn):
    ax = figures.plot_next_tokens(PROBABILITIES, tokens=["é “x”", "未", "\n🦙"])
    assert names_from_top(ax) == ["é␣“x”", r"\u672a", r"\n\U0001f999"]
    ax.figure.canvas.draw()
    assert [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)] == []


def test_what_a_reader_writes_is_no_formula():
    priced = ["$5", "$\\frac$", "a$b$c"]  # matplotlib would fail on the second, and set b in italics
    drawn = [
        figures.plot_next_tokens(PROBABILITIES, tokens=priced).get_yticklabels(),
        figures.plot_labels(priced, np.array([False, True, True])).texts,
    ]
    for texts in drawn:
        texts[0].figure.canvas.draw()
        assert not any(text.get_parse_math() for text in texts)


def test_a_small_chance_is_written_unlike_one_of_nought():
    ax = figures.plot_next_tokens(np.array([0.99, 0.004, 0.0]), tokens=TOKENS, others=(9, 0.006, 0.006))
    assert [text.get_text() for text in ax.texts] == ["0.99", "<0.01", "0", "0.01"]


def test_no_token_is_called_left_out_where_nothing_filters():
    assert figures.plot_next_tokens(PROBABILITIES, tokens=TOKENS).get_xlabel() == "probability"


def test_times_stand_in_milliseconds_and_the_unmeasured_is_left_blank():
    ax = times()
    predicted, measured = (np.ma.filled(points.get_offsets(), np.nan) for points in ax.collections[1:])
    np.testing.assert_allclose(predicted, np.column_stack([PREDICTED_S * 1e3, range(3)]), rtol=1e-12)  # one product
    np.testing.assert_allclose(measured[:, 0], MEASURED_S * 1e3, rtol=1e-12)  # one product
    assert [text.get_text() for text in ax.texts] == ["0.01 ms", "0.5 ms", "300 ms", "0.4 ms", "12 ms"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["predicted", "measured"]
    floor = figures.plot_times(MEASURED_S, PREDICTED_S, tasks=TASKS, expected="at least")
    assert [text.get_text() for text in floor.get_legend().get_texts()] == ["at least", "measured"]
    assert names_from_top(ax) == TASKS
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "milliseconds (logarithmic axis)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.plot_parameters(AMOUNTS.T, models=["a", "b"], parts=PARTS, unit="x"), r"\(3, 2\).*\(2, 3\)"),
        (
            lambda: figures.plot_parameters(AMOUNTS[:, :1], models=["a", "b"], parts=["head"], unit="x"),
            "no colour for 'head': expected parts of weights, experts",
        ),
        (lambda: figures.plot_parameters(-AMOUNTS, models=["a", "b"], parts=PARTS, unit="x"), "0 or more"),
        (lambda: figures.plot_next_tokens(PROBABILITIES[:2], tokens=TOKENS), r"\(2,\): expected \(3,\)"),
        (lambda: figures.plot_next_tokens(PROBABILITIES * np.nan, tokens=TOKENS), "NaN"),
        (lambda: figures.plot_next_tokens(PROBABILITIES, tokens=TOKENS, kept=[True]), r"kept has shape \(1,\)"),
        (lambda: figures.plot_times(MEASURED_S[:2], PREDICTED_S, tasks=TASKS), r"measured_s has shape \(2,\)"),
        (
            lambda: figures.plot_times(MEASURED_S, 0 * PREDICTED_S, tasks=TASKS),
            "predicted_s holds 0: expected",
        ),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)


@pytest.fixture
def displayed(monkeypatch) -> list:
    """What a notebook would be sent: (data, metadata) of a picture, the text of a caption."""
    sent = []

    def note(shown) -> None:
        sent.append(shown.data if isinstance(shown, IPython.display.Markdown) else shown._repr_mimebundle_())

    monkeypatch.setattr(IPython.display, "display", note)
    return sent


def test_show_displays_one_png_and_its_caption_and_closes_the_figure(displayed, capsys):
    figure = next_tokens().figure
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


@pytest.mark.parametrize(
    ("axis", "ends", "labelled"),
    [
        ("x", (1, 20), [1, 2, 5, 10, 20]),
        ("x", (1, 1000), [1, 10, 100, 1000]),
        ("y", (1, 200), [1, 2, 5, 10, 20, 50, 100, 200]),
        ("y", (0.01, 1000), [0.01, 0.1, 1, 10, 100, 1000]),
        ("x", (1.5, 80), [3, 10, 30]),  # at 1 alone there would be a single label
        ("x", (1.2, 80), [3, 10, 30]),
        ("y", (0.2, 900), [1, 10, 100]),
    ],
)
def test_a_long_logarithmic_axis_has_a_label_per_decade_and_every_one_two_or_more(axis, ends, labelled):
    ax = figures.new_figure()[1][0, 0]
    style.decade_axis(getattr(ax, f"{axis}axis"))
    getattr(ax, f"set_{axis}lim")(ends)
    places = getattr(ax, f"get_{axis}ticks")()
    assert [place for place in places if ends[0] <= place <= ends[1]] == pytest.approx(labelled)
