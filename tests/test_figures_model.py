"""Pictures of a model: its parts and which are read, its next token, what each layer answers."""

import numpy as np
import pytest
from figure_checks import (
    EveryPlot,
    check_refused,
    flag_at,
    names_from_top,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
)
from matplotlib.colors import to_rgba

from mistral_lab import figures
from mistral_lab.figures import language, model

PARTS = ["attention", "feed-forward", "embedding"]
AMOUNTS = np.array([[1.5, 5.5, 0.25], [1.5, 45.0, 0.25]])
TOKENS = [" mustard", " the", " not"]
PROBABILITIES = np.array([0.6, 0.3, 0.1])


def parameters(ax=None):
    return figures.plot_parameters(AMOUNTS, models=["one", "two"], parts=PARTS, unit="billion parameters", ax=ax)


def next_tokens(ax=None):
    return figures.plot_next_tokens(PROBABILITIES, tokens=TOKENS, kept=PROBABILITIES > 0.2, title="half", ax=ax)


def read(ax=None):
    shares = [[19, 78, 0.004, 1.5, 1.5], [24, 36, 0.1, 20, 19.9]]
    parts = ["attention", "feed-forward", "norms", "output layer", "embedding"]
    return figures.plot_read(shares, models=["one", "two"], parts=parts, skipped=4, guess=10.0, ax=ax)


@pytest.mark.parametrize("plot", [parameters, next_tokens, read])
class TestEveryPlot(EveryPlot):
    """Holds for each picture on Axes."""


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


def test_numbers_in_bars_cover_lines_and_leave_out_what_has_no_room():
    ax = figures.bare_figure()[1][0, 0]
    figures.plot_budget(
        np.array([[6.0, 0.5], [0.0, 6.5]]),
        names=["a", "b"],
        parts=["weights", "cache"],
        limits={"e": 9.0},
        unit="",
        ax=ax,
    )
    figures.keep_numbers_readable(ax, narrow=0.1)
    assert [text.get_text() for text in ax.texts] == ["6", "", "", "6.5"]
    for text, bar in ((ax.texts[0], ax.containers[0][0]), (ax.texts[3], ax.containers[1][1])):
        assert text.get_bbox_patch().get_facecolor() == bar.get_facecolor()
        assert text.get_zorder() > ax.lines[0].get_zorder()


def test_the_part_that_is_not_read_is_grey_and_thin_parts_are_named_below():
    ax = read()
    grey = [bar for bar in ax.patches if bar.get_facecolor() == to_rgba(language.IDLE)]
    assert [bar.get_width() for bar in grey] == pytest.approx([1.5, 19.9], rel=1e-9)  # differences of sums
    below = [text.get_text() for text in ax.texts if "·" in text.get_text()]
    assert below == ["norms 0.004 % · output layer 1.5 % · embedding 1.5 %"]


def test_a_guess_of_the_share_that_is_read_stands_above_the_first_bar():
    percent, row = flag_at(read())
    assert percent == pytest.approx(10.0)
    assert -0.5 < row < 0


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
        (
            lambda: figures.plot_read([[-1.0, 2.0]], models=["one"], parts=["a", "b"], skipped=1),
            "an amount is negative",
        ),
        (
            lambda: figures.plot_guesses(np.ones(2), guesses=["a"], names=["b", "c"], same=np.ones(2, bool), ax=None),
            "1 guesses",
        ),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)
