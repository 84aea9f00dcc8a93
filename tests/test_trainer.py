"""The trainer on a few steps of the real recipes, made small."""

import errno
import json
from dataclasses import replace

import pytest
import torch
from transformers import TrainerCallback
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from mistral_lab.loading import load
from mistral_lab.training import __main__ as command
from mistral_lab.training.recipes import RECIPES, TRACES
from mistral_lab.training.trainer import BalancedTrainer, Blocks, export, last_whole_checkpoint, train

SMALL = replace(RECIPES["tiny-mistral"], steps=6, batch_size=2, length=64, warmup_steps=1, ramp=4)


@pytest.fixture(scope="module")
def tokenizer():
    return load("tiny-mistral").tokenizer


def quiet_train(recipe, tokenizer, folder, **options):
    return train(recipe, tokenizer, folder, progress=False, bf16=False, **options)


class Stop(TrainerCallback):
    """Interrupts a run in the middle of a step, as Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Losses(TrainerCallback):
    """Keeps what the Trainer logs."""

    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.values += [logs["loss"]] if "loss" in logs else []


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


def test_a_resumed_run_equals_an_uninterrupted_one(tokenizer, tmp_path):
    whole = quiet_train(SMALL, tokenizer, tmp_path / "whole", save_steps=3)
    with pytest.raises(KeyboardInterrupt):
        quiet_train(SMALL, tokenizer, tmp_path / "cut", save_steps=3, callbacks=[Stop(5)])
    assert last_whole_checkpoint(tmp_path / "cut").name == "checkpoint-3"
    resumed = quiet_train(SMALL, tokenizer, tmp_path / "cut", save_steps=3)
    for (name, expected), actual in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(expected, actual), name


def test_a_checkpoint_cut_short_is_passed_over(tokenizer, tmp_path):
    quiet_train(SMALL, tokenizer, tmp_path, save_steps=3)
    newest = last_whole_checkpoint(tmp_path)
    assert newest.name == "checkpoint-6"
    for file in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
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
    one, other = one + torch.rand(64, 8) * 0.1, other + torch.rand(64, 8) * 0.1

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


def test_checkpoints_of_another_recipe_are_refused(tmp_path):
    command.prepare(tmp_path, SMALL)
    command.prepare(tmp_path, SMALL)
    with pytest.raises(ValueError, match="holds checkpoints of another recipe: delete it"):
        command.prepare(tmp_path, replace(SMALL, steps=7))


def test_traces_show_the_same_run_with_and_without_the_balancing_loss():
    assert replace(TRACES["balanced"], name="", balance=0) == replace(TRACES["unbalanced"], name="", balance=0)
    spread = {}
    for name in TRACES:
        trace = json.loads((command.BUNDLED / "traces" / f"{name}.json").read_text())
        loads = torch.tensor(trace["loads"])
        assert loads.shape == (len(trace["steps"]), 4, 8)
        # Rounded to four places, eight shares sum to one within eight half units.
        torch.testing.assert_close(loads.sum(-1), torch.ones(loads.shape[:2]), atol=4e-4, rtol=0)
        spread[name] = (loads[-1].max(-1).values - loads[-1].min(-1).values).mean()
    assert spread["balanced"] < spread["unbalanced"]
