"""The package's public functions with model and tensors on a device: the same answers, in the same place."""

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from mistral_lab import attention, cache, checks, experiments, explorers, finetune, load, masks, measure, moe, nf4
from mistral_lab.checkpoints import BUNDLED
from mistral_lab.training import evaluation
from mistral_lab.training.letters import letters
from mistral_lab.training.scribe import TRAIN
from mistral_lab.transformer import Transformer

# float32 sums of at most some hundred terms in another order; what is chosen, counted or copied is equal anyway.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
PROMPT = "My favourite condiment is"


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def experts(device):
    return moe.split_experts(numbers(4, 12, 8).to(device) / 3, numbers(4, 8, 6).to(device) / 3)


def appended(device):
    ring = cache.KVRing(3, 2, 4, device=device)
    for T in (2, 4, 1):
        handed_out = ring.append(*(numbers(1, T, 2, 4, seed=seed).to(device) for seed in (T, 9)))
    return handed_out, ring.slot_positions()


QKV = numbers(1, 70, 4, 8), numbers(1, 70, 2, 8, seed=1), numbers(1, 70, 2, 8, seed=2)
LOGITS = numbers(9, 4)
CHOSEN = torch.tensor([[0, 1], [1, 2], [0, 3], [0, 1]])
FUNCTIONS = {
    "rotate": lambda d: attention.rotate(QKV[0].to(d), torch.arange(70, device=d), theta=1e4),
    "grouped_query_attention": lambda d: attention.grouped_query_attention(
        *(x.to(d) for x in QKV), mask=masks.sliding_window_mask(70, 5).to(d)
    ),
    "windowed_attention": lambda d: attention.windowed_attention(*(x.to(d) for x in QKV), window=5),
    "position_mask": lambda d: masks.position_mask(torch.arange(3, device=d), torch.arange(5, device=d), window=2),
    "KVRing": appended,
    "route_top_k": lambda d: moe.route_top_k(LOGITS.to(d), num_experts_per_tok=2),
    "expert_forward": lambda d: moe.expert_forward(numbers(3, 8).to(d), experts(d)[1]),
    "sparse_experts": lambda d: moe.sparse_experts(
        numbers(9, 8).to(d), moe.route_top_k(LOGITS.to(d), num_experts_per_tok=2), experts(d)
    ),
    "expert_load": lambda d: moe.expert_load(CHOSEN.to(d), num_experts=4),
    "load_entropy": lambda d: moe.load_entropy(moe.expert_load(CHOSEN.to(d), num_experts=4)),
    "repeat_rate": lambda d: [moe.repeat_rate(CHOSEN.to(d), any_choice=flag) for flag in (False, True)],
    "co_activation": lambda d: moe.co_activation(CHOSEN.to(d), num_experts=4),
    "lru_hit_rate": lambda d: moe.lru_hit_rate(CHOSEN.to(d), kept=2),
    "load_balancing_loss": lambda d: moe.load_balancing_loss([LOGITS.to(d)] * 2, num_experts_per_tok=2),
    "nf4": lambda d: nf4.dequantize(nf4.quantize(numbers(5, 33).to(d), double=False)),
    "nf4, double": lambda d: nf4.dequantize(nf4.quantize(numbers(5, 33).to(d), double=True)),
    "nf4, packed": lambda d: (lambda q: (q.packed, q.absmax))(nf4.quantize(numbers(5, 33).to(d))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_tensors(name, device):
    found, expected = (tree_leaves(FUNCTIONS[name](place)) for place in (device, "cpu"))
    assert {leaf.device for leaf in found if isinstance(leaf, torch.Tensor)} <= {device}
    here, there = ([torch.as_tensor(leaf).cpu() for leaf in leaves] for leaves in (found, expected))
    torch.testing.assert_close(here, there, **CLOSE)


# Models that answer


@pytest.fixture(scope="module")
def beside():
    """The same models on the CPU."""
    return {name: load(name, device="cpu", dtype="float32") for name in BUNDLED}


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_generate_text(kind, request, beside, capsys):
    loaded = request.getfixturevalue(kind)
    settings = {"max_new_tokens": 16, "temperature": 0}
    assert loaded.generate_text(PROMPT, **settings) == beside[loaded.name].generate_text(PROMPT, **settings)
    state = torch.get_rng_state()
    drawn = [loaded.generate_text(PROMPT, max_new_tokens=16, seed=7, stream=True) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert capsys.readouterr().out == f"{drawn[0]}\n{drawn[0]}\n"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", BUNDLED)
def test_the_labs_transformer(name, device, beside):
    model = Transformer.from_pretrained(name, dtype=torch.float32, device=device)
    tokens = torch.arange(3, 90, device=device)[None]
    with torch.no_grad():
        logits, expected = model(tokens), beside[name].model(tokens.cpu()).logits
        torch.testing.assert_close(logits.cpu(), expected, rtol=0, atol=2e-4)  # through four layers
        held = model.new_cache()
        parts = torch.cat([model(part, held) for part in tokens.split(40, dim=1)], dim=1)
        torch.testing.assert_close(parts, logits, rtol=0, atol=2e-4)
    settings = {"max_new_tokens": 8, "temperature": 0.7, "top_p": 0.9, "eos_token_id": 2}
    state = torch.get_rng_state()
    drawn = [model.generate(tokens, seed=seed, **settings) for seed in (1, 1)]
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), state)
    padded = torch.cat([torch.zeros_like(tokens[:, :5]), tokens], dim=1)
    real = torch.arange(padded.shape[1], device=device)[None] >= 5
    greedy = model.generate(tokens, max_new_tokens=8)
    assert torch.equal(model.generate(padded, max_new_tokens=8, pad_mask=real)[:, 5:], greedy)


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_the_rolling_cache_in_generate(kind, request):
    loaded = request.getfixturevalue(kind)
    given = loaded.tokenizer(["Once upon a time", PROMPT], return_tensors="pt", padding=True).to(loaded.model.device)
    settings = {"max_new_tokens": 80, "do_sample": False, "pad_token_id": 2}
    held = cache.RollingCache(loaded.config)
    found = loaded.model.generate(**given, past_key_values=held, **settings)
    assert torch.equal(found, loaded.model.generate(**given, **settings))
    assert held.nbytes > 0


def test_capture_routing(mixture, device, beside):
    tokens = torch.arange(3, 60, device=device)[None]
    expected = moe.capture_routing(beside["tiny-mixtral"].model, tokens.cpu())
    ours = Transformer.from_pretrained("tiny-mixtral", dtype=torch.float32, device=device)
    for model in (mixture.model, ours):
        for here, there in zip(moe.capture_routing(model, tokens), expected, strict=True):
            assert here.indices.device == device
            assert torch.equal(here.indices.cpu(), there.indices)
            torch.testing.assert_close(here.weights.cpu(), there.weights, **CLOSE)


def test_measuring(mixture, device):
    measured = measure.measure_generation(mixture, prompt_tokens=8, new_tokens=2, repeats=1)
    assert measured.first_token_s > 0
    assert measured.machine.device not in ("", "cpu") or device.type == "cpu"
    x = torch.ones(64, 64, device=device)
    assert measure.time_callable(lambda: x @ x, repeats=2, device=device).median_s > 0
    assert measure.peak_bytes(lambda: x @ x, device) > 0


def test_evaluation(mixture, beside):
    there, tokenizer = beside["tiny-mixtral"].model, mixture.tokenizer
    documents = evaluation.held_out(tokenizer, 6)
    for here, expected in zip(*(evaluation.losses(m, documents) for m in (mixture.model, there)), strict=True):
        np.testing.assert_allclose(here, expected, rtol=1e-3, atol=1e-3)  # float32 through four layers
    found, expected = (evaluation.choices(model, documents) for model in (mixture.model, there))
    # Of some six thousand choices one may be so close that another order of adding decides it: two experts' counts.
    assert sum(np.abs(found[kind] - expected[kind]).sum() for kind in expected) <= 2
    assert evaluation.recall(mixture.model, tokenizer, documents) == evaluation.recall(there, tokenizer, documents)
    assert evaluation.right_sums(mixture.model, tokenizer, 3) == evaluation.right_sums(there, tokenizer, 3)


def test_explorers(mixture, device):
    tokens = mixture.tokenizer(PROMPT, return_tensors="pt").to(device).input_ids
    with torch.no_grad():
        logits = mixture.model(tokens).logits[0]
    made = [
        explorers.routed_text(mixture.model, mixture.tokenizer),
        explorers.next_token(logits[-1], mixture.tokenizer),
        explorers.guesses_by_layer([logits, logits], tokens[0].tolist(), mixture.tokenizer),
    ]
    assert all(isinstance(explorer, explorers.Explorer) for explorer in made)


def test_checks_of_answers_that_lie_there(device, capsys):
    def there(function):
        return lambda *arguments: tree_map(lambda x: x.to(device), function(*arguments))

    def back(w, block_size, codebook):  # by hand, because this check refuses calls of the package's own functions
        rows = []
        for block in w.flatten().split(block_size):
            absmax = block.abs().max()
            rows.append(absmax * codebook[(block[:, None] / absmax - codebook).abs().argmin(1)])
        return torch.cat(rows).reshape(w.shape)

    checks.round_trip(there(back))
    checks.merged_weight(there(lambda W, A, B, alpha: W + alpha / len(A) * B @ A))
    checks.window_mask(there(lambda queries, keys, window: masks.position_mask(queries, keys, window=window)))
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == ["passed"] * 3


# Training


def test_fewer_heads(dense, device, beside, monkeypatch):
    found = experiments.fewer_heads(dense, documents=2, steps=1)
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)  # which would decide before the model's own place does
    expected = experiments.fewer_heads(beside[dense.name], documents=2, steps=1)
    for name, interval in found.losses.items():  # float32 through four layers, and one step of training
        assert interval.mean == pytest.approx(expected.losses[name].mean, abs=1e-3)
    assert {weight.device for weight in dense.model.parameters()} == {device}


@pytest.mark.parametrize(("name", "targets"), [("tiny-mistral", "attention"), ("tiny-mixtral", "all")])
def test_finetuning(name, targets, device, tmp_path):
    examples = finetune.read_examples(letters(TRAIN, 8))
    loaded = finetune.add_adapter(load(name, bits=4, device=device), rank=2, targets=targets)
    before = {label: layer.lora_B["default"].weight.clone() for label, layer in finetune.adapted(loaded.model).items()}
    record = finetune.tune(loaded, examples, steps=3, batch_size=4, checkpointing=True)
    assert record.losses[-1] < record.losses[0]
    predicted = finetune.tuning_bytes(loaded.config, rank=2, targets=targets, batch=4, tokens=8)
    assert record.optimiser_bytes == predicted.optimiser
    assert {weight.device for weight in loaded.model.parameters()} == {device}
    after = finetune.adapted(loaded.model)
    changed = [not torch.equal(after[label].lora_B["default"].weight, weight) for label, weight in before.items()]
    assert any(changed) if targets == "all" else all(changed)  # of the experts, some may have seen no token
    answers = finetune.exact_match(loaded, examples[:3])
    assert finetune.measured_activation_bytes(loaded, batch=1, tokens=8) > 0

    finetune.save_adapter(loaded, tmp_path / "adapter")
    again = finetune.load_adapter(load(name, bits=4, device=device), tmp_path / "adapter")
    assert finetune.exact_match(again, examples[:3]).texts == answers.texts
    folder = finetune.export(loaded, tmp_path / "whole")
    assert load(folder, device=device).model.device == device
