"""The model with interleaved windows: its recipe, its measurements, its record, and who reads it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mistral_lab import experiments
from mistral_lab.loading import load
from mistral_lab.training import __main__ as command
from mistral_lab.training import card, evaluation, windows
from mistral_lab.training.recipes import INTERLEAVED, RECIPES


@pytest.fixture(scope="module")
def tokenizer():
    return load("tiny-mistral").tokenizer


@pytest.fixture(scope="module")
def models():
    """Untrained, but for tiny-mistral."""
    trained = load("tiny-mistral", dtype="float32").model
    return {"tiny-mistral": trained, "tiny-interleaved": INTERLEAVED.new_model().eval()}


@pytest.fixture(scope="module")
def found(models, tokenizer):
    return windows.measure_windows(models, tokenizer, documents=6, asked=12, blocks=3, story=6)


def test_the_recipe_differs_in_the_sight_of_the_last_layer_alone():
    twin = RECIPES["tiny-mistral"]
    assert replace(INTERLEAVED, name=twin.name, architecture=twin.architecture) == twin
    ours, theirs = INTERLEAVED.new_model().eval(), twin.new_model().eval()
    assert windows.layer_types(ours.config) == 3 * ["sliding_attention"] + ["full_attention"]
    assert windows.layer_types(theirs.config) == 4 * ["sliding_attention"]
    assert windows.layer_types(RECIPES["tiny-mixtral"].new_model().config) == 4 * ["full_attention"]
    start = theirs.state_dict()
    assert start.keys() == ours.state_dict().keys()
    assert all(torch.equal(start[key], weight) for key, weight in ours.state_dict().items())
    tokens = torch.arange(3, 103)[None]
    with torch.inference_mode():
        gap = (ours(tokens).logits - theirs(tokens).logits)[0].abs().amax(-1)
    assert gap[:64].max() == 0  # as long as the window holds all of the text, nothing differs
    assert gap[64:].min() > 1e-3  # and from then on every token does; rounding makes 1e-6


def test_the_measurements_are_those_of_the_evaluation(found, models, tokenizer):
    encoded, names = evaluation.held_out(tokenizer, 6), evaluation.held_out(tokenizer, 12)
    assert list(found["models"]) == list(models)
    for name, model in models.items():
        row = found["models"][name]
        cut = [nats[:320] for nats in evaluation.losses(model, encoded)]
        assert row["loss"]["mean"] == pytest.approx(np.concatenate(cut).mean(), rel=1e-5)  # float32, another order
        asked = evaluation.recall(model, tokenizer, names, ranges={"all": (1, 315)})["all"]
        assert sum(r["asked"] for r in row["recall"]) == asked.asked
        assert sum(r["right"] for r in row["recall"]) == asked.hits
        # By hand: three blocks of two documents or more, the first of which begins with the first document.
        blocks = windows.joined_blocks(names, tokenizer, length=512, count=3)
        with torch.inference_mode():
            logits = model(torch.tensor([blocks[0].tokens])).logits[0]
        nats = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(blocks[0].tokens[1:]), reduction="none")
        alone = [evaluation.losses(model, [block])[0] for block in blocks]
        np.testing.assert_allclose(alone[0], nats, rtol=0, atol=1e-4)  # float32, another order
        for part, bounds in enumerate(row["loss_by_position"]):  # the last one has 63 tokens, all others 64
            expected = np.mean([block[64 * part : 64 * (part + 1)].mean() for block in alone])
            assert bounds["mean"] == pytest.approx(expected, rel=1e-5)
            assert bounds["low"] <= bounds["mean"] <= bounds["high"]
    assert set(found["models"]["tiny-mistral"]["loss_difference"].values()) == {0.0}
    assert found["models"]["tiny-interleaved"]["loss_difference"]["low"] > 5  # it is untrained
    assert found["models"]["tiny-mistral"]["story"] == found["story"]["answer"] == "Omar Klein"


def test_ranges_are_thirds_of_a_hop_and_leave_no_gap():
    ends = [bound for low, high in windows.RANGES for bound in (low, high)]
    assert (ends[0], ends[5], ends[-1], len(windows.RANGES)) == (1, 63, 315, 15)
    assert all(after == before + 1 for before, after in zip(ends[1:-1:2], ends[2::2], strict=True))


def test_blocks_part_documents_and_are_refused_where_there_are_too_few(tokenizer):
    texts = evaluation.held_out(tokenizer, 4)
    (block,) = windows.joined_blocks(texts, tokenizer, length=512, count=1)
    assert block.tokens[: len(texts[0].tokens) + 1] == [*texts[0].tokens, tokenizer.eos_token_id]
    assert len(block.tokens) == 512
    with pytest.raises(ValueError, match="4 documents make . blocks of 512 tokens: expected 9"):
        windows.joined_blocks(texts, tokenizer, length=512, count=9)
    with pytest.raises(ValueError, match="document 0 mentions its name at most 128 tokens back"):
        windows.place_of(tokenizer, 0)


def test_the_command_trains_and_writes_the_record_and_leaves_the_weights(models, tokenizer, monkeypatch, tmp_path):
    """All parts but the training and the card's measurements, which have tests of their own, on few documents."""
    for name in RECIPES:
        (tmp_path / "bundled" / name).mkdir(parents=True)
        for file in (command.BUNDLED / name).iterdir():
            (tmp_path / "bundled" / name / file.name).symlink_to(file)
    small = replace(INTERLEAVED, steps=2, batch_size=1, length=64, warmup_steps=1, ramp=1)
    monkeypatch.setattr(command, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setattr(command, "INTERLEAVED", small)
    monkeypatch.setattr(command, "train_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(windows.measure_windows, "__kwdefaults__", {"blocks": 3, "story": 6})
    monkeypatch.setattr(card, "DOCUMENTS", 6)
    monkeypatch.setattr(card, "RECALL_DOCUMENTS", 12)
    command.main(["--only", "tiny-interleaved", "--work", str(tmp_path / "work")])
    new = [path for path in (tmp_path / "bundled").rglob("*") if path.is_file() and not path.is_symlink()]
    assert {path.name for path in new} == {"windows.json", "runs.json"}
    assert (tmp_path / "work" / "tiny-interleaved" / "model" / "model.safetensors").is_file()
    record = json.loads((tmp_path / "bundled" / "traces" / "windows.json").read_text(encoding="utf-8"))
    assert list(record["models"]) == ["tiny-mistral", "tiny-interleaved", "tiny-mixtral"]
    assert json.loads((tmp_path / "bundled" / "runs.json").read_text())["tiny-interleaved"]["seconds"] >= 0
    kept = windows.read_card(record)
    assert kept["parameters"] == record["models"]["tiny-interleaved"]["parameters"]
    assert kept["recall"]["1 to 63"].right.low <= kept["recall"]["1 to 63"].right.mean


def test_the_shipped_record_is_whole_and_of_these_models(tokenizer):
    record = experiments.read_windows_record()
    assert record.settings == {
        "window": 64, "trained_length": 320, "seed": 0, "steps": 4600, "loss_documents": 600,
        "recall_documents": 1800, "blocks": 60, "torch": record.settings["torch"],
    }  # fmt: skip
    assert list(record.ranges) == windows.RANGES
    assert list(record.positions) == windows.POSITIONS
    assert list(record.models) == ["tiny-mistral", "tiny-interleaved", "tiny-mixtral"]
    text, distance, target, size = windows.place_of(tokenizer, record.story.document)
    assert (record.story.distance, record.story.answer) == (distance, text.document.name)
    for name, model in record.models.items():
        assert len(model.recall) == len(model.asked) == len(record.ranges)
        assert len(model.loss_by_position) == len(record.positions)
        assert (model.right <= model.asked).all()
        assert (model.asked == record.models["tiny-mistral"].asked).all()  # all were asked the same
        for row, right, asked in zip(model.recall, model.right, model.asked, strict=True):
            expected = evaluation.wilson(int(right), int(asked))
            # Bounds are rounded to six places.
            assert (row.low, row.high) == pytest.approx((expected.low, expected.high), abs=6e-7)
        if name in RECIPES:  # what is shipped can be asked again
            shipped = load(name, dtype="float32").model
            assert model.parameters == sum(weight.numel() for weight in shipped.parameters())
            logits = evaluation.next_token_logits(shipped, text.tokens[: target + size - 1])
            assert tokenizer.decode(logits[-size:].argmax(-1)).strip() == model.story
    interleaved, twin = record.models["tiny-interleaved"], record.models["tiny-mistral"]
    assert interleaved.parameters == twin.parameters
    assert interleaved.loss.mean - twin.loss.mean == pytest.approx(interleaved.loss_difference.mean, abs=2e-6)
