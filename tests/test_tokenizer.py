import json
import random

import pytest

from mistral_lab.loading import load
from mistral_lab.training.__main__ import BUNDLED
from mistral_lab.training.corpus import document
from mistral_lab.training.scribe import FAMILY, GIVEN
from mistral_lab.training.tokenizer import VOCAB_SIZE, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load("tiny-mistral").tokenizer


def pieces(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def test_the_shipped_tokenizer_is_what_the_trainer_makes_in_both_folders():
    made = json.loads(train_tokenizer().backend_tokenizer.to_str())
    for name in ("tiny-mistral", "tiny-mixtral"):
        shipped = json.loads((BUNDLED / name / "tokenizer.json").read_text(encoding="utf-8"))
        assert shipped["model"] == made["model"]
        assert shipped["pre_tokenizer"] == made["pre_tokenizer"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n\t  x",
        "My favourite condiment is",
        "AI的未来是",
        "naïve café — l'été",
        "👩‍🔬🏳️‍🌈🇫🇷",
        "مرحبا שלום नमस्ते",
        "\u202e\u0000\ufeff\u200d",
        "<s> </s> is text too",
        "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 e\u0301",
    ],
)
def test_any_text_comes_back_unchanged(tokenizer, text):
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) == text


def test_random_code_points_come_back_unchanged(tokenizer):
    generator = random.Random(0)
    for _ in range(200):
        points = [generator.randrange(0x110000) for _ in range(20)]
        text = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
        assert tokenizer.decode(pieces(tokenizer, text)) == text


def test_vocabulary_and_special_tokens_are_as_mistral_has_them(tokenizer):
    assert len(tokenizer) == VOCAB_SIZE
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer("Hello").input_ids[0] == tokenizer.bos_token_id


def test_digits_and_chinese_signs_stay_single(tokenizer):
    assert [tokenizer.decode([i]) for i in pieces(tokenizer, "1234")] == list("1234")
    assert [tokenizer.decode([i]) for i in pieces(tokenizer, "未来是")] == list("未来是")


def test_every_word_of_a_name_is_one_piece(tokenizer):
    assert all(len(pieces(tokenizer, " " + word)) == 1 for word in GIVEN + FAMILY)


def test_corpus_text_takes_few_pieces(tokenizer):
    texts = [document(i, split="held_out").text for i in range(60)]
    assert sum(len(pieces(tokenizer, text)) for text in texts) < 0.4 * sum(len(text.encode()) for text in texts)


def test_the_chat_template_renders(tokenizer):
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert rendered == "<s>[INST] Hello [/INST]"
