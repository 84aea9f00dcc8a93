"""The pictures of fine-tuning say what the arrays say, and are readable."""

import numpy as np
import pytest
from figure_checks import (
    EveryPlot,
    check_refused,
    check_whole,
    no_figure_left_open,  # noqa: F401 - for all tests of this file
)
from matplotlib.colors import to_hex

from mistral_lab import figures
from mistral_lab.figures import style, tuning

TOKENS = ["<s>", *[" word"] * 14, "\n", '{"', "Ida", "</s>"]
COUNTED = np.arange(len(TOKENS)) >= 16
PREDICTED = np.array([1.6e5, 3.2e5, 7.8e6])
MEASURED = np.array([1.6e5, 3.3e5, np.nan])
PARTS = ["adapter", "optimiser", "activations"]
LOSSES = np.array([5.0, 1.0, 0.02, 0.03])
MEANS = np.array([[0.7, 0.8, 0.4], [1.2, 0.9, 2.3]])
KINDS = ["english", "french", "arithmetic"]
RANKS, SHARES = (1, 2, 8, 32), np.array([0.6, 0.89, 0.97, 0.98])


def labels(ax=None):
    return figures.plot_labels(TOKENS, COUNTED, ax=ax)


def adapter(ax=None):
    return figures.plot_adapter(256, 128, 8, ax=ax)


def amounts(ax=None):
    return figures.plot_bytes(MEASURED, PREDICTED, parts=PARTS, ax=ax)


def training(ax=None):
    return figures.plot_training(LOSSES, ax=ax)


def before_after(ax=None):
    return figures.plot_before_after(
        MEANS, MEANS - 0.1, MEANS + 0.2, rows=KINDS, times=["before", "after"], unit="nats", ax=ax
    )


def by_rank(ax=None):
    return figures.plot_ranks(RANKS, SHARES, SHARES - 0.05, SHARES + 0.01, unit="right, %", ax=ax)


def choice(chosen, ax=None):
    return figures.plot_rank_choice(
        RANKS, SHARES, SHARES - 0.05, SHARES + 0.01, chosen=chosen, offered=(1, 2, 4, 8, 16, 32, 64), unit="", ax=ax
    )


def measured_choice(ax=None):
    return choice(8, ax)


def unmeasured_choice(ax=None):
    return choice(64, ax)


@pytest.mark.parametrize(
    "plot", [labels, adapter, amounts, training, before_after, by_rank, measured_choice, unmeasured_choice]
)
class TestEveryPlot(EveryPlot):
    pass


def test_tokens_stand_in_reading_order_and_those_that_count_are_framed():
    ax = labels()
    assert [text.get_text() for text in ax.texts] == [repr(token) for token in TOKENS]
    places = [(round(box.get_y(), 6), box.get_x()) for box in ax.patches]
    assert places == sorted(places)
    assert len({line for line, _ in places}) == 2
    assert all(box.get_x() + box.get_width() <= tuning.WIDTH for box in ax.patches)
    framed = [to_hex(box.get_edgecolor()) == figures.WEIGHTS for box in ax.patches]
    assert framed == COUNTED.tolist()
    assert ax.get_title(loc="left") == "framed: counts in the loss; the others are given: label -100"


def test_an_example_that_counts_whole_names_no_others():
    ax = figures.plot_labels(["a", "b"], [True, True])
    assert ax.get_title(loc="left") == "framed: counts in the loss"


def test_an_adapter_is_drawn_to_scale():
    W, B, A = adapter().patches
    assert (W.get_width(), W.get_height()) == (128, 256)
    assert (B.get_width(), B.get_height()) == (8, 256)
    assert (A.get_width(), A.get_height()) == (128, 8)
    assert W.get_x() + W.get_width() < B.get_x() < B.get_x() + B.get_width() < A.get_x()
    assert W.axes.get_aspect() == 1
    assert to_hex(A.get_facecolor()) == to_hex(B.get_facecolor()) != to_hex(W.get_facecolor())


@pytest.mark.parametrize("sides", [(256, 128, 8), (4, 4, 1000), (64, 2560, 128)])
def test_an_adapter_reads_as_its_formula_and_is_whole_at_any_rank(sides):
    ax = figures.plot_adapter(*sides)
    middles = [box.get_y() + box.get_height() / 2 for box in ax.patches]
    assert middles == [0, 0, 0]
    W, B, A = ax.patches
    assert A.get_x() - (B.get_x() + B.get_width()) < B.get_x() - (W.get_x() + W.get_width())  # A and B belong together
    signs = [text for text in ax.texts if text.get_position()[1] == 0 and ":" not in text.get_text()]
    assert ["alpha" in sign.get_text() for sign in signs] == [True, False]
    for box in ax.patches:
        assert ax.get_xlim()[0] < box.get_x() < box.get_x() + box.get_width() < ax.get_xlim()[1]
        assert ax.get_ylim()[0] < box.get_y() < box.get_y() + box.get_height() < ax.get_ylim()[1]
    check_whole(ax.figure)


def test_a_long_token_is_cut():
    ax = figures.plot_labels(["x" * 40, "y" * 41, "\u672a" * 20], [True, True, False])
    assert [text.get_text() for text in ax.texts] == [
        f"'{'x' * 40}'",
        f"'{'y' * 39}…'",
        "'" + (r"\u672a" * 7)[:39] + "…'",
    ]
    assert all(box.get_x() + box.get_width() <= tuning.WIDTH for box in ax.patches)


def test_bytes_stand_in_megabytes_and_the_unmeasured_is_left_blank():
    ax = amounts()
    predicted, measured = (np.ma.filled(points.get_offsets(), np.nan) for points in ax.collections)
    np.testing.assert_allclose(predicted, np.column_stack([PREDICTED / 1e6, range(3)]), rtol=1e-12)  # one quotient
    np.testing.assert_allclose(measured[:, 0], MEASURED / 1e6, rtol=1e-12)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["predicted (hollow)", "measured"]
    assert [to_hex(points.get_facecolor()[0]) for points in ax.collections] == ["#ffffff", style.MEASURED]
    assert to_hex(ax.collections[0].get_edgecolor()[0]) == style.PREDICTED
    assert [text.get_text() for text in ax.texts] == ["0.16", "0.32", "7.8"]
    assert ax.get_xscale() == "log"


def test_losses_are_drawn_from_the_first_step():
    [line] = training().lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(line.get_ydata(), LOSSES)
    assert line.axes.get_yscale() == "log"


def test_before_and_after_stand_in_one_row_with_their_intervals():
    ax = before_after()
    for number, container in enumerate(ax.containers):
        np.testing.assert_array_equal(container.lines[0].get_xdata(), MEANS[number])
        np.testing.assert_array_equal(container.lines[0].get_ydata(), range(3))
        drawn = [np.array(bar)[:, 0] for bar in container.lines[2][0].get_segments()]
        np.testing.assert_allclose(drawn, np.column_stack([MEANS[number] - 0.1, MEANS[number] + 0.2]))
    assert ax.yaxis_inverted()
    assert [label.get_text() for label in ax.get_yticklabels()] == KINDS
    assert ax.get_xlim()[0] == 0


def test_shares_by_rank_are_per_cent_with_their_intervals():
    [container] = by_rank().containers
    np.testing.assert_array_equal(container.lines[0].get_xdata(), RANKS)
    np.testing.assert_allclose(container.lines[0].get_ydata(), 100 * SHARES)
    drawn = [np.array(bar)[:, 1] for bar in container.lines[2][0].get_segments()]
    np.testing.assert_allclose(drawn, 100 * np.column_stack([SHARES - 0.05, SHARES + 0.01]))
    ax = container.lines[0].axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "8", "32"]
    assert ax.get_ylim() == (-4, 104)


@pytest.mark.parametrize("chosen", RANKS)
def test_the_chosen_rank_is_ringed_where_it_was_measured(chosen):
    ax = choice(chosen)
    upright, ring = ax.lines[-2:]
    assert upright.get_xdata()[0] == ring.get_xdata()[0] == chosen
    assert ring.get_ydata()[0] == 100 * SHARES[RANKS.index(chosen)]
    assert not ax.texts
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4", "8", "16", "32", "64"]


@pytest.mark.parametrize("chosen", [4, 64])
def test_a_rank_without_a_measurement_is_marked_with_words(chosen):
    ax = choice(chosen)
    assert ax.lines[-1].get_xdata()[0] == chosen
    assert len(ax.lines) == len(by_rank().lines) + 1
    [words] = ax.texts
    assert (words.get_text(), words.xy[0]) == ("not measured", chosen)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.plot_labels(TOKENS, [True]), r"shape \(1,\): expected \(19,\)"),
        (lambda: figures.plot_labels([], []), "one for each of some tokens"),
        (lambda: figures.plot_adapter(4, 4, 0), "a side is below 1: rows 4, columns 4, rank 0"),
        (lambda: figures.plot_bytes(MEASURED[:2], PREDICTED, parts=PARTS), r"measured has shape \(2,\)"),
        (lambda: figures.plot_bytes(MEASURED, 0 * PREDICTED, parts=PARTS), "predicted holds 0: expected"),
        (lambda: figures.plot_training([]), "expected one finite number above 0 for each step"),
        (lambda: figures.plot_training([1.0, np.nan]), "expected one finite number above 0"),
        (lambda: figures.plot_training([0.0]), "expected one finite number above 0"),
        (
            lambda: figures.plot_before_after(MEANS, MEANS + 1, MEANS, rows=KINDS, times=["a", "b"], unit=""),
            "a mean lies outside its interval",
        ),
        (
            lambda: figures.plot_before_after(MEANS[:1], MEANS, MEANS, rows=KINDS, times=["a", "b"], unit=""),
            r"shape \(1, 3\): expected \(2, 3\)",
        ),
        (
            lambda: figures.plot_before_after(MEANS, MEANS, MEANS, rows=KINDS, times=["a"], unit=""),
            "times has 1 names: expected two",
        ),
        (
            lambda: figures.plot_before_after([[1, 2, 3], [1, 2]], MEANS, MEANS, rows=KINDS, times=["a", "b"], unit=""),
            "a row of numbers has 2 of them: expected 3, one for each name",
        ),
        (
            lambda: figures.plot_ranks((1, 8, 2, 32), SHARES, SHARES, SHARES, unit=""),
            "ranks are 1, 8, 2, 32: expected ascending numbers",
        ),
        (lambda: figures.plot_ranks((1, 2, 2, 32), SHARES, SHARES, SHARES, unit=""), "expected ascending numbers"),
        (lambda: figures.plot_ranks(RANKS, SHARES, SHARES, SHARES - 0.1, unit=""), "a mean lies outside its interval"),
        (lambda: choice(3), "chosen is 3: expected one of 1, 2, 4, 8"),
        (lambda: figures.plot_ranks(RANKS, 2 * SHARES, SHARES, 2 * SHARES, unit=""), r"a share is 1\.96"),
    ],
)
def test_bad_arrays_raise_one_clear_line_and_draw_nothing(call, message):
    check_refused(call, message)
