"""Weights are those of the checkpoint, fitting or refused, and the model computes with those it has now."""

import copy
import json
import pickle
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_decoders import (
    CLOSE,
    FUSED,
    IN_SHARDS,
    KINDS,
    MIXTURE,
    SMALL,
    logits_of,
    one_line,
    one_thread,  # noqa: F401 - for all tests of this file
    pair,
    prompt,
    random_model,
)
from transformers import AutoModelForCausalLM, MixtralConfig

from mistral_lab.checkpoints import BUNDLED
from mistral_lab.config import PRESETS, ModelConfig
from mistral_lab.memory import parameter_counts
from mistral_lab.transformer import Transformer
from mistral_lab.transformer.weights import checkpoint_name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A windowed dense checkpoint; tests that change it copy it first."""
    path = tmp_path_factory.mktemp("window")
    pair(path, *KINDS["window"])
    return path


# Reading checkpoints.


def mapped_from(paths):
    """The addresses at which this process has mapped these files."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ranges = [line.split()[0].split("-") for line in lines if line.endswith(tuple(map(str, paths)))]
    return [range(int(start, 16), int(end, 16)) for start, end in ranges]


def are_views(tensors, files):
    """For each tensor, whether it lies in one of the files."""
    mapped = mapped_from(files)
    return [any(tensor.data_ptr() in addresses for addresses in mapped) for tensor in tensors]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("how", [{}, IN_SHARDS, FUSED, FUSED | IN_SHARDS], ids=["one", "shards", "fused", "both"])
def test_weights_are_views_of_their_files_unless_another_dtype_is_asked_for(tmp_path, how):
    theirs = random_model(MixtralConfig(**SMALL | MIXTURE)).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path, **how)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1 or "max_shard_size" not in how
    for dtype in (None, torch.bfloat16):
        model = Transformer.from_pretrained(tmp_path, dtype=dtype)  # kept while the mappings are read
        assert all(are_views(model.parameters(), files))
    converted = Transformer.from_pretrained(tmp_path, dtype=torch.float32)
    assert not any(are_views(converted.parameters(), files))
    assert {weight.dtype for weight in converted.parameters()} == {torch.float32}


def test_writing_to_a_weight_leaves_the_file_alone(tmp_path):
    model, _ = pair(tmp_path, *KINDS["window"])
    before = (tmp_path / "model.safetensors").read_bytes()
    model.embedding.weight.fill_(7)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_embeddings_are_tied_where_the_config_says_so(tmp_path):
    model, _ = pair(tmp_path, *KINDS["multi-query, tied"])
    assert model.output.weight is model.embedding.weight
    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = 2 * tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    # Stored all the same, it counts, as in transformers.
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(Transformer.from_pretrained(tmp_path)(prompt(5)), logits_of(theirs, prompt(5)), **CLOSE)
    torch.testing.assert_close(Transformer.from_pretrained(tmp_path)(prompt(5)), 2 * model(prompt(5)), **CLOSE)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_presets_are_built_of_the_tensors_of_their_checkpoints(preset):
    config = PRESETS[preset]
    with torch.device("meta"):
        model = Transformer(config)
    shapes = {checkpoint_name(name): tuple(weight.shape) for name, weight in model.state_dict().items()}
    assert len(shapes) == 3 + config.n_layers * (6 + (3 if config.num_experts is None else 1 + 3 * config.num_experts))
    assert sum(np.prod(shape) for shape in shapes.values()) == parameter_counts(config).total
    assert shapes["model.layers.31.self_attn.k_proj.weight"] == (config.n_kv_heads * config.head_dim, config.dim)
    last = "block_sparse_moe.experts.7.w2" if config.num_experts else "mlp.down_proj"
    assert shapes[f"model.layers.31.{last}.weight"] == (config.dim, config.hidden_dim)


def test_an_old_llama_checkpoint_with_its_frequencies_is_read(tmp_path):
    model, _ = pair(tmp_path, *KINDS["multi-head"])
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(Transformer.from_pretrained(tmp_path)(prompt(5)), model(prompt(5)))


# Weights that obey: whatever way they are changed, the new ones count.


@pytest.fixture(params=["window", "multi-query, tied", "mixture"])
def two(request, tmp_path):
    """A model, and the weights of another one of its kind: doubled, so that its logits are far away."""
    model, _ = pair(tmp_path, *KINDS[request.param])
    other = copy.deepcopy(model)
    for weight in other.parameters():
        weight.mul_(2 if weight.ndim == 1 else 1.5)
    return model, tied_as(model, other.state_dict()), other(prompt(5))


def tied_as(model, weights):
    """Weights by name, one tensor under both names where the model ties them."""
    tied = {"output.weight": weights["embedding.weight"]} if model.config.tied_embeddings else {}
    return dict(weights) | tied


# A copy may lie at another address, which PyTorch's kernels may add up in another order; the logits go to some 20.
COPIED = {"rtol": 1e-5, "atol": 1e-4}


def logits_with(model, weights):
    return torch.func.functional_call(model, weights, (prompt(5),))


def test_functional_call_computes_with_the_weights_that_it_is_given(two):
    model, weights, expected = two
    right = model(prompt(5))
    assert (expected - right).abs().max() > 1e-2
    assert torch.equal(logits_with(model, weights), expected)
    assert torch.equal(model(prompt(5)), right)  # and the model is as it was


def test_gradients_reach_the_weights_that_functional_call_is_given(two):
    model, weights, _ = two
    given = tied_as(model, {name: weight.clone().requires_grad_() for name, weight in weights.items()})
    logits_with(model, given).square().mean().backward()
    unused = [name for name, weight in given.items() if weight.grad is None or not weight.grad.any()]
    experts = [name for name in unused if ".experts." in name]
    assert unused == experts
    assert len(experts) < 3 * 5 * 3  # three matrices of five experts in three layers: some are not chosen
    assert all(weight.grad is None for weight in model.parameters())


def test_weights_moved_to_another_device_are_all_moved(two):
    """To the device of shapes alone, for want of another: nothing of the old weights may stay, nor be computed with."""
    model, weights, expected = two
    model.to("meta")
    reached = [value for part in model.modules() for value in vars(part).values() if isinstance(value, torch.Tensor)]
    assert reached == []
    assert all(weight.is_meta for layer in model.layers for weight in (layer.attention_norm, layer.attention.wq))
    with one_line("on cpu: expected meta, where the model is"):
        model(prompt(5))
    assert torch.equal(logits_with(model, weights), expected)
    model.to_empty(device="cpu").load_state_dict(weights)
    torch.testing.assert_close(model(prompt(5)), expected, **COPIED)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_in_another_dtype_compute_in_it(two, dtype):
    model, _, _ = two
    right = model(prompt(5))
    converted = copy.deepcopy(model).to(dtype)
    assert converted(prompt(5)).dtype == dtype
    # 16 bits keep 8 to 11 of them: logits of at most 4 move by 1e-2 with each of some ten roundings on the way.
    close = CLOSE if dtype == torch.float64 else {"rtol": 0, "atol": 0.2}
    torch.testing.assert_close(converted(prompt(5)).float(), right, **close)
    assert converted.generate(prompt(5), max_new_tokens=3).shape == (2, 8)
    assert torch.equal(model(prompt(5)), right)


def test_a_pickled_model_and_a_copy_have_weights_of_their_own(two):
    model, weights, expected = two
    right = model(prompt(5))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(prompt(5)), right, **COPIED)
        other.load_state_dict(weights, assign=True)
        assert torch.equal(other(prompt(5)), expected)
        assert torch.equal(model(prompt(5)), right)


def test_changed_weights_are_the_ones_that_count(tmp_path):
    """No way to change weights may leave an old one in use."""
    model, _ = pair(tmp_path, *KINDS["mixture"])
    right, twin = model(prompt(5)), copy.deepcopy(model)
    double = {name: 2 * weight for name, weight in model.state_dict().items()}
    for assign in (False, True):
        model.load_state_dict(double, assign=assign)
        expected = model(prompt(5))
        assert (expected - right).abs().max() > 1e-2
        model.load_state_dict(twin.state_dict(), assign=assign)
        torch.testing.assert_close(model(prompt(5)), right, **CLOSE)
    for name, weight in double.items():
        part, attribute = name.rsplit(".", 1) if "." in name else ("", name)
        setattr(twin.get_submodule(part), attribute, torch.nn.Parameter(weight))
    torch.testing.assert_close(twin(prompt(5)), expected, rtol=1e-4, atol=1e-4)  # logits of doubled weights are large
    torch.testing.assert_close(model(prompt(5)), right, **CLOSE)
    assert model.to(torch.bfloat16)(prompt(5)).dtype == torch.bfloat16
    torch.testing.assert_close(model.float()(prompt(5)), right, rtol=0, atol=0.1)
    model.layers[1] = torch.nn.Identity()
    with pytest.raises(TypeError):
        model(prompt(5))


def test_weights_that_are_plain_attributes_too_would_not_obey(two):
    """Broken on purpose: quicker to find, they are found first, and so the ones that count are not."""
    model, weights, expected = two
    for part in model.modules():
        vars(part).update([*part.named_children(), *part.named_parameters(recurse=False)])
    assert (logits_with(model, weights) - expected).abs().max() > 1e-2
    model.to("meta")
    assert not model.layers[0].attention.wq.is_meta


def test_two_threads_generate_with_one_model_what_each_would_alone(two):
    model, _, _ = two
    asked = [{"max_new_tokens": 40}, {"max_new_tokens": 40, "temperature": 1.0, "seed": 1}] * 2
    alone = [model.generate(prompt(6), **how) for how in asked]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda how: model.generate(prompt(6), **how), asked))
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


def test_a_generation_that_breaks_off_leaves_the_model_as_it_was(two):
    model, weights, expected = two
    right = model(prompt(5))

    def stop(tokens):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(prompt(5), max_new_tokens=3, on_token=stop)
    assert torch.equal(model(prompt(5)), right)
    assert torch.equal(logits_with(model, weights), expected)


# Checkpoints that do not fit: all that is wrong, in one line.


@pytest.fixture
def own(folder, tmp_path):
    """A copy of the checkpoint, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_all_tensors_that_do_not_fit_are_named_in_one_error(own):
    def spoil(tensors):
        del tensors["model.norm.weight"], tensors["model.layers.1.self_attn.q_proj.weight"]
        tensors["model.layers.3.self_attn.q_proj.weight"] = torch.ones(2)
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(2)
        tensors["lm_head.weight"] = torch.ones(61, 31)
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.ones(40, 32, 1)

    rewrite(own, spoil)
    with one_line("not the tensors that its config.json asks for", OSError) as refused:
        Transformer.from_pretrained(own)
    missing, surplus, misshapen = re.split("; ", str(refused.value))
    assert "2 missing: " in missing
    assert {"model.norm.weight", "model.layers.1.self_attn.q_proj.weight"} <= set(re.split("[ ,]+", missing))
    assert surplus.startswith("2 surplus: model.layers.")
    assert {"model.layers.3.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.bias"} <= set(
        re.split("[ ,]+", surplus)
    )
    assert "2 of another shape: " in misshapen
    assert "lm_head.weight (61, 31) for (61, 32)" in misshapen
    assert "model.layers.2.mlp.up_proj.weight (40, 32, 1) for (40, 32)" in misshapen


@pytest.mark.parametrize("wrong", ["an expert too few", "too narrow", "two dimensions"])
def test_fused_experts_that_do_not_fit_are_named(tmp_path, wrong):
    pair(tmp_path, *KINDS["mixture, fused"])
    name, expert = "model.layers.1.mlp.experts.down_proj", "model.layers.1.block_sparse_moe.experts.4.w2.weight"
    cut = {
        "an expert too few": (lambda down: down[:4], f"1 missing: {expert}"),
        "too narrow": (lambda down: down[:, :, :39], rf"5 of another shape: .*{expert} \(32, 39\) for \(32, 40\)"),
        "two dimensions": (lambda down: down[0], f"5 missing: .*{expert}; 1 surplus: {name}"),
    }[wrong]
    rewrite(tmp_path, lambda tensors: tensors.update({name: cut[0](tensors[name]).contiguous()}))
    with one_line(cut[1], OSError):
        Transformer.from_pretrained(tmp_path)


def test_another_mixture_than_the_config_says_is_refused(tmp_path):
    pair(tmp_path, *KINDS["mixture"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_local_experts": 4}))
    with one_line(
        r"9 surplus: .*experts.4.w1.weight.*; 3 of another shape: .*gate.weight \(5, 32\) for \(4, 32\)", OSError
    ):
        Transformer.from_pretrained(tmp_path)


def test_a_shard_that_is_gone_is_named(tmp_path):
    pair(tmp_path, *KINDS["shards"])
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with one_line(f"lacks {shard.name}, named by its index", FileNotFoundError):
        Transformer.from_pretrained(tmp_path)


def test_a_cut_file_and_an_absent_one_are_refused(own):
    weights = own / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with one_line("truncated or damaged", OSError):
        Transformer.from_pretrained(own)
    weights.unlink()
    with one_line("no model.safetensors in", FileNotFoundError):
        Transformer.from_pretrained(own)
    with one_line("no folder", FileNotFoundError):
        Transformer.from_pretrained(own / "nowhere")


def test_another_architecture_is_named_with_those_that_are_read(own):
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    with one_line("model_type is 'qwen2', expected one of mistral, mixtral, llama"):
        Transformer.from_pretrained(own)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn, "float32", 16])
def test_a_dtype_that_is_not_for_arithmetic_is_refused(folder, dtype):
    with one_line(f"dtype is {re.escape(repr(dtype))}: expected one of torch.float32, torch.bfloat16, torch.float16"):
        Transformer.from_pretrained(folder, dtype=dtype)


def test_a_checkpoint_in_eight_bits_is_refused(own):
    rewrite(own, lambda tensors: tensors.update({n: t.to(torch.float8_e4m3fn) for n, t in tensors.items()}))
    with one_line("dtype is torch.float8_e4m3fn: expected one of torch.float32"):
        Transformer.from_pretrained(own)
    assert Transformer.from_pretrained(own, dtype=torch.float32)(prompt(3)).isfinite().all()


@pytest.mark.parametrize("device", ["cuda:77", "mps:3", "gpu", "", 1.5])
def test_a_device_that_cannot_compute_is_refused(folder, device):
    with one_line(f"device is {re.escape(repr(str(device)))}: PyTorch cannot compute there"):
        Transformer.from_pretrained(folder, device=device)


def test_a_dtype_that_the_device_lacks_is_refused(folder, monkeypatch):
    """As bfloat16 on an old Mac: no device of CI lacks one of the three."""
    ones = torch.ones

    def refuse(*size, dtype=None, **how):
        if dtype == torch.bfloat16:
            raise TypeError("BFloat16 is not supported on MPS")
        return ones(*size, dtype=dtype, **how)

    monkeypatch.setattr(torch, "ones", refuse)
    with one_line("dtype is torch.bfloat16, which cpu cannot compute with: expected torch.float32, say"):
        Transformer.from_pretrained(folder, dtype=torch.bfloat16)


def test_a_bundled_name_is_read_as_its_folder_is():
    model = Transformer.from_pretrained("tiny-mixtral")
    assert model.config == ModelConfig.from_pretrained("tiny-mixtral")
    other = Transformer.from_pretrained(BUNDLED["tiny-mixtral"])
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
