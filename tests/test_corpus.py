import ast
import json
import re

import pytest

from mistral_lab.training.corpus import HELD_OUT, KINDS, TRAIN, document
from mistral_lab.training.scribe import FAMILY, GIVEN, Scribe, is_reserved, rough_tokens


def texts(kind, split=TRAIN, count=60):
    return [document(i, split=split, kind=kind) for i in range(count)]


def test_the_same_number_is_the_same_document_and_another_number_another():
    assert document(5) == document(5)
    assert len({document(i).text for i in range(120)}) == 120
    assert document(5).text != document(5, split=HELD_OUT).text


def test_kinds_take_turns():
    assert [document(i).kind for i in range(6)] == list(KINDS)


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown kind 'poem': expected one of english, french"):
        document(0, kind="poem")


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be 'train' or 'held_out', got 'test'"):
        document(0, split="test")


def test_about_one_pair_in_eight_is_reserved():
    share = sum(is_reserved("name", g, f) for g in GIVEN for f in FAMILY) / (len(GIVEN) * len(FAMILY))
    # 4,096 fair draws with p = 1/8 have a standard deviation of 0.005; five of them bound any reasonable checksum.
    assert abs(share - 1 / 8) < 0.026


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_the_two_splits_never_meet(kind):
    seen = {d.name for d in texts(kind)}
    unseen = {d.name for d in texts(kind, HELD_OUT)}
    assert not seen & unseen
    assert all(d.name in d.text for d in texts(kind))


def test_training_shows_every_word_of_a_held_out_name():
    """Only the combination is new: a model that never met the words could not be asked for them."""
    words = {word for i in range(1500) for word in document(i, kind="json").name.split()}
    assert {word for d in texts("json", HELD_OUT) for word in d.name.split()} <= words


def test_a_pair_belongs_to_its_split():
    for split in (TRAIN, HELD_OUT):
        scribe = Scribe("seed", split)
        pairs = [scribe.pair("sum", range(100), range(100)) for _ in range(200)]
        assert all(is_reserved("sum", str(a), str(b)) == (split == HELD_OUT) for a, b in pairs)


def test_every_sum_that_is_written_is_right():
    checked = 0
    for d in texts("arithmetic") + texts("arithmetic", HELD_OUT):
        for a, sign, b, result in re.findall(r"(\d+) ([+*-]) (\d+) = (\d+)\.", d.text):
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(result)
            checked += 1
        for a, word, b in re.findall(r"(\d+) is (less|more|equal)\D+(\d+)\.", d.text):
            assert {"less": int(a) < int(b), "more": int(a) > int(b), "equal": a == b}[word]
            checked += 1
    assert checked > 1000


def test_python_documents_are_python_and_json_documents_are_json():
    for d in texts("python"):
        ast.parse(d.text)
    for d in texts("json"):
        assert all(isinstance(json.loads(line), dict) for line in d.text.splitlines())


def test_french_contracts_de_and_le():
    assert not any("de le " in d.text for d in texts("french", count=200))


def test_names_come_back_at_short_and_at_long_distances():
    """Some after more tokens than a window of 64 shows, as the relay through the layers needs."""
    gaps = []
    for i in range(300):
        d = document(i)
        gaps += [rough_tokens(part) for part in d.text.split(d.name)[1:-1]]
    assert min(gaps) < 30
    assert sum(gap > 63 for gap in gaps) / len(gaps) > 0.25
    assert sum(gap > 126 for gap in gaps) / len(gaps) > 0.1


def test_a_smaller_spread_brings_names_back_sooner():
    near, far = (document(12, spread=spread) for spread in (0.0, 1.0))
    assert near.text.count(near.name) > 2 * far.text.count(far.name)


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("Ada has 12 pears.", 6), ("AI的未来", 4), ("snake_case", 3), ("l'été", 3)]
)
def test_rough_tokens(text, tokens):
    assert rough_tokens(text) == tokens
