"""Fine-tuning: examples checked, the loss where it belongs, adapters where they should be, bytes, and own files."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from transformers import AutoModelForCausalLM

from mistral_lab import finetune, load
from mistral_lab.finetune import Example
from mistral_lab.four_bit import ExactLinear4bit
from mistral_lab.training.scribe import GIVEN, HELD_OUT, TRAIN, Scribe

TOKENS = torch.arange(3, 60)[None]
TWO = [Example("Who is it?", "Ida Kaur"), Example("My name is Otto Bell.", "Otto Bell")]
MODELS = ("tiny-mistral", "tiny-mixtral")


def letters(split, count):
    """Two people a letter; the record names the one who writes. Held-out names never stood together in training."""
    scribe, examples = Scribe(f"letters/{split}", split), []
    for _ in range(count):
        writer, other = scribe.name(), scribe.name()
        sentences = [f"My name is {writer}.", f"On the door stood the name {other}.", "My favourite season is spring."]
        scribe.random.shuffle(sentences)
        examples.append(Example(" ".join(sentences), json.dumps({"customer": writer})))
    return examples


def student(name="tiny-mistral", *, rank=2, targets="attention", dtype=None, filled=False):
    """A model with an adapter; `filled` gives B values, so that the adapter changes something."""
    loaded = finetune.add_adapter(load(name, bits=4, dtype=dtype), rank=rank, targets=targets)
    if filled:
        torch.manual_seed(1)
        for layer in finetune.adapted(loaded.model).values():
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.02)
    return loaded


@torch.no_grad()
def logits(loaded):
    return loaded.model(TOKENS).logits


def quantised(model):
    """Codes and scales of every four-bit matrix, as they are saved."""
    return {
        f"{name}.{key}": tensor.clone()
        for name, module in model.named_modules()
        if isinstance(module, ExactLinear4bit)
        for key, tensor in module.state_dict().items()
    }


def weights_of(loaded):
    return peft.get_peft_model_state_dict(loaded.model, save_embedding_layers=False)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Examples


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
        finetune.tune(loaded, [TWO[0], long], steps=1)
    with pytest.raises(ValueError, match="the example 'a': the prompt takes"):
        finetune.tune(loaded, [replace(long, line=0)], steps=1)


# Adapters


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_every_matrix_that_should_have_an_adapter_has_one_and_the_router_has_none(name, targets):
    loaded = student(name, targets=targets)
    config = loaded.config
    a_layer = 4 + (3 * (config.num_experts or 1) if targets == "all" else 0)
    names = list(finetune.adapted(loaded.model))
    assert len(names) == config.n_layers * a_layer
    assert len({name.partition(".self_attn.")[0].partition(".mlp.")[0] for name in names}) == config.n_layers
    trained = [key for key, parameter in loaded.model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(names)
    assert all(".lora_A." in key or ".lora_B." in key for key in trained)
    count = sum(parameter.numel() for parameter in loaded.model.parameters() if parameter.requires_grad)
    assert count == finetune.trainable_parameters(config, rank=2, targets=targets)


@pytest.mark.parametrize("name", MODELS)
def test_a_new_adapter_changes_nothing(name):
    before = logits(load(name, bits=4))
    assert torch.equal(logits(student(name, targets="all")), before)


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_adds_what_its_equation_says(name):
    loaded = student(name, targets="all", filled=True, dtype="float32")
    for layer in finetune.adapted(loaded.model).values():
        x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
        base, A, B = layer.base_layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight
        W = dequantize_4bit(base.weight.data, base.weight.quant_state).double().numpy()
        x64 = x.double().numpy()
        expected = x64 @ W.T + 4 / 2 * (x64 @ A.detach().double().numpy().T) @ B.detach().double().numpy().T
        # float32 sums of at most 384 products
        np.testing.assert_allclose(layer.train()(x).detach().numpy(), expected, rtol=0, atol=1e-4)


def test_the_same_seed_gives_the_same_adapter_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (weights_of(student()) for _ in range(2))
    assert same(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_targets_and_ranks_are_one_sentence():
    loaded = load("tiny-mistral", bits=4)
    with pytest.raises(
        ValueError, match="no matrix that can be adapted is called 'query': expected 'attention', 'all'"
    ):
        finetune.add_adapter(loaded, targets=["q_proj", "query"])
    with pytest.raises(ValueError, match="called 'gate'"):  # the router
        finetune.add_adapter(load("tiny-mixtral", bits=4), targets="gate")
    with pytest.raises(ValueError, match="targets is empty"):
        finetune.add_adapter(loaded, targets=[])
    with pytest.raises(ValueError, match="rank is 0"):
        finetune.add_adapter(loaded, rank=0)
    with pytest.raises(NotImplementedError, match="experts of tiny-mixtral are fused, so there is no w1"):
        finetune.add_adapter(load("tiny-mixtral"), targets="all")
    with pytest.raises(ValueError, match="tiny-mistral has no adapter"):
        finetune.tune(loaded, TWO)
    adapted = finetune.add_adapter(loaded)
    with pytest.raises(ValueError, match="tiny-mistral has an adapter already"):
        finetune.add_adapter(adapted)


def test_peft_left_to_itself_passes_over_the_experts():
    """The reason for hiding the architecture; where this fails, PEFT has changed and the detour can go."""
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "w1", "w2", "w3"], task_type="CAUSAL_LM")
    with pytest.warns(RuntimeWarning, match="no parameter was matched"):
        model = peft.get_peft_model(load("tiny-mixtral", bits=4).model, settings)
    assert not [name for name in finetune.adapted(model) if ".experts." in name]


# Training


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
    (halfway / finetune.resuming.STATE).write_text('{"global_step": 4', encoding="utf-8")
    resumed = student(**asked)
    record = finetune.tune(resumed, examples, steps=5, batch_size=4, checkpoints=tmp_path)
    assert record.losses == uninterrupted.losses
    assert record.optimiser_bytes == uninterrupted.optimiser_bytes
    assert same(weights_of(resumed), weights_of(whole))
    again = finetune.load_adapter(load(name, bits=4), tmp_path / "checkpoint-5")
    assert torch.equal(logits(again), logits(whole))
    with pytest.raises(FileExistsError, match=r"this run is complete: load_adapter\(\.\.\., '.*checkpoint-5'\)"):
        finetune.tune(student(**asked), examples, steps=5, batch_size=4, checkpoints=tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"steps": 6}, "steps was 5, now it is 6"),
        ({"learning_rate": 0.1}, "learning_rate was 0.01, now it is 0.1"),
        ({"seed": 1}, "seed was 0, now it is 1"),
        ({"examples": TWO}, "examples was "),
    ],
)
def test_checkpoints_of_another_run_are_refused_and_kept(tmp_path, monkeypatch, changed, said):
    examples = letters(TRAIN, 10)
    stopped_run(tmp_path, monkeypatch, examples=examples, steps=5)
    kept = sorted(tmp_path.rglob("*"))
    asked = {"examples": examples, "steps": 5, "batch_size": 4} | changed
    with pytest.raises(FileExistsError, match=rf"another run: {said}.*; give another folder"):
        finetune.tune(student(), asked.pop("examples"), checkpoints=tmp_path, **asked)
    assert sorted(tmp_path.rglob("*")) == kept


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
    finetune.tune(loaded, letters(TRAIN, 960), steps=60, batch_size=16)
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


# Bytes


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "targets"), [(m, t) for m in MODELS for t in ("attention", "all", ("q_proj",))])
def test_bytes_are_as_predicted(name, targets, checkpointing):
    loaded = student(name, rank=3, targets=targets)
    predicted = finetune.tuning_bytes(
        loaded.config, rank=3, targets=targets, batch=3, tokens=40, checkpointing=checkpointing
    )
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    found = finetune.measured_activation_bytes(loaded, batch=3, tokens=40, checkpointing=checkpointing)
    assert found == predicted.activations
    assert sum(p.nbytes for p in trained) == predicted.adapter == predicted.gradients
    record = finetune.tune(loaded, TWO, steps=1, batch_size=2)
    if targets == "all" and loaded.config.num_experts:  # AdamW makes no state for experts that no token chose
        assert predicted.optimiser / 2 < record.optimiser_bytes <= predicted.optimiser
    else:
        assert record.optimiser_bytes == predicted.optimiser
    assert predicted.total == 2 * predicted.adapter + predicted.optimiser + predicted.activations


def test_parameters_of_an_adapter_on_mistral_7b_by_hand():
    from mistral_lab.config import PRESETS

    a_layer = 2 * (4096 + 4096) + 2 * (4096 + 1024)
    assert finetune.trainable_parameters(PRESETS["mistral-7b-v0.1"], rank=16) == 32 * 16 * a_layer
    experts = 3 * 8 * (4096 + 14_336)
    assert finetune.trainable_parameters(PRESETS["mixtral-8x7b-v0.1"], rank=1, targets="all") == 32 * (
        a_layer + experts
    )


# Own


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_comes_back_in_a_fresh_process(name, tmp_path):
    loaded = student(name, targets="all", filled=True)
    nbytes = finetune.save_adapter(loaded, tmp_path / "adapter")
    assert nbytes > 4 * finetune.trainable_parameters(loaded.config, rank=2, targets="all")
    assert str(tmp_path) not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    torch.save(logits(loaded), tmp_path / "logits.pt")
    code = (
        "import sys, torch\n"
        "from mistral_lab import finetune, load\n"
        "name, folder = sys.argv[1:]\n"
        "loaded = finetune.load_adapter(load(name, bits=4), folder + '/adapter')\n"
        "with torch.no_grad(): found = loaded.model(torch.arange(3, 60)[None]).logits\n"
        "print('equal:', torch.equal(found, torch.load(folder + '/logits.pt')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "equal: True\n", done.stderr


def test_an_adapter_for_another_model_is_refused(tmp_path):
    finetune.save_adapter(student("tiny-mistral", targets="all"), tmp_path)
    settings = tmp_path / "adapter_config.json"
    with pytest.raises(ValueError, match="was trained for tiny-mistral, and this is tiny-mixtral"):
        finetune.load_adapter(load("tiny-mixtral", bits=4), tmp_path)
    settings.write_text(settings.read_text().replace("tiny-mistral", "tiny-mixtral"))
    with pytest.raises(ValueError, match="no matrix that can be adapted is called 'down_proj'"):
        finetune.load_adapter(load("tiny-mixtral", bits=4), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config\.json"):
        finetune.load_adapter(load("tiny-mixtral", bits=4), tmp_path / "nothing")


def test_an_adapter_of_another_shape_is_refused(tmp_path):
    loaded = load("tiny-mistral", bits=4)
    finetune.save_adapter(student(), tmp_path)
    narrow = ExactLinear4bit(128, 64, compute_dtype=torch.bfloat16, double=True)
    loaded.model.model.layers[1].self_attn.k_proj = narrow
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.k_proj has 128 outputs, here it has 64"):
        finetune.load_adapter(loaded, tmp_path)
    loaded.model.model.layers = loaded.model.model.layers[:1]
    with pytest.raises(ValueError, match=r"is for another model: there is no model\.layers\.1\."):
        finetune.load_adapter(loaded, tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_exported_is_the_dequantised_weight_and_its_adapter(name, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune.own, "SHARD_BYTES", 2**20)  # several shards
    loaded = student(name, targets="all", filled=True)
    before = logits(loaded)
    folder = finetune.export(loaded, tmp_path / "mine")
    assert torch.equal(logits(loaded), before)
    assert len(list(folder.glob("*.safetensors"))) > 1
    plain, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    assert plain.num_parameters() == load(name).model.num_parameters()
    for path, layer in finetune.adapted(loaded.model).items():
        base, A, B = layer.base_layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight
        base.unpack()
        W = dequantize_4bit(base.weight.data, base.weight.quant_state).double().numpy()
        expected = W + 4 / 2 * B.detach().double().numpy() @ A.detach().double().numpy()
        found = matrix(plain, path).double().numpy()
        # bfloat16 keeps 8 bits: half a step is at most 2^-8 of the value; a float32 sum may sit on the other side
        np.testing.assert_allclose(found, expected, rtol=2.0**-8 * 1.01, atol=1e-7, err_msg=path)
    assert str(tmp_path) not in "".join(file.read_text() for file in folder.glob("*.json"))
    assert f"changed version of {name}" in (folder / "CHANGES.md").read_text()


def matrix(plain, path):
    """The matrix of transformers' own model that has this name in the lab's."""
    if ".experts." not in path:
        return plain.get_submodule(path).weight.detach()
    block, _, rest = path.partition(".experts.")
    number, name = rest.split(".")
    experts = plain.get_submodule(f"{block}.experts")
    tensor = (experts.down_proj if name == "w2" else experts.gate_up_proj)[int(number)].detach()
    half = len(tensor) // 2
    return {"w1": tensor[:half], "w2": tensor, "w3": tensor[half:]}[name]


def test_what_is_exported_answers_like_the_tuned_model(tmp_path):
    loaded = student(rank=8)
    finetune.tune(loaded, letters(TRAIN, 640), steps=40, batch_size=16)
    questions = letters(HELD_OUT, 60)
    plain = AutoModelForCausalLM.from_pretrained(finetune.export(loaded, tmp_path / "mine")).eval()
    assert finetune.exact_match(replace(loaded, model=plain), questions).share > 0.9


def test_export_refuses_what_it_would_spoil(tmp_path):
    loaded = student()
    with pytest.raises(FileExistsError, match="exists: choose another name"):
        finetune.export(loaded, tmp_path)
    with pytest.raises(ValueError, match="tiny-mistral has no adapter"):
        finetune.export(load("tiny-mistral", bits=4), tmp_path / "mine")
    wide = finetune.add_adapter(load("tiny-mistral"), rank=2)
    with pytest.raises(ValueError, match="is not in four bits"):
        finetune.export(wide, tmp_path / "mine")
    monkey = finetune.own.save_file
    try:
        finetune.own.save_file = lambda *arguments: (_ for _ in ()).throw(OSError("no space"))
        with pytest.raises(OSError, match="no space"):
            finetune.export(loaded, tmp_path / "mine")
    finally:
        finetune.own.save_file = monkey
    assert list(tmp_path.iterdir()) == []


def test_licence_files_of_the_origin_come_along(tmp_path):
    loaded = student()
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "LICENSE").write_text("Apache")
    loaded.model.config.name_or_path = str(origin)
    assert (finetune.export(loaded, tmp_path / "mine") / "LICENSE").read_text() == "Apache"
