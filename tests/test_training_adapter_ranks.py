"""The record of rank against quality: what is run, with which settings, and what is written down."""

import json

import numpy as np
import pytest
import torch

from mistral_lab import finetune, load
from mistral_lab.training import __main__ as command
from mistral_lab.training import adapter_ranks
from mistral_lab.training.letters import letters
from mistral_lab.training.scribe import HELD_OUT, TRAIN, is_reserved

SMALL = {"ranks": (2,), "seeds": (5,), "steps": 2, "taught": 8, "asked": 3}


def test_letters_are_the_same_from_the_first_on_and_name_their_writer():
    few, many = letters(TRAIN, 3).split("\n"), letters(TRAIN, 40).split("\n")
    assert many[:3] == few
    for split in (TRAIN, HELD_OUT):
        for example in finetune.read_examples(letters(split, 40)):
            writer = json.loads(example.answer)["customer"]
            assert f"My name is {writer}." in example.prompt
            assert is_reserved("name", *writer.split()) == (split == HELD_OUT)


def test_each_run_has_its_rank_place_and_seed_and_all_share_the_settings(monkeypatch):
    runs = []

    def add_adapter(loaded, *, rank, targets, seed):
        runs.append({"model": loaded.name, "rank": rank, "targets": targets, "seed": seed})
        return finetune.add_adapter(loaded, rank=rank, targets=targets, seed=seed)

    def tune(loaded, examples, *, steps, batch_size, learning_rate, seed):
        lessons = [(example.prompt, example.answer) for example in examples]
        runs[-1] |= {"steps": steps, "batch": batch_size, "rate": learning_rate, "order": seed, "lessons": lessons}

    def exact_match(loaded, examples):
        questions = [(example.prompt, example.answer) for example in examples]
        runs[-1]["questions"] = questions
        return finetune.Answers(("",) * len(questions), np.arange(len(questions)) < len(runs))

    for function in (add_adapter, tune, exact_match):
        monkeypatch.setattr(adapter_ranks, function.__name__, function)
    found = adapter_ranks.measure_ranks(ranks=(1, 4), seeds=(0, 7), steps=2, taught=4, asked=15)
    order = [(run["targets"], run["rank"], run["seed"]) for run in runs]
    places = ("attention", "all")
    assert order[:8] == [(place, rank, seed) for place in places for rank in (1, 4) for seed in (0, 7)]
    assert order[8:] == [(place, 4, seed) for place in places for seed in (0, 7)]
    assert [run["rate"] for run in runs] == [0.01] * 8 + [0.005] * 4
    assert found["right"] == {"attention": [[1, 2], [3, 4]], "all": [[5, 6], [7, 8]]}
    assert found["right_at_half_the_rate"] == {"attention": [9, 10], "all": [11, 12]}
    asked = {split: finetune.read_examples(letters(split, count)) for split, count in ((TRAIN, 4), (HELD_OUT, 15))}
    for run in runs:
        assert run["order"] == run["seed"]
        assert (run["model"], run["steps"], run["batch"]) == ("tiny-mistral", 2, 16)
        assert run["lessons"] == [(example.prompt, example.answer) for example in asked[TRAIN]]
        assert run["questions"] == [(example.prompt, example.answer) for example in asked[HELD_OUT]]


def test_a_very_small_run_counts_what_the_room_of_fine_tuning_answers(monkeypatch):
    answered = []

    def exact_match(loaded, examples):
        answered.append((loaded, finetune.exact_match(loaded, examples)))
        return answered[-1][1]

    monkeypatch.setattr(adapter_ranks, "exact_match", exact_match)
    found = adapter_ranks.measure_ranks(**SMALL)
    assert found["right"] == {
        targets: [[int(answers.right.sum())]]
        for targets, (_, answers) in zip(("attention", "all"), answered[:2], strict=True)
    }
    assert found["settings"] == {
        "model": "tiny-mistral", "bits": 4, "steps": 2, "batch_size": 16, "learning_rate": 0.01, "taught": 8,
        "asked": 3, "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip
    # The same run by hand leaves the same adapter.
    expected = finetune.add_adapter(load("tiny-mistral", bits=4), rank=2, targets="all", seed=5)
    untrained = {name: weight.clone() for name, weight in trained(expected)}
    finetune.tune(expected, finetune.read_examples(letters(TRAIN, 8)), steps=2, batch_size=16, seed=5)
    for (name, one), (_, other) in zip(trained(answered[1][0]), trained(expected), strict=True):
        assert torch.equal(one, other), name
        # The first of two steps only warms up, and as long as B is zero, A gets no gradient.
        assert torch.equal(one, untrained[name]) == ("lora_A" in name), name


def trained(loaded):
    return [(name, weight) for name, weight in loaded.model.named_parameters() if weight.requires_grad]


@pytest.mark.parametrize("other", ["traces", "ranks"])
def test_the_command_writes_the_record_whole_and_nothing_else(other, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "BUNDLED", tmp_path)
    monkeypatch.setattr(command, "TRACES", {})
    monkeypatch.setattr(command, "train_tokenizer", lambda: None)
    found = adapter_ranks.measure_ranks(**SMALL)
    monkeypatch.setattr(command, "measure_ranks", lambda: found)
    command.main(["--only", other])
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert written == (["traces/ranks.json"] if other == "ranks" else [])
    if written:
        text = (tmp_path / written[0]).read_text(encoding="utf-8")
        assert json.loads(text) == found
        assert text == adapter_ranks.as_json(found)
