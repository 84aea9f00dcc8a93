"""The trainer on a few steps of the real recipes, made small."""

import errno
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from mistral_lab.files import write_whole
from mistral_lab.loading import load
from mistral_lab.training import __main__ as command
from mistral_lab.training import corpus
from mistral_lab.training.corpus import document
from mistral_lab.training.recipes import RECIPES, TRACES
from mistral_lab.training.trainer import (
    DOCUMENTS_PER_BLOCK,
    BalancedTrainer,
    Blocks,
    export,
    full_disk_of_training,
    last_whole_checkpoint,
    train,
)


def small(name):
    return replace(RECIPES[name], steps=6, batch_size=2, length=64, warmup_steps=1, ramp=4)


SMALL = small("tiny-mistral")


@pytest.fixture(scope="module")
def tokenizer():
    return load("tiny-mistral").tokenizer


def quiet_train(recipe, tokenizer, folder, **options):
    return train(recipe, tokenizer, folder, progress=False, bf16=False, **options)


class Stop(TrainerCallback):
    """Interrupts a run before a step, as Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Losses(TrainerCallback):
    """Keeps the mean loss that the Trainer logs at the end of a run."""

    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.values += [logs["train_loss"]] if "train_loss" in logs else []


@pytest.mark.parametrize("name", RECIPES)
def test_a_few_steps_lower_the_loss(name, tokenizer, tmp_path):
    recipe = replace(RECIPES[name], steps=30, batch_size=2, length=64, warmup_steps=2, ramp=1)
    data = Blocks(tokenizer, length=64, size=8, ramp=1)
    batch = torch.stack([data[i]["input_ids"] for i in range(8)])

    def loss(model):
        with torch.inference_mode():
            return model.eval()(input_ids=batch, labels=batch).loss.item()

    # Untrained, no guess beats ln(V) nats. Thirty steps learn at least how often each piece occurs: two nats.
    assert loss(quiet_train(recipe, tokenizer, tmp_path)) < loss(recipe.new_model()) - 2


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_equals_an_uninterrupted_one(name, tokenizer, tmp_path):
    recipe = small(name)
    whole = quiet_train(recipe, tokenizer, tmp_path / "whole", save_steps=3)
    with pytest.raises(KeyboardInterrupt):
        quiet_train(recipe, tokenizer, tmp_path / "cut", save_steps=3, callbacks=[Stop(5)])
    assert last_whole_checkpoint(tmp_path / "cut").name == "checkpoint-3"
    resumed = quiet_train(recipe, tokenizer, tmp_path / "cut", save_steps=3)
    again = quiet_train(recipe, tokenizer, tmp_path / "cut", save_steps=3)  # nothing is left to do
    for key, expected in whole.state_dict().items():
        assert torch.equal(expected, resumed.state_dict()[key]), key
        assert torch.equal(expected, again.state_dict()[key]), key


def test_the_balancing_loss_is_part_of_the_training(tokenizer, tmp_path):
    losses = []
    for balance in (0.0, 1.0):
        log = Losses()
        quiet_train(
            replace(small("tiny-mixtral"), balance=balance), tokenizer, tmp_path / str(balance), callbacks=[log]
        )
        losses += log.values
    # Perfect balance costs 2, eight experts of which two take all cost 8; the text's loss hardly changes in six steps.
    assert 1.9 < losses[1] - losses[0] < 8


def test_a_checkpoint_cut_short_is_passed_over(tokenizer, tmp_path):
    quiet_train(SMALL, tokenizer, tmp_path, save_steps=3)
    newest = last_whole_checkpoint(tmp_path)
    assert newest.name == "checkpoint-6"
    for file in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        content = (newest / file).read_bytes()
        (newest / file).write_bytes(content[: len(content) // 2])
        assert last_whole_checkpoint(tmp_path).name == "checkpoint-3", file
        (newest / file).write_bytes(content)
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-6"


def test_no_checkpoint_is_none(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None


def test_a_full_disk_is_said_in_one_line_and_the_last_checkpoint_stays_whole(tokenizer, tmp_path, monkeypatch):
    quiet_train(replace(SMALL, steps=3), tokenizer, tmp_path, save_steps=3)
    save = torch.save

    def full(obj, file, *rest, **options):
        if "checkpoint-6" in str(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(obj, file, *rest, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="the disk is full: .* checkpoint-3 is whole and the next run resumes") as raised:
        quiet_train(SMALL, tokenizer, tmp_path, save_steps=3)
    assert raised.value.errno == errno.ENOSPC
    assert "\n" not in str(raised.value)
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-3"


def test_other_errors_are_not_called_a_full_disk(tokenizer, tmp_path, monkeypatch):
    def broken(*rest, **options):
        raise RuntimeError("something else")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="something else"):
        quiet_train(SMALL, tokenizer, tmp_path, save_steps=3)


def test_blocks_are_full_start_with_bos_and_depend_on_their_number_alone(tokenizer):
    data = Blocks(tokenizer, length=128, size=20, ramp=8)
    for i in (0, 5, 19):
        assert data[i]["input_ids"].shape == (128,)
        assert data[i]["input_ids"][0] == tokenizer.bos_token_id
        assert torch.equal(data[i]["input_ids"], data[i]["labels"])
        assert torch.equal(data[i]["input_ids"], Blocks(tokenizer, length=128, size=99, ramp=8)[i]["input_ids"])
    assert not torch.equal(data[18]["input_ids"], data[19]["input_ids"])


def test_names_come_back_sooner_in_the_first_blocks(tokenizer):
    data = Blocks(tokenizer, length=320, size=40, ramp=20)

    def mentions(i):
        text = tokenizer.decode(data[i]["input_ids"])
        return text.count(document(i * DOCUMENTS_PER_BLOCK).name)

    assert mentions(0) > 2 * mentions(20)


def test_documents_in_a_block_are_parted(tokenizer):
    data = Blocks(tokenizer, length=2000, size=1, ramp=1)
    tokens = data[0]["input_ids"].tolist()
    ends = [i for i, token in enumerate(tokens) if token == tokenizer.eos_token_id]
    assert len(ends) >= 2
    assert all(tokens[i + 1] == tokenizer.bos_token_id for i in ends)


def test_a_full_disk_at_the_export_is_one_line_too(tokenizer, tmp_path, monkeypatch):
    model, folder = SMALL.new_model(), tmp_path / "model"
    export(model, tokenizer, folder)
    before = (folder / "model.safetensors").read_bytes()

    def full(*rest, **options):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(
        OSError, match="the disk is full: free some space and train again; what was there before is whole"
    ):
        export(model, tokenizer, folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_an_error_without_words_on_a_full_disk_is_understood(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 0))
    with pytest.raises(OSError, match="the disk is full"), full_disk_of_training(tmp_path):
        raise RuntimeError("[enforce fail at inline_container.cc:668]")


def test_an_exported_model_uses_its_cache(tokenizer, tmp_path):
    export(quiet_train(replace(SMALL, steps=1), tokenizer, tmp_path / "work"), tokenizer, tmp_path / "model")
    assert load(tmp_path / "model").model.config.use_cache


def test_export_is_whole_or_not_at_all(tokenizer, tmp_path, monkeypatch):
    model, folder = SMALL.new_model(), tmp_path / "model"
    export(model, tokenizer, folder)
    before = (folder / "model.safetensors").read_bytes()

    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(model, tokenizer, folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_the_balancing_loss_sees_what_pooled_layers_hide(tokenizer):
    """Two layers that overuse opposite experts: pooled, they look balanced; layer by layer, they do not."""
    one, other = torch.zeros(64, 8), torch.zeros(64, 8)
    one[:, :4], other[:, 4:] = 5.0, 5.0
    noise = torch.rand(2, 64, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    one, other = one + noise[0], other + noise[1]

    class Outputs(dict):
        loss = torch.tensor(0.0)
        router_logits = (one, other)
        aux_loss = load_balancing_loss_func((one, other), 8, 2)

    def model(**inputs):
        outputs = Outputs()
        outputs.loss = model.config.router_aux_loss_coef * outputs.aux_loss  # as transformers adds it
        return outputs

    model.config = replace(RECIPES["tiny-mixtral"], balance=1.0).new_model().config
    loss = BalancedTrainer.compute_loss(None, model, {})
    assert Outputs.aux_loss == pytest.approx(2.0, rel=0.05)  # the value of perfect balance
    assert loss == pytest.approx(4.0, rel=0.05)  # half of the experts carry everything in each layer


def test_heads_start_as_copiers():
    model = SMALL.new_model()
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    attention, config = model.model.layers[1].self_attn, model.config
    d = config.head_dim
    for head in range(config.num_attention_heads):
        shared = head // (config.num_attention_heads // config.num_key_value_heads)
        read = attention.v_proj.weight[shared * d : (shared + 1) * d]
        written = attention.o_proj.weight[:, head * d : (head + 1) * d]
        # Orthonormal rows: what a head reads comes back a fifth as large. 1e-6: float32 products of 128 terms.
        torch.testing.assert_close(read @ written, 0.2 * torch.eye(d), atol=1e-6, rtol=0)


def test_checkpoints_of_another_recipe_or_text_are_refused(tokenizer, tmp_path, monkeypatch):
    command.prepare(tmp_path, SMALL, tokenizer)
    command.prepare(tmp_path, SMALL, tokenizer)
    with pytest.raises(ValueError, match="holds checkpoints of another recipe: delete it"):
        command.prepare(tmp_path, replace(SMALL, steps=7), tokenizer)
    monkeypatch.setattr(corpus, "SEED", 1)
    with pytest.raises(ValueError, match="holds checkpoints of another recipe: delete it"):
        command.prepare(tmp_path, SMALL, tokenizer)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_whole(path, "old")

    def full(self, text, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(path), "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"


def test_traces_show_the_same_run_with_and_without_the_balancing_loss():
    assert replace(TRACES["balanced"], name="", balance=0) == replace(TRACES["unbalanced"], name="", balance=0)
    spread = {}
    for name in TRACES:
        trace = json.loads((command.BUNDLED / "traces" / f"{name}.json").read_text())
        loads = torch.tensor(trace["loads"])
        assert trace["steps"] == list(range(0, TRACES[name].steps + 1, 10))
        assert loads.shape == (len(trace["steps"]), 4, 8)
        assert len(trace["losses"]) == len(trace["steps"])
        assert trace["losses"][-1] < 0.2 * trace["losses"][0]  # it learnt: from ln 2560 = 7.8 to about 1
        # Rounded to four places, eight shares sum to one within eight half units.
        torch.testing.assert_close(loads.sum(-1), torch.ones(loads.shape[:2]), atol=4e-4, rtol=0)
        spread[name] = (loads[-1].max(-1).values - loads[-1].min(-1).values).mean()
    assert spread["balanced"] < spread["unbalanced"]
