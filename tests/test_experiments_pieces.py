"""The bytes of which tokens are made, in both ways of writing them."""

import pytest

from mistral_lab import experiments, load


@pytest.fixture(scope="module")
def tiny():
    return load("tiny-mistral")


@pytest.mark.parametrize("text", ["AI的未来是 a ☃, 饕🦙\n\té “x”", "".join(map(chr, range(1, 0x250)))])
def test_the_bytes_of_tokens_join_to_the_text(tiny, text):
    ids = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(experiments.bytes_of_tokens(tiny.tokenizer, ids)) == text.encode()


def test_pieces_of_mistrals_own_tokenizer_are_read_too():
    class Pieces:
        all_special_ids = (1,)

        def get_vocab(self):
            return {"<0x00>": 3}

        def convert_ids_to_tokens(self, ids):
            return [{1: "<s>", 5: "▁snow", 6: "<0xE2>", 7: "是"}[number] for number in ids]

    found = experiments.bytes_of_tokens(Pieces(), [1, 5, 6, 7])
    assert found == [b"<s>", b" snow", b"\xe2", "是".encode()]
