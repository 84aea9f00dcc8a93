"""The explorer of the ring shows what a list of the last positions holds."""

import pytest
from explorer_checks import drawn, still_beside_live
from figure_checks import signs, texts_of

from mistral_lab import explorers


@pytest.mark.parametrize("window", [1, 3, 8])
def test_the_ring_shows_what_a_list_of_the_last_positions_holds(window):
    explorer = explorers.ring_cache()
    explorer.controls["window"].value = window
    last = explorer.controls["token"].max
    for token in (0, window - 1, window, last):
        explorer.controls["token"].value = token
        kept = [position for position in range(last + 1) if 0 <= token - position < window]
        ring, text = drawn(explorer).axes
        slots = [label.get_text().split("\n")[1] for label in ring.texts if "\n" in label.get_text()]
        assert {int(slot) for slot in slots if slot.isdigit()} == set(kept)
        assert len(text.lines) == token + 1 - len(kept)  # each lost token is struck out
        assert f"goes to slot {token} mod {window} = {token % window}" in explorer.sentence
        assert ("overwrites" in explorer.sentence) == (token >= window)


def test_the_still_draws_what_the_live_view_draws_at_each_moment():
    moments = [{"token": token, "window": 6} for token in (2, 5, 6, 13)]
    fates = ["fills an empty slot", "fills an empty slot", "replaces 0, “Once”", "replaces 7, “Grant”"]
    pairs = still_beside_live(explorers.ring_cache, moments)
    for (panel, live), moment, fate in zip(pairs, moments, fates, strict=True):
        assert signs(panel) == signs(live)
        positions = [text.split("\n")[-1].removeprefix("slot ") for text in texts_of(live)]
        assert [text.split("\n")[-1] for text in texts_of(panel)] == positions
        assert panel.get_title(loc="center").startswith(f"{moment['token']}, “")
        assert panel.get_title(loc="center").endswith(fate)


def test_the_play_button_moves_the_token():
    explorer = explorers.ring_cache()
    play, before = explorer.controls["token"].play, explorer.png
    play.value += 1
    assert explorer.controls["token"].value == play.value
    assert explorer.png != before
    explorer.controls["token"].value = 0
    assert play.value == 0
