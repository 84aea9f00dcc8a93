"""The guess before a measurement: entered by slider or by typing, kept when the cell runs again, one line elsewhere."""

import pytest

from mistral_lab import explorers
from mistral_lab.explorers import guess
from mistral_lab.explorers.base import VIEW


@pytest.fixture(autouse=True)
def nothing_entered(monkeypatch):
    """Every test starts as a new kernel does."""
    monkeypatch.setattr(guess, "_entered", {})


def asked(**changed) -> explorers.Guess:
    """A question, on a logarithmic slider unless a test changes it."""
    return explorers.Guess(
        **{"question": "How long?", "least": 1, "most": 1000, "stated": 20, "unit": "ms", "log": True} | changed
    )


def test_the_bundle_is_one_line_that_no_entry_changes():
    mine = asked()
    before = mine._repr_mimebundle_()
    assert before["text/plain"] == "A guess to compare with: 20 ms (move the slider to enter your own)"
    assert before[VIEW]["model_id"] == mine.widget.model_id
    mine.slider.value = 0
    mine.button.click()
    assert mine._repr_mimebundle_() == before
    assert asked()._repr_mimebundle_()["text/plain"] == before["text/plain"]


def test_slider_and_field_show_one_number():
    mine = asked()
    assert (mine.value, mine.label) == (20.0, "a guess")
    mine.slider.value = mine.slider.max
    assert (mine.value, mine.number.value, mine.label) == (1000.0, 1000.0, "your guess")
    mine.number.value = 23.4
    assert mine.value == 23.4
    assert mine._places[mine.slider.value] in (23.0, 24.0)  # the slider stands at the nearest of its places
    mine.slider.value = 0
    assert mine.value == mine.number.value == 1.0


def test_the_button_commits_the_stated_guess_and_says_what_to_do():
    mine = asked()
    assert mine.sentence == "A guess to compare with is 20 ms. Move the slider, or type your own."
    mine.button.click()
    assert (mine.value, mine.label) == (20.0, "your guess")
    assert mine.sentence == "Your guess is 20 ms. The cells below now draw it: run them, again if they ran before."
    assert mine.sentence in mine._text.value


@pytest.mark.parametrize("typed", [0.5, 1500.0, float("inf"), float("nan")])
def test_a_number_out_of_range_is_said_and_not_taken(typed):
    mine = asked()
    mine.number.value = 30.0
    mine.number.value = typed
    assert mine.value == mine.number.value == 30.0
    assert mine.sentence == f"{typed:,.10g} ms is outside of 1 to 1,000 ms, so the guess is still 30 ms."


def test_running_the_cell_again_keeps_what_was_entered():
    asked().number.value = 300.0
    again = asked()
    assert (again.value, again.number.value, again.label) == (300.0, 300.0, "your guess")
    assert "Press" in again.sentence
    again.button.click()
    assert "draw it" in asked().sentence
    assert asked(question="How far?").value == 20.0
    assert asked(unit="s").value == 20.0  # 300 ms are not 300 s
    narrow = asked(most=100)
    assert (narrow.value, narrow.label) == (20.0, "a guess")


@pytest.mark.parametrize(
    ("changed", "second", "before_last"),
    [
        ({"least": 0, "most": 100, "log": False}, 1, 99),
        ({"least": 0, "most": 1, "stated": 0.5, "log": False}, 0.01, 0.99),
        ({"least": -3, "most": 47, "log": False}, -2.5, 46.5),
        ({}, 1.1, 930),
        ({"least": 3, "most": 1e10}, 3.7, 8e9),
    ],
)
def test_the_slider_offers_both_ends_and_about_a_hundred_round_numbers(changed, second, before_last):
    mine = asked(**changed)
    places = list(mine._places)
    assert (places[0], places[-1]) == (mine.least, mine.most)
    assert (places[1], places[-2]) == (pytest.approx(second), pytest.approx(before_last))
    assert 50 <= len(places) <= 101
    assert places == sorted(set(places))


def test_it_is_worked_by_keyboard_and_named():
    mine = asked(unit="")
    assert [part.description for part in mine.widget.children[1].children] == [
        "your guess",
        "or type it",
        "That is my guess",
    ]
    assert mine._repr_mimebundle_()["text/plain"].startswith("A guess to compare with: 20 (")


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"question": " "}, ValueError, "question is ' '"),
        ({"question": 3}, TypeError, "question is 3"),
        ({"unit": None}, TypeError, "unit is None"),
        ({"least": "1"}, TypeError, "least is '1'"),
        ({"most": True}, TypeError, "most is True"),
        ({"log": 1}, TypeError, "log is 1"),
        ({"least": 1000}, ValueError, "least is 1000 and most is 1000"),
        ({"most": float("inf")}, ValueError, "most is inf"),
        ({"least": 0}, ValueError, "above 0, because the slider is logarithmic"),
        ({"stated": 2000}, ValueError, "stated is 2000: expected a number from 1 to 1000"),
        ({"stated": float("nan")}, ValueError, "stated is nan"),
    ],
)
def test_a_bad_argument_is_one_clear_line(changed, error, message):
    with pytest.raises(error, match=message) as raised:
        asked(**changed)
    assert "\n" not in str(raised.value)
