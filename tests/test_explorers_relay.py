"""The explorer of the relay says and draws what a walk from key to key finds."""

import pytest
from explorer_checks import drawn, moved, still_beside_live
from figure_checks import signs
from matplotlib.colors import to_hex
from matplotlib.patches import Wedge

from mistral_lab import explorers
from mistral_lab.figures.language import KEY, QUERY

RELAYS = [(12, 5, 3), (12, 4, 3), (12, 4, 4), (7, 1, 2), (1, 3, 2), (0, 5, 1)]


@pytest.mark.parametrize(("token", "window", "layers"), RELAYS)
def test_the_relay_says_what_a_walk_from_key_to_key_finds(token, window, layers):
    explorer = explorers.relay()
    for name, value in {"token": token, "window": window, "layers": layers}.items():
        explorer.controls[name].value = value
    back, hops = token - 1, 0
    reached = {token}
    while 1 not in reached and hops < layers:  # the name is token 1
        reached |= {key for query in reached for key in range(query + 1) if query - key < window}
        hops += 1
    if back < 0:
        assert "not been told yet" in explorer.sentence
    elif 1 in reached:
        assert f"is {back} back, {'still' if back < window else 'no longer'} among the keys" in explorer.sentence
        assert explorer.sentence.endswith(f"hears of it after layer {hops}." if hops else "is the name itself.")
    else:
        assert "it is lost for" in explorer.sentence
    [ax] = drawn(explorer).axes
    texts = [text.get_text() for text in ax.texts]
    assert texts.count("Lena") == (token >= 1) + (token == 12 and 1 in reached)
    assert ("?" in texts) == (token == 12 and 1 not in reached)


def test_each_token_goes_to_its_slot_of_the_lowest_ring_and_the_name_stays_until_it_is_overwritten():
    explorer, window = explorers.relay(), 5
    for token in (0, 1, 5, 6, 12):
        [ax] = drawn(moved(explorer, token=token)).axes
        lowest = [patch for patch in ax.patches if isinstance(patch, Wedge)][:window]
        newest = [slot for slot, wedge in enumerate(lowest) if to_hex(wedge.get_edgecolor()) == QUERY]
        assert newest == [token % window]
        named = [slot for slot, wedge in enumerate(lowest) if to_hex(wedge.get_facecolor()) == KEY]
        assert named == ([1] if 0 <= token - 1 < window else [])  # the name is token 1
        empty = [slot for slot, wedge in enumerate(lowest) if to_hex(wedge.get_facecolor()) == "#ffffff"]
        assert empty == list(range(token + 1, window))


def test_the_still_draws_what_the_live_view_draws_at_each_moment():
    moments = [{"token": token, "window": 5, "layers": 3} for token in (3, 5, 8, 12)]
    for panel, live in still_beside_live(explorers.relay, moments):
        assert signs(panel) == signs(live)
