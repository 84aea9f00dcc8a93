"""What lesson 1 measures: the bytes of a pass, tokens, passes and cut models, each timed by itself."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig
from work_clock import WorkClock

from mistral_lab import PRESETS, experiments, figures, measure, memory
from mistral_lab.config import ModelConfig
from mistral_lab.experiments import speed

MISTRAL = PRESETS["mistral-7b-v0.1"]


@pytest.fixture(scope="module")
def small():
    """A model of transformers with four layers, in float32, whose times mean nothing."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    config = MistralConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    model = AutoModelForCausalLM.from_config(config).eval()
    return SimpleNamespace(model=model, config=ModelConfig.from_transformers(config))


def test_a_pass_reads_all_but_the_other_rows_of_the_embedding():
    counts = memory.parameter_counts(MISTRAL)
    expected = 2 * (counts.total - counts.embedding + MISTRAL.dim)
    assert experiments.pass_bytes(MISTRAL, "bfloat16") == expected
    assert experiments.pass_bytes(MISTRAL, "float32") == 2 * expected
    tied = replace(MISTRAL, tied_embeddings=True)  # the output layer reads the whole embedding
    assert experiments.pass_bytes(tied, "bfloat16") == memory.weight_bytes(tied, "bfloat16")


def test_a_mixture_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"\Athe model has 8 experts, [^\n]+ dense one\Z"):
        experiments.pass_bytes(PRESETS["mixtral-8x7b-v0.1"], "bfloat16")


@pytest.mark.parametrize(("dtype", "quantised", "name"), [
    (torch.float32, None, "float32"),
    (torch.bfloat16, None, "bfloat16"),
    (torch.bfloat16, {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, "nf4-double"),
])  # fmt: skip
def test_the_form_in_which_weights_are_held_has_its_name(dtype, quantised, name):
    model = SimpleNamespace(dtype=dtype, config=SimpleNamespace(quantization_config=quantised))
    assert experiments.held_precision(SimpleNamespace(model=model)) == name


def test_tokens_are_timed_beside_the_speed_of_memory(small, monkeypatch):
    monkeypatch.setattr(speed, "measure_bandwidth", lambda device: 1e9)
    times = experiments.time_tokens(small, prompt_tokens=5, new_tokens=3, repeats=2)
    assert len(times.prompt.runs_s) == len(times.new.runs_s) == 2
    assert times.read_bytes == experiments.pass_bytes(small.config, "float32")
    assert times.read_parameters * 4 == times.read_bytes
    assert times.bits == 32  # float32
    assert "because 5 of them share one pass" in times.sentence
    assert f"A new token took {figures.milliseconds(times.new.median_s)}, a" in times.sentence  # as in the picture
    slow = replace(times, new=measure.Timing((0.1512,)), prompt=measure.Timing((0.0512,)))
    assert "A new token took 151 ms, a token of the prompt 51 ms," in slow.sentence
    assert times.least_s == pytest.approx((times.read_bytes / 5e9, times.read_bytes / 1e9), rel=1e-12)  # one quotient


def test_passes_have_two_floors_and_only_one_grows_with_the_tokens(small, monkeypatch):
    monkeypatch.setattr(speed, "measure_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(speed, "operations_per_s", lambda device, dtype: 1e9)
    passes = experiments.time_passes(small, tokens=(1, 6), rounds=3)
    assert passes.runs_s.shape == (3, 2)
    np.testing.assert_array_equal(passes.median_s, np.median(passes.runs_s, axis=0))
    counts = memory.parameter_counts(small.config)
    weights = counts.total - counts.embedding
    np.testing.assert_allclose(passes.compute_s, [2 * weights / 1e9, 12 * weights / 1e9], rtol=1e-12)  # one quotient
    assert passes.read_s == experiments.pass_bytes(small.config, "float32") / 1e9


def test_layers_that_the_model_lacks_are_refused(small):
    with pytest.raises(ValueError, match=r"layers is \(2, 9\): expected two or more counts from 1 to 4"):
        experiments.time_layers(small, layers=(2, 9))


def test_a_line_through_the_fastest_rounds_says_what_no_layer_costs():
    cut = speed.LayerTimes((1, 2, 4), np.ones((2, 3)), np.array([[5.0, 7.0, 99.0], [8.0, 7.0, 11.0]]))
    assert cut.line("token") == pytest.approx((3.0, 2.0), rel=1e-9)  # 5, 7, 11: a fit rounds a little


def test_each_speed_of_tokens_is_told_under_its_own_name(small, monkeypatch):
    monkeypatch.setattr(speed, "measure_bandwidth", lambda device: 1e9)
    asked = []

    def measure_generation(loaded, **counts):
        asked.append(counts)
        return SimpleNamespace(first_token=measure.Timing((5.0, 10.0)), per_token=measure.Timing((0.25, 0.5)))

    monkeypatch.setattr(speed, "measure_generation", measure_generation)
    times = experiments.time_tokens(small, prompt_tokens=5, new_tokens=3, repeats=2)
    assert asked == [{"prompt_tokens": 5, "new_tokens": 3, "repeats": 2}]
    assert times.prompt.runs_s == (1.0, 2.0)  # of the pass over the prompt, for each of its five tokens
    assert times.new.runs_s == (0.25, 0.5)


def test_a_pass_has_as_many_tokens_as_it_is_told_of(small, monkeypatch):
    clock = WorkClock()
    monkeypatch.setattr(speed, "time_in_turns", clock.time_in_turns)
    monkeypatch.setattr(speed, "measure_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(speed, "operations_per_s", lambda device, dtype: 1e9)
    watch = small.model.register_forward_pre_hook(lambda model, arguments: clock.add(arguments[0].numel()))
    try:
        passes = experiments.time_passes(small, tokens=(6, 1), rounds=3)
    finally:
        watch.remove()
    assert passes.runs_s.tolist() == [[6, 1]] * 3


def test_what_is_timed_has_the_first_layers_alone_and_one_token_after_the_prompt(small, monkeypatch):
    """Each layer takes a second, whichever it is; an uncut model would take four at both counts."""
    clock, seen = WorkClock(), []
    whole = list(small.model.model.layers)

    def timed_steps(model, prompt, chosen):
        seen.append((list(model.model.layers), tuple(prompt.shape), len(chosen)))
        return [SimpleNamespace(seconds=seconds * len(model.model.layers)) for seconds in (0.5, 20, 10)]

    def one_layer(layer, arguments, others):
        hidden, cache = arguments[0], others["past_key_values"]
        clock.add(1 if hidden.shape[1] == 1 and cache.get_seq_length() >= 4 else 1000)

    monkeypatch.setattr(speed, "timed_steps", timed_steps)
    monkeypatch.setattr(speed, "time_callable", clock.time_callable)
    watches = [layer.register_forward_pre_hook(one_layer, with_kwargs=True) for layer in whole]
    try:
        cut = experiments.time_layers(small, layers=(3, 1), prompt_tokens=4, new_tokens=3, rounds=2)
    finally:
        for watch in watches:
            watch.remove()
    assert cut.layers == (3, 1)
    assert cut.pass_s.tolist() == [[3, 1]] * 2
    assert cut.token_s.tolist() == [[30, 10]] * 2  # the fastest new token; the first step reads the prompt
    assert all(layers == whole[: len(layers)] for layers, _, _ in seen)
    assert {(shape, new) for _, shape, new in seen} == {((1, 4), 3)}
    assert list(small.model.model.layers) == whole
