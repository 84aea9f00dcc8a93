"""Training changes the adapter as it should, nothing else, and goes on where it stopped."""

import json
from typing import ClassVar

import pytest
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit
from small_adapters import MODELS, TWO, letters, logits, quantised, same, student, weights_of

from mistral_lab import finetune, load
from mistral_lab.finetune import Example
from mistral_lab.training.scribe import GIVEN, HELD_OUT, TRAIN


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_autograd_on_the_dequantised_weights(name, checkpointing):
    """Every four-bit matrix replaced by a plain one of the same numbers: the gradients of A and B must agree."""
    loaded = student(name, targets="all", filled=True, dtype="float32")
    logits(loaded)  # packs the weights for the fused kernel where there is one: training must undo that
    rows = [finetune.tokenise(loaded.tokenizer, example, max_tokens=100) for example in TWO]
    batch = finetune.collate(rows, pad_token_id=2)

    def gradients():
        loaded.model.zero_grad()
        loaded.model(**batch).loss.backward()
        trained = {key: p for key, p in loaded.model.named_parameters() if p.requires_grad}
        # an expert that no token chose has no gradient
        return {key: torch.zeros_like(p) if p.grad is None else p.grad.clone() for key, p in trained.items()}

    with finetune.tuning.training_mode(loaded.model, checkpointing=checkpointing):
        found = gradients()
    loaded.model.train()
    for layer in finetune.adapted(loaded.model).values():
        weight = layer.base_layer.weight
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight = torch.nn.Parameter(dequantize_4bit(weight.data, weight.quant_state).float(), requires_grad=False)
        layer.base_layer = plain
    expected = gradients()
    assert found.keys() == expected.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())
    for key in expected:  # float32 sums in another order
        torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_changes_the_adapter_and_not_one_bit_of_the_model(checkpointing):
    loaded = student("tiny-mixtral", targets="all")
    logits(loaded)
    before = quantised(loaded.model)
    kept = {
        key: p.clone() for key, p in loaded.model.named_parameters() if not p.requires_grad and p.is_floating_point()
    }
    record = finetune.tune(loaded, TWO, steps=3, batch_size=2, checkpointing=checkpointing)
    assert record.steps == 3
    assert record.losses[-1] < record.losses[0]
    assert record.trainable_parameters == finetune.trainable_parameters(loaded.config, rank=2, targets="all")
    assert same(quantised(loaded.model), before)
    after = dict(loaded.model.named_parameters())
    assert all(torch.equal(after[key], value) for key, value in kept.items())
    changed = [layer.lora_B["default"].weight.abs().max() > 0 for layer in finetune.adapted(loaded.model).values()]
    assert sum(changed) > len(changed) / 2  # an expert that no token chose learns nothing
    assert not loaded.model.training
    assert loaded.model.config.use_cache


def test_training_with_the_same_seed_is_the_same_with_checkpointing_or_without():
    results = []
    for checkpointing in (False, True, False):
        loaded = student(dtype="float32")
        record = finetune.tune(loaded, letters(TRAIN, 8), steps=4, batch_size=4, checkpointing=checkpointing)
        results.append((record.losses, weights_of(loaded)))
    assert results[0][0] == results[2][0]
    assert same(results[0][1], results[2][1])
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-4)  # the same arithmetic, done twice


def stopped_run(folder, monkeypatch, *, examples, steps, **adapter):
    """A run that is stopped at its fourth batch, with checkpoints every two steps."""
    monkeypatch.setattr(finetune.tuning, "CHECKPOINT_STEPS", 2)
    batches, collate = [], finetune.tuning.collate

    def collate_three(rows, **settings):
        batches.append(rows)
        if len(batches) == 4:
            raise KeyboardInterrupt
        return collate(rows, **settings)

    loaded = student(**adapter)
    monkeypatch.setattr(finetune.tuning, "collate", collate_three)
    with pytest.raises(KeyboardInterrupt):
        finetune.tune(loaded, examples, steps=steps, batch_size=4, checkpoints=folder)
    monkeypatch.setattr(finetune.tuning, "collate", collate)


@pytest.mark.parametrize(("name", "targets"), [("tiny-mistral", "attention"), ("tiny-mixtral", "all")])
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, name, targets):
    examples, asked = letters(TRAIN, 10), {"name": name, "targets": targets}
    whole = student(**asked)
    uninterrupted = finetune.tune(whole, examples, steps=5, batch_size=4)
    stopped_run(tmp_path, monkeypatch, examples=examples, steps=5, **asked)
    halfway = tmp_path / "checkpoint-4"  # as if the power had gone while it was written
    halfway.mkdir()
    (halfway / "trainer_state.json").write_text('{"global_step": 4', encoding="utf-8")
    resumed = student(**asked)
    record = finetune.tune(resumed, examples, steps=5, batch_size=4, checkpoints=tmp_path)
    assert record.losses == uninterrupted.losses
    assert record.optimiser_bytes == uninterrupted.optimiser_bytes
    assert same(weights_of(resumed), weights_of(whole))
    again = finetune.load_adapter(load(name, bits=4), tmp_path / "checkpoint-5")
    assert torch.equal(logits(again), logits(whole))
    with pytest.raises(FileExistsError, match=r"this run is complete: load_adapter\(\.\.\., '.*checkpoint-5'\)"):
        finetune.tune(student(**asked), examples, steps=5, batch_size=4, checkpoints=tmp_path)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Checkpoints of a run that was stopped; whoever is refused leaves them as they are."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        stopped_run(folder, patch, examples=letters(TRAIN, 10), steps=5)
    return folder


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"steps": 6}, "steps was 5, now it is 6"),
        ({"learning_rate": 0.1}, "learning_rate was 0.01, now it is 0.1"),
        ({"seed": 1}, "seed was 0, now it is 1"),
        ({"dtype": "float32"}, "dtype was bfloat16, now it is float32"),
        ({"examples": TWO}, "examples was "),
    ],
)
def test_checkpoints_of_another_run_are_refused_and_kept(stopped, changed, said):
    kept = sorted(stopped.rglob("*"))
    asked = {"examples": letters(TRAIN, 10), "steps": 5, "batch_size": 4} | changed
    loaded = student(dtype=asked.pop("dtype", None))
    with pytest.raises(FileExistsError, match=rf"another run: {said}.*; give another folder"):
        finetune.tune(loaded, asked.pop("examples"), checkpoints=stopped, **asked)
    assert sorted(stopped.rglob("*")) == kept


def test_checkpoints_of_another_rank_or_of_nobody_are_refused(tmp_path, monkeypatch):
    stopped_run(tmp_path, monkeypatch, examples=TWO * 5, steps=5)
    with pytest.raises(FileExistsError, match="another run: adapter was"):
        finetune.tune(student(rank=4), TWO * 5, steps=5, batch_size=4, checkpoints=tmp_path)
    (tmp_path / finetune.resuming.RUN).unlink()
    with pytest.raises(FileExistsError, match="unknown run: give another folder"):
        finetune.tune(student(), TWO * 5, steps=5, batch_size=4, checkpoints=tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_a_task_that_the_model_cannot_do_is_learnt(name):
    questions = letters(HELD_OUT, 60)
    loaded = student(name, rank=8)
    assert finetune.exact_match(loaded, questions).share < 0.1
    finetune.tune(loaded, letters(TRAIN, 480), steps=60, batch_size=8)
    assert finetune.exact_match(loaded, questions).share > 0.9


def test_exact_match_wants_the_whole_answer_and_its_end():
    loaded = load("tiny-mistral")
    prompt = f"My name is {GIVEN[0]} Bell."
    [text] = finetune.exact_match(loaded, [Example(prompt, "x x x x")]).texts
    assert text
    cut = finetune.exact_match(loaded, [Example(prompt, text)])  # the same text, but the model would go on
    assert cut.right.tolist() == [False]
    assert cut.share == 0


def test_answers_do_not_depend_on_the_batch():
    loaded = student(rank=8)
    finetune.tune(loaded, letters(TRAIN, 320), steps=20, batch_size=16)
    questions = [*letters(HELD_OUT, 3), Example("My name is Ida Kaur.", json.dumps({"customer": "Ida Kaur"}))]
    apart = [finetune.exact_match(loaded, [question]).texts[0] for question in questions]
    assert list(finetune.exact_match(loaded, questions, batch_size=3).texts) == apart


def test_a_short_prompt_is_answered_alike_beside_a_long_one():
    """Padded on the right, the short one would be asked to go on after the padding."""
    loaded = student(rank=8, dtype="float32")
    finetune.tune(loaded, letters(TRAIN, 320), steps=20, batch_size=16)
    questions = [Example("My name is Ida Kaur.", json.dumps({"customer": "Ida Kaur"})), *letters(HELD_OUT, 2)]
    lengths = {len(loaded.tokenizer(question.prompt).input_ids) for question in questions}
    assert max(lengths) > 2 * min(lengths)
    apart = [finetune.exact_match(loaded, [question]).texts[0] for question in questions]
    assert "Ida Kaur" in apart[0]
    assert list(finetune.exact_match(loaded, questions).texts) == apart


def test_training_is_adamw_without_decay_with_clipping_and_a_linear_rate(monkeypatch):
    """The loop by hand, on the batches that `tune` drew."""
    batches, collate = [], finetune.tuning.collate
    monkeypatch.setattr(
        finetune.tuning, "collate", lambda rows, **settings: batches.append(collate(rows, **settings)) or batches[-1]
    )
    found, expected = (student(dtype="float32", filled=True) for _ in range(2))
    record = finetune.tune(found, letters(TRAIN, 16), steps=4, batch_size=4, learning_rate=0.05)

    trained = [weight for weight in expected.model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=0.05, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (0, 1, 2 / 3, 1 / 3, 0)[step])
    losses, lengths = [], []
    expected.model.train()
    for batch in batches[:4]:
        loss = expected.model(**batch).loss
        loss.backward()
        lengths.append(torch.nn.utils.clip_grad_norm_(trained, 1.0).item())
        optimiser.step()
        rate.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert max(lengths) > 2  # clipping had something to do
    assert record.losses == pytest.approx(losses, rel=1e-4)
    wanted = weights_of(expected)
    for key, weight in weights_of(found).items():  # the same sums in float32, once divided by another count of tokens
        torch.testing.assert_close(weight, wanted[key], rtol=0, atol=2e-6, msg=key)


def test_another_seed_draws_another_order_and_the_random_state_is_put_back():
    torch.manual_seed(5)
    state, results = torch.get_rng_state(), []
    for seed in (0, 1):
        loaded = student()
        results.append(finetune.tune(loaded, letters(TRAIN, 16), steps=3, batch_size=4, seed=seed).losses)
        assert torch.equal(torch.get_rng_state(), state)
    assert results[0] != results[1]


def test_after_training_with_checkpointing_it_is_off():
    loaded = student()
    hooks = [len(module._forward_hooks) for module in loaded.model.modules()]
    finetune.tune(loaded, TWO, steps=2, batch_size=2, checkpointing=True)
    assert not loaded.model.is_activation_checkpointing
    assert [len(module._forward_hooks) for module in loaded.model.modules()] == hooks  # one has inputs need gradients


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"steps": 1}, ValueError, "steps is 1: expected at least 2, as the rate starts at 0"),
        ({"steps": 0}, ValueError, "steps is 0: expected at least 1"),
        ({"learning_rate": 0}, ValueError, "learning_rate is 0: expected a finite number above 0"),
        ({"learning_rate": -1e-3}, ValueError, "learning_rate is -0.001"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate is nan"),
        ({"learning_rate": float("inf")}, ValueError, "learning_rate is inf"),
        ({"learning_rate": "1e-2"}, TypeError, "learning_rate is '1e-2': expected a number above 0"),
        ({"learning_rate": True}, TypeError, "learning_rate is True"),
        ({"examples": TWO[:1]}, ValueError, "there is only one example: expected two or more"),
        ({"examples": []}, ValueError, "examples is 0: expected at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
    ],
)
def test_what_trains_nothing_is_one_sentence(settings, kind, message, tmp_path):
    asked = {"examples": TWO, "checkpoints": tmp_path / "run"} | settings
    with pytest.raises(kind, match=message):
        finetune.tune(student(), asked.pop("examples"), **asked)
    assert not (tmp_path / "run").exists()


def test_the_first_step_trains_nothing_and_the_second_does():
    """What the docstring says of the rate, and why one step is refused."""
    loaded = student(dtype="float32")
    losses = finetune.tune(loaded, TWO, steps=3, batch_size=2).losses
    assert losses[0] == losses[1] != losses[2]


class TrainerOfACard(transformers.Trainer):
    """The Trainer as it is on a card: on a CPU accelerate leaves out what a card has for float16."""

    made: ClassVar[list] = []

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        if self.accelerator.mixed_precision == "fp16":
            self.accelerator.native_amp, self.accelerator.scaler = True, torch.amp.GradScaler("cpu")
        self.made.append(self)


def tuned_as_on_a_card(monkeypatch, dtype, **settings):
    """The trained model, the losses, and the scale of each step's loss (none where nothing scales)."""
    monkeypatch.setattr(finetune.tuning, "Trainer", TrainerOfACard)
    loaded = student(dtype=dtype)
    losses = finetune.tune(loaded, TWO, batch_size=2, **settings).losses
    return loaded, losses, TrainerOfACard.made.pop().accelerator.scaler


def test_float16_is_trained_with_a_scaled_loss_and_a_float32_adapter(monkeypatch):
    expected, losses, nothing = tuned_as_on_a_card(monkeypatch, "float32", steps=4)
    loaded, found, scaler = tuned_as_on_a_card(monkeypatch, "float16", steps=4)
    assert nothing is None
    assert scaler.get_scale() == 2**16  # where it starts: no gradient was beyond float16's range
    assert {weight.dtype for weight in loaded.model.parameters() if weight.requires_grad} == {torch.float32}
    # float16 rounds by 5e-4 in every operation; a step that was left out would change the loss by a tenth
    assert found == pytest.approx(losses, rel=5e-3)
    assert found[-1] < 0.9 * found[0]


def test_a_step_beyond_float16_is_left_out_and_the_scale_falls(monkeypatch):
    backward, scales = torch.amp.GradScaler.scale, []

    def scale_too_far(self, loss):
        scales.append(self.get_scale())
        return backward(self, loss) * (torch.inf if len(scales) == 2 else 1)

    monkeypatch.setattr(torch.amp.GradScaler, "scale", scale_too_far)
    loaded, _, _ = tuned_as_on_a_card(monkeypatch, "float16", steps=4)
    assert scales == [2**16, 2**16, 2**15, 2**15]
    assert all(weight.isfinite().all() for weight in weights_of(loaded).values())


def test_after_float16_the_model_computes_as_before(monkeypatch):
    monkeypatch.setattr(finetune.tuning, "Trainer", TrainerOfACard)
    loaded = student(dtype="float16", filled=True)
    before = logits(loaded)
    monkeypatch.setattr(TrainerOfACard, "training_step", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finetune.tune(loaded, TWO, steps=2, batch_size=2)
    TrainerOfACard.made.clear()
    after = logits(loaded)
    assert after.dtype == torch.float16
    assert torch.equal(after, before)


def test_why_the_loss_is_scaled():
    """The gradients of a mean over a million tokens: in float16 most of what they say becomes 0."""
    loaded = student(dtype="float16")
    rows = [finetune.tokenise(loaded.tokenizer, example, max_tokens=100) for example in TWO]
    batch = finetune.collate(rows, pad_token_id=2)

    def gradients(tokens, scale):
        loaded.model.zero_grad()
        (scale * loaded.model(**batch, num_items_in_batch=tokens).loss).backward()
        trained = [weight.grad for weight in loaded.model.parameters() if weight.requires_grad]
        return torch.cat([tokens / scale * gradient.flatten() for gradient in trained])

    expected = gradients(20, 1)
    lost, kept = (((gradients(2**20, scale) - expected).norm() / expected.norm()).item() for scale in (1, 2**16))
    assert lost > 0.3
    assert kept < 5e-3  # float16 rounds by 5e-4, in each of some matrices
