"""Examples are checked line by line, and the loss is where it belongs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_adapters import MODELS, TWO, student

from mistral_lab import finetune, load
from mistral_lab.finetune import Example


def test_examples_are_read_from_a_file_and_from_text(tmp_path):
    text = '{"prompt": "é", "answer": "未"}\n\n{"prompt": "b", "answer": "c", "id": 3}\n'
    expected = [Example("é", "未", 1), Example("b", "c", 3)]
    file = tmp_path / "mine.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert finetune.read_examples(text) == expected
    assert finetune.read_examples(file) == expected
    assert finetune.read_examples(str(file)) == expected


GOOD = '{"prompt": "a", "answer": "b"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{GOOD}\n{{'prompt': 1}}", "line 2: not JSON"),
        (f"{GOOD}\n\n[1]", "line 3: a JSON list: expected an object"),
        (
            f'{GOOD}\n{{"prompt": "a", "anwser": "b"}}',
            "line 2: the key 'answer' is missing; there is 'prompt', 'anwser'",
        ),
        (f'{{"prompt": 3, "answer": "b"}}\n{GOOD}', "line 1: 'prompt' is 3: expected text"),
        (f'{GOOD}\n{{"prompt": "a", "answer": " "}}', "line 2: 'answer' is empty"),
        (f'{GOOD}\n{{"prompt": "a"}}\n3', r"line 2: .* \(1 more lines are wrong\)"),
        ("", "there is no example"),
        ("\n \n", "there is no example"),
        (GOOD, "line 1 is the only example"),
    ],
)
def test_a_wrong_line_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        finetune.read_examples(text)


def test_a_wrong_file_is_named(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_bytes(GOOD.encode() + b"\n" + '{"prompt": "é'.encode("latin-1"))
    with pytest.raises(ValueError, match="line 2: byte 13 is not UTF-8"):
        finetune.read_examples(file)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="there is no example"):
        finetune.read_examples(file)
    with pytest.raises(FileNotFoundError):
        finetune.read_examples(tmp_path / "nothing.jsonl")
    with pytest.raises(TypeError, match="source is a int"):
        finetune.read_examples(3)


def test_the_answer_and_the_end_token_count_and_nothing_else():
    loaded = load("tiny-mistral")
    row = finetune.tokenise(loaded.tokenizer, Example("Who is it?", "Ida Kaur"), max_tokens=100)
    pieces = loaded.tokenizer.convert_ids_to_tokens(row["input_ids"])
    counted = [label != finetune.IGNORED for label in row["labels"]]
    assert pieces[0] == "<s>"
    assert loaded.tokenizer.decode(row["input_ids"][1:-1]) == "Who is it?\nIda Kaur"
    assert pieces[-3:] == ["Ida", "ĠKaur", "</s>"]
    assert counted == [False] * (len(pieces) - 3) + [True] * 3
    assert row["labels"][-3:] == row["input_ids"][-3:]


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_the_answers_by_hand(name):
    """Float64 by hand, from the logits of each example alone: padding and prompts must not count."""
    loaded = load(name, dtype="float32")
    rows = [finetune.tokenise(loaded.tokenizer, example, max_tokens=100) for example in TWO]
    nats = []
    for row in rows:
        with torch.no_grad():
            scores = loaded.model(torch.tensor([row["input_ids"]])).logits[0].double().numpy()
        for place in range(1, len(row["labels"])):
            if row["labels"][place] != -100:
                before = scores[place - 1]
                largest = before.max()
                nats.append(np.log(np.exp(before - largest).sum()) + largest - before[row["labels"][place]])
    assert len(rows[0]["labels"]) != len(rows[1]["labels"])
    assert len(nats) == 6  # two names of two tokens, two end tokens
    with torch.no_grad():
        loss = loaded.model(**finetune.collate(rows, pad_token_id=2)).loss.item()
    assert loss == pytest.approx(np.mean(nats), abs=1e-4)  # float32 logits of some tens, batched in another shape


def test_an_example_longer_than_the_context_is_refused_before_training():
    loaded = student()
    long = Example("a", "word " * 3000, line=7)
    with pytest.raises(
        ValueError, match=r"line 7: the prompt takes 3 tokens and the answer [\d,]+, .* context of 2,048"
    ):
        finetune.tune(loaded, [TWO[0], long], steps=2)
    with pytest.raises(ValueError, match="the example 'a': the prompt takes"):
        finetune.tune(loaded, [TWO[0], replace(long, line=0)], steps=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'{GOOD}\n{{"prompt": "\\ud83d", "answer": "b"}}', r"line 2: 'prompt' holds '\\ud83d', half of a character"),
        (f'{GOOD}\n{{"prompt": "a", "answer": "b\udc00"}}', r"line 2: 'answer' holds '\\udc00', half of a character"),
        (f"{GOOD}\n" + "[" * 10**5, "line 2: nested too deeply: expected an object"),
        (f"[{GOOD},\n{GOOD}]", "^a JSON list: write one object per line"),
        (f"[{GOOD}, {GOOD}]", "^a JSON list: write one object per line"),
        (f"\n[\n{GOOD}\n]\n", "^a JSON list: write one object per line"),
        (f"{GOOD}\n[{GOOD}]", "line 2: a JSON list: expected an object"),
        (f"[{GOOD},\n{GOOD}", "line 1: not JSON"),
        (f'{GOOD}\n{{"prompt": {list(range(100))}, "answer": "b"}}', r"'prompt' is \[0, 1, .{50,54}…: expected text$"),
        (f"{GOOD}\n{json.dumps(dict.fromkeys(map(str, range(99))))}", r"is missing; there is '0', '1', .{49}…$"),
    ],
)
def test_text_that_no_tokenizer_takes_and_other_formats_are_one_short_sentence(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as raised:
        finetune.read_examples(text)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 160
    if "\udc00" not in text:
        (tmp_path / "mine.jsonl").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            finetune.read_examples(tmp_path / "mine.jsonl")


def test_pasted_text_may_begin_with_a_byte_order_mark():
    assert finetune.read_examples(f"\ufeff{GOOD}\n{GOOD}") == [Example("a", "b", 1), Example("a", "b", 2)]
    with pytest.raises(ValueError, match="line 1 is the only example"):
        finetune.read_examples(f"\ufeff{GOOD}")


@pytest.mark.parametrize("kind", [str, Path])
def test_what_is_no_file_is_one_sentence(tmp_path, kind):
    with pytest.raises(IsADirectoryError, match=r"^'/.{5,58} is a folder: expected a file, or the text itself$"):
        finetune.read_examples(kind(tmp_path))
    for name in ("nothing\0there", "Tell me a story. " * 1000, "examples.jsonl/inside", "nothing.jsonl"):
        (tmp_path / "examples.jsonl").write_text("")
        with pytest.raises(FileNotFoundError, match="^no file '.*: expected a path, or the text itself$") as raised:
            finetune.read_examples(kind(str(tmp_path / name) if "/" in name else name))
        assert len(str(raised.value)) < 120


@pytest.mark.parametrize("key", ["prompt", "answer"])
@pytest.mark.parametrize("control", ["<s>", "</s>"])
def test_the_text_of_a_control_token_is_refused(key, control):
    loaded = load("tiny-mistral", bits=4)
    wrong = replace(TWO[0], **{key: f"a {control} b"}, line=9)
    with pytest.raises(ValueError, match=f"line 9: '{key}' holds {control}, which the model reads as a control token"):
        finetune.tokenise(loaded.tokenizer, wrong, max_tokens=100)
    with pytest.raises(ValueError, match="line 9: "):
        finetune.exact_match(loaded, [TWO[0], wrong])
    with pytest.raises(ValueError, match="line 9: "):
        finetune.tune(finetune.add_adapter(loaded), [TWO[0], wrong])


def test_an_example_may_fill_the_context_to_the_last_token():
    tokenizer = load("tiny-mistral").tokenizer
    tokens = len(finetune.tokenise(tokenizer, TWO[0], max_tokens=100)["input_ids"])
    assert len(finetune.tokenise(tokenizer, TWO[0], max_tokens=tokens)["input_ids"]) == tokens
    with pytest.raises(ValueError, match=f"context of {tokens - 1}: shorten it"):
        finetune.tokenise(tokenizer, TWO[0], max_tokens=tokens - 1)


def test_a_question_longer_than_the_context_is_refused_before_any_is_asked(monkeypatch):
    loaded = load("tiny-mistral")
    monkeypatch.setattr(type(loaded.model), "generate", lambda *_, **__: pytest.fail("a question was asked"))
    with pytest.raises(ValueError, match=r"line 7: the prompt takes [\d,]+ tokens .* context of 2,048"):
        finetune.exact_match(loaded, [*TWO, Example("word " * 3000, "a", line=7)], batch_size=1)
