"""`load` for every form in which these models lie on the hub; each form is written here from a bundled model."""

import gc
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import psutil
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear8bitLt
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from mistral_lab.checkpoints import ALIASES, BUNDLED, Source
from mistral_lab.config import PRESETS, ModelConfig, read_config
from mistral_lab.files import weight_files
from mistral_lab.four_bit import ExactLinear4bit, audit, quantized_folder
from mistral_lab.loading import forms, load, loader, placement, quantising
from mistral_lab.loading.forms import COPIES, bytes_in_files, quantised_precision
from mistral_lab.memory import weight_bytes, weight_parts

GIB = 2**30
TOKENS = torch.arange(3, 43)[None]
MATRIX = r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|experts\.\d+\.w[123])\.weight$"
# Before transformers 5 a router was a matrix like others, and bitsandbytes quantised it.
OLD = rf"({MATRIX}|block_sparse_moe\.gate\.weight$)"
WITH_OUTPUT = rf"({OLD}|lm_head\.weight$)"
ATTENTION = r"self_attn\.[qkvo]_proj\.weight$"


def write(folder: Path, name: str, tensors: dict, entry: dict | None, *, files: int = 1, **fields) -> Path:
    """A checkpoint with the config and tokenizer of a bundled model."""
    folder.mkdir(parents=True)
    names = sorted(tensors)
    shards = {f"model-{i + 1:05d}-of-{files:05d}.safetensors": names[i::files] for i in range(files)}
    if files == 1:
        shards = {"model.safetensors": names}
    else:
        where = {key: shard for shard, keys in shards.items() for key in keys}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    for shard, keys in shards.items():
        save_file({key: tensors[key].contiguous() for key in keys}, folder / shard, metadata={"format": "pt"})
    write_config(folder, name, entry, **fields)
    for file in BUNDLED[name].glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def write_config(folder: Path, name: str, entry: dict | None, **fields) -> None:
    config = json.loads((BUNDLED[name] / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config | ({"quantization_config": entry} if entry else {})))


def bundled(name: str) -> dict[str, torch.Tensor]:
    # In float32, so that a matrix that is quantised and written out again is not rounded once more.
    return {key: tensor.float() for key, tensor in load_file(BUNDLED[name] / "model.safetensors").items()}


def in_four_bits(name: str, kind: str, double: bool, storage: torch.dtype, matrices: str):
    """What bitsandbytes writes of a model, the entry in its config, and the same model written out."""
    parts, plain = {}, {}
    for key, tensor in bundled(name).items():
        if not re.search(matrices, key):
            parts[key] = plain[key] = tensor
            continue
        codes, state = quantize_4bit(tensor, quant_type=kind, compress_statistics=double, quant_storage=storage)
        parts |= {key: codes} | {f"{key}.{part}": value for part, value in state.as_dict(packed=True).items()}
        plain[key] = dequantize_4bit(codes, state)
    entry = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_quant_storage": str(storage).removeprefix("torch."),
        "bnb_4bit_compute_dtype": "float16",
        "llm_int8_skip_modules": None,
    }
    return parts, entry, plain


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS).logits


def exact_logits(model) -> torch.Tensor:
    """Logits by way of the training path, in which a matrix is written out and multiplied in the model's dtype."""
    found = logits(model.train())
    model.eval()
    return found


@pytest.fixture(scope="module")
def whole():
    """The bundled models as they are, in float32."""
    return {name: logits(load(name, dtype="float32").model) for name in BUNDLED}


def refused(kind, *parts, name, **options) -> str:
    with pytest.raises(kind) as caught:
        load(name, **options)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    assert all(part in message for part in parts), message
    return message


# Read


@pytest.mark.parametrize("name", BUNDLED)
def test_16_bits_in_shards(name, tmp_path, whole):
    folder = write(tmp_path / "sharded", name, bundled(name), None, files=3)
    assert torch.equal(logits(load(folder).model), whole[name])


@pytest.mark.parametrize(
    ("kind", "double", "storage", "matrices", "files"),
    [
        ("nf4", False, torch.uint8, OLD, 1),
        ("nf4", True, torch.uint8, OLD, 2),
        ("nf4", True, torch.bfloat16, MATRIX, 1),
        ("nf4", False, torch.float16, WITH_OUTPUT, 1),
        ("fp4", True, torch.float32, OLD, 1),
        ("nf4", True, torch.uint8, ATTENTION, 1),  # what transformers 5 makes of a mixture: its experts stay wide
    ],
)
@pytest.mark.parametrize("name", BUNDLED)
def test_four_bits_of_bitsandbytes_are_read_as_the_files_hold_them(
    name, kind, double, storage, matrices, files, tmp_path
):
    tensors, entry, plain = in_four_bits(name, kind, double, storage, matrices)
    folder = write(tmp_path / "four", name, tensors, entry, files=files)
    model = load(folder, dtype="float32").model
    reference = load(write(tmp_path / "plain", name, plain, None), dtype="float32").model
    # Both multiply in float32 and differ in the order of sums; logits reach 20.
    torch.testing.assert_close(exact_logits(model), logits(reference), rtol=0, atol=2e-3)
    held = {key for key in plain if f"{key}.quant_map" in tensors and "block_sparse_moe.gate" not in key}
    linears = [module for module in model.modules() if isinstance(module, ExactLinear4bit)]
    assert len(linears) == len(held)
    assert {linear.weight.quant_state.quant_type for linear in linears} == {kind}
    assert {linear.weight.quant_state.nested for linear in linears} == {double}
    assert model.model.embed_tokens.weight.dtype == model.dtype == torch.float32


@pytest.mark.parametrize("name", BUNDLED)
def test_a_quantised_checkpoint_is_computed_with_as_four_bits_are_and_can_be_saved(name, tmp_path):
    tensors, entry, _ = in_four_bits(name, "nf4", False, torch.bfloat16, OLD)
    first = load(write(tmp_path / "four", name, tensors, entry), bits=4)
    linears = [module for module in first.model.modules() if isinstance(module, ExactLinear4bit)]
    assert {linear.compute_dtype for linear in linears} == {torch.bfloat16}  # not the float16 of the config
    assert audit(first.model).passed
    first.generate_text("a", max_new_tokens=2, seed=0)  # packs the matrices
    first.model.save_pretrained(tmp_path / "again")
    first.tokenizer.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", bits=4)
    assert torch.equal(exact_logits(again.model), exact_logits(first.model))


def test_what_todays_libraries_write_of_a_mixture_is_read_and_is_not_four_bits(tmp_path):
    theirs = AutoModelForCausalLM.from_pretrained(
        BUNDLED["tiny-mixtral"],
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    )
    theirs.save_pretrained(tmp_path)
    for file in BUNDLED["tiny-mixtral"].glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    model = load(tmp_path, dtype="float32").model
    kept = theirs.model.layers[0].mlp.experts.gate_up_proj
    assert torch.equal(model.model.layers[0].mlp.experts.gate_up_proj, kept.float())
    assert isinstance(model.model.layers[0].self_attn.q_proj, ExactLinear4bit)
    refused(RuntimeError, "should be in 4: experts", "take the repository", name=tmp_path, bits=4)


def test_int8_of_a_dense_model(tmp_path):
    theirs = AutoModelForCausalLM.from_pretrained(
        BUNDLED["tiny-mistral"], dtype=torch.float16, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    theirs.save_pretrained(tmp_path)
    for file in BUNDLED["tiny-mistral"].glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    for bits in (None, 8):
        model = load(tmp_path, bits=bits).model
        assert isinstance(model.model.layers[0].mlp.up_proj, Linear8bitLt)
        assert torch.equal(logits(model), logits(theirs))
    refused(ValueError, "bits is 4", "is quantised already: expected 8, which it has", name=tmp_path, bits=4)


@pytest.mark.parametrize("name", BUNDLED)
def test_mistrals_own_format_beside_a_checkpoint_is_not_looked_at(name, tmp_path, whole):
    folder = shutil.copytree(BUNDLED[name], tmp_path / "both")
    for file in ("consolidated.safetensors", "consolidated.00.pth", "params.json"):
        (folder / file).write_bytes(b"neither JSON nor tensors")
    assert torch.equal(logits(load(folder, dtype="float32").model), whole[name])


# Refused


@pytest.mark.parametrize(
    ("method", "kind", "reason"),
    [
        ("gptq", "GPTQ", "optimum"),
        ("awq", "AWQ", "gptqmodel"),
        ("compressed-tensors", "compressed-tensors", "pip install compressed-tensors"),
        ("exl2", "exl2", "Unknown quantization type"),
    ],
)
def test_a_form_whose_library_is_not_installed_names_it_and_what_to_take(method, kind, reason, tmp_path, monkeypatch):
    folder = tmp_path / "Mistral-7B-Instruct-v0.1-X"
    folder.mkdir()
    write_config(folder, "tiny-mistral", {"quant_method": method, "bits": 4, "group_size": 128})
    monkeypatch.setattr(Source, "folder", lambda self, *beside: pytest.fail("the weights were fetched"))
    message = refused(
        ValueError if method == "exl2" else ImportError, f"is in {kind}, which cannot be read here", name=folder
    )
    assert reason in message
    assert "load('mistral-7b-instruct-v0.1'), with bits=4" in message
    assert f"load({COPIES['mistral-7b-instruct-v0.1']!r})" in message


def test_a_form_that_a_library_reads_is_given_to_it(tmp_path, monkeypatch):
    folder = tmp_path / "gptq"
    folder.mkdir()
    write_config(folder, "tiny-mistral", {"quant_method": "gptq", "bits": 4, "group_size": 128})
    monkeypatch.setattr(forms, "library_refuses", lambda entry, device: None)
    refused(FileNotFoundError, "no model.safetensors", name=folder)  # the weights are what is missing, then


@pytest.mark.parametrize(
    "entry", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes", "load_in_8bit": True}]
)
def test_a_mixture_in_another_form_is_refused_before_its_weights_are_fetched(entry, tmp_path):
    write_config(tmp_path, "tiny-mixtral", entry)
    refused(ValueError, "is a mixture of experts in", "4 bits of bitsandbytes", name=tmp_path)


def test_a_copy_without_an_output_layer_is_refused(tmp_path):
    write_config(tmp_path, "tiny-mixtral", None, architectures=["MixtralModel"])
    refused(ValueError, "saved as MixtralModel, without the output layer", name=tmp_path)


@pytest.mark.parametrize("config", [None, {"model_type": "mistral"}])
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("mixtral-8x7b-v0.1.Q4_K_M.gguf", "holds GGUF files, which llama.cpp reads"),
        ("consolidated.safetensors", "holds the weights in Mistral's own format (consolidated.safetensors)"),
        ("consolidated.00.pth", "holds the weights in Mistral's own format (consolidated.00.pth)"),
    ],
)
def test_files_of_another_program_alone(file, message, config, tmp_path):
    folder = tmp_path / "Mixtral-8x7B-v0.1"
    folder.mkdir()
    (folder / file).write_bytes(b"")
    if config:  # repositories of GGUF files have such a config, of 31 bytes
        (folder / "config.json").write_text(json.dumps(config))
    refused(FileNotFoundError, message, "load('mixtral-8x7b-v0.1'), with bits=4", name=folder)


def test_an_adapter_is_sent_to_finetune(tmp_path):
    settings = {"base_model_name_or_path": "mixtral-8x7b-v0.1", "target_modules": ["q_proj"], "r": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    refused(
        FileNotFoundError,
        "holds an adapter, not a model: load that model (mixtral-8x7b-v0.1) with bits=4",
        "mistral_lab.finetune.load_adapter(loaded, folder)",
        name=tmp_path,
    )


def test_a_repository_is_explained_from_its_list_of_files(monkeypatch):
    def no_config(self):
        raise FileNotFoundError("no config.json in owner/Mistral-7B-v0.3-GGUF on the hub")

    monkeypatch.setattr(Source, "config_folder", no_config)
    listed = SimpleNamespace(list_repo_files=lambda repo, revision: ["a.gguf", "README.md"])
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: listed)
    name = "owner/Mistral-7B-v0.3-GGUF"
    refused(FileNotFoundError, f"{name} holds GGUF files", "load('mistral-7b-v0.3')", name=name)

    def fail():
        raise ConnectionError("no answer")

    monkeypatch.setattr(huggingface_hub, "HfApi", fail)
    refused(FileNotFoundError, "no config.json in owner/Mistral-7B-v0.3-GGUF on the hub", name=name)


# Planned


@pytest.mark.parametrize(
    ("entry", "precision"),
    [
        (None, None),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, "nf4-double"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False}, "nf4"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}, "nf4"),
        ({"quant_method": "mistral_lab.four_bit (import it first)", "double": True}, "nf4-double"),
        ({"quant_method": "mistral_lab.four_bit (import it first)", "double": False}, "nf4"),
        ({"load_in_8bit": True, "bnb_4bit_use_double_quant": False}, "int8"),
        ({"quant_method": "gptq", "bits": 4}, "nf4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "fp8"}, "int8"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 4}}}}, "nf4"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 8}}}}, "int8"),
    ],
)
def test_the_precision_of_a_quantised_checkpoint_is_that_of_its_config(entry, precision):
    assert quantised_precision(SimpleNamespace(quantization_config=entry)) == precision


def full_size(monkeypatch, double: bool, available: int):
    """Mixtral as a quantised checkpoint of the hub, of which nothing is here but its config."""
    config = PRESETS["mixtral-8x7b-v0.1"].to_transformers()
    config.quantization_config = in_four_bits("tiny-mistral", "nf4", double, torch.uint8, "nothing")[1]
    monkeypatch.setattr(Source, "config_folder", lambda self: Path("nowhere"))
    monkeypatch.setattr(quantising, "read_config", lambda folder: config)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(rss=0))


def test_plain_nf4_of_mixtral_is_two_gibibytes_more_and_refused_where_not_even_its_cache_fits(monkeypatch):
    monkeypatch.setattr(Source, "folder", lambda self, *beside: pytest.fail("the weights were fetched"))
    full_size(monkeypatch, double=False, available=GIB // 2)
    refused(MemoryError, "nf4, 512 tokens: weights 24.82", name="owner/mixtral-plain", device="cpu")
    full_size(monkeypatch, double=True, available=GIB // 2)
    refused(MemoryError, "nf4-double, 512 tokens: weights 22.80", name="owner/mixtral-double", device="cpu")


@pytest.mark.parametrize("name", BUNDLED)
def test_what_our_own_files_hold_is_what_arithmetic_says(name, tmp_path):
    folder = quantized_folder(
        BUNDLED[name],
        weight_files(BUNDLED[name]),
        cache=tmp_path,
        name=name,
        revision=None,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    parts = weight_parts(load(name).config, "nf4-double").values()
    held = bytes_in_files(weight_files(folder), torch.bfloat16)
    assert (held.total, held.tables) == (sum(part.total for part in parts), sum(part.tables for part in parts))


@pytest.mark.parametrize(("double", "matrices"), [(False, OLD), (True, WITH_OUTPUT), (True, ATTENTION)])
@pytest.mark.parametrize("name", BUNDLED)
def test_what_files_hold_is_what_the_loaded_model_takes(name, matrices, double, tmp_path):
    tensors, entry, _ = in_four_bits(name, "nf4", double, torch.bfloat16, matrices)
    folder = write(tmp_path / "four", name, tensors, entry)
    held = bytes_in_files(weight_files(folder), torch.float16)
    assert held.total == audit(load(folder, dtype="float16").model).nbytes


def test_the_headers_of_a_copy_of_mixtral_at_full_size(tmp_path):
    # A header alone, of the names and sizes that such a copy has; the tensors would be 26.7 GB.
    config, header, begin = PRESETS["mixtral-8x7b-v0.1"], {}, 0

    def add(name: str, shape: tuple[int, ...], dtype: str, size: int):
        nonlocal begin
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size]}
        begin += size

    def matrix(name: str, rows: int, columns: int):
        count = rows * columns
        add(f"{name}.weight", (count // 2, 1), "U8", count // 2)
        add(f"{name}.weight.absmax", (count // 64,), "F32", count // 16)
        add(f"{name}.weight.quant_map", (16,), "F32", 64)
        add(f"{name}.weight.quant_state.bitsandbytes__nf4", (83,), "U8", 83)

    d, f, kv = config.dim, config.hidden_dim, config.n_kv_heads * config.head_dim
    for layer in range(config.n_layers):
        prefix = f"model.layers.{layer}."
        for letter, rows in (("q", d), ("k", kv), ("v", kv), ("o", d)):
            matrix(f"{prefix}self_attn.{letter}_proj", rows, d)
        matrix(f"{prefix}block_sparse_moe.gate", config.num_experts, d)
        for expert in range(config.num_experts):
            for number, shape in ((1, (f, d)), (2, (d, f)), (3, (f, d))):
                matrix(f"{prefix}block_sparse_moe.experts.{expert}.w{number}", *shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            add(f"{prefix}{norm}.weight", (d,), "F32", 4 * d)
    for name, shape in (("model.embed_tokens", (32_000, d)), ("lm_head", (32_000, d)), ("model.norm", (d,))):
        add(f"{name}.weight", shape, "F16", 2 * torch.Size(shape).numel())
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    held = bytes_in_files([tmp_path / "model.safetensors"], torch.bfloat16)
    assert held.total == weight_bytes(config, "nf4")
    assert round(held.total / GIB, 2) == 24.82


def test_wide_experts_are_planned_as_they_lie(tmp_path, monkeypatch):
    tensors, entry, _ = in_four_bits("tiny-mixtral", "nf4", True, torch.uint8, ATTENTION)
    folder = write(tmp_path / "today", "tiny-mixtral", tensors, entry)
    held = bytes_in_files(weight_files(folder), torch.bfloat16).total
    config = read_config(folder)
    assert held > 2 * weight_bytes(load("tiny-mixtral").config, quantised_precision(config))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(rss=0))
    refused(MemoryError, f"weights {held / GIB:.2f}", name=folder, device="cpu")


# Placed


@pytest.fixture
def pretended_gpu(monkeypatch):
    """One GPU of 24 GiB as far as `load` asks about it; what would go to it is caught."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(loader, "choose_device", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (24 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=24 * GIB))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    return gpu


@pytest.mark.parametrize(("name", "bits"), [("tiny-mistral", None), ("tiny-mixtral", None), ("tiny-mixtral", 4)])
def test_a_quantised_checkpoint_lies_whole_on_one_device(name, bits, tmp_path, pretended_gpu, monkeypatch):
    tensors, entry, _ = in_four_bits(name, "nf4", True, torch.uint8, OLD)
    folder = write(tmp_path / "four", name, tensors, entry)
    placed = []

    def caught(folder, config, *, dtype, device_map, quantisation, offload):
        placed.append((device_map, dtype, quantisation, offload))
        raise InterruptedError

    monkeypatch.setattr(loader, "read_model", caught)
    with pytest.raises(InterruptedError):
        load(folder, bits=bits)
    assert placed == [(pretended_gpu, torch.bfloat16, None, None)]


@pytest.mark.parametrize(
    ("preset", "room", "devices"),
    [
        ("mistral-7b-v0.1", {0: 20 * GIB, "cpu": 20 * GIB}, {0}),
        ("mistral-7b-v0.1", {0: 8 * GIB, "cpu": 20 * GIB}, {0, "cpu"}),
        ("mistral-7b-v0.1", {0: 8 * GIB, "cpu": 3 * GIB}, {0, "cpu", "disk"}),
        ("mixtral-8x7b-v0.1", {0: 100 * GIB, "cpu": 20 * GIB}, {0}),
        ("mixtral-8x7b-v0.1", {0: 22 * GIB, "cpu": 90 * GIB}, {0, "cpu"}),
        ("mixtral-8x7b-v0.1", {0: 22 * GIB, "cpu": 40 * GIB}, {0, "cpu", "disk"}),
        ("mixtral-8x7b-v0.1", {0: 22 * GIB, 1: 22 * GIB, "cpu": 40 * GIB}, {0, 1, "cpu", "disk"}),
        ("mixtral-8x7b-v0.1", {0: 60 * GIB, 1: 60 * GIB, "cpu": 40 * GIB}, {0, 1}),
        ("mixtral-8x7b-v0.1", {"cpu": 2**20}, {"disk"}),
    ],
)
def test_layers_go_to_gpus_then_memory_then_disk(preset, room, devices):
    config = PRESETS[preset]
    device_map, written = placement.spread(config.to_transformers(), torch.bfloat16, room)
    assert set(device_map.values()) == devices
    layers = [device for name, device in device_map.items() if name.startswith("model.layers.")]
    layers = layers or list(devices) * config.n_layers  # all on one, which has one entry
    assert layers == sorted(layers, key=lambda device: (device == "disk", device == "cpu", str(device)))
    layer = weight_parts(config, "bfloat16")["feed_forward"].payload // config.n_layers
    for device in devices - {"disk"}:
        assert layers.count(device) * layer <= room[device]
    assert written == (layers.count("disk") * layer if config.num_experts else 0)


@pytest.mark.parametrize("name", BUNDLED)
def test_part_of_an_unquantised_model_on_the_disk(name, tmp_path, pretended_gpu, monkeypatch, whole, recwarn):
    monkeypatch.setenv("MISTRAL_LAB_CACHE", str(tmp_path / "cache"))
    room = {"cpu": weight_bytes(ModelConfig.from_pretrained(name), "float32") // 2}
    monkeypatch.setattr(placement, "free_memory", lambda: room)  # as if the GPU were full
    loaded = load(name, dtype="float32")
    assert {"cpu", "disk"} == set(loaded.model.hf_device_map.values())
    assert torch.equal(logits(loaded.model), whole[name])
    written = [file for folder in tmp_path.glob("cache/offload-*") for file in folder.iterdir()]
    assert all(".experts." in file.name for file in written)
    assert bool(written) == (name == "tiny-mixtral")
    said = [str(warning.message) for warning in recwarn if name in str(warning.message)]
    assert len(said) == len({file.parent for file in written})
    assert all("of its experts are written to a folder in" in message for message in said)
    del loaded
    gc.collect()
    assert not list(tmp_path.glob("cache/*"))


def test_what_a_killed_process_left_is_removed_and_the_disk_is_looked_at_again(tmp_path, monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, alive = tmp_path / f"offload-{ended.pid}-x", tmp_path / f"offload-{os.getppid()}-x"
    for folder in (dead, alive):
        folder.mkdir()
    need = placement.need_of_experts(tmp_path, 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    with placement.offload_folder(need) as place:
        assert set(tmp_path.iterdir()) == {alive, place}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9 - 1))
    full = pytest.raises(OSError, match=r"1\.0 GB are needed in .* \(1\.0 GB for experts")
    with full, placement.offload_folder(need):
        pass


def test_a_failure_leaves_no_layers_on_the_disk(tmp_path, pretended_gpu, monkeypatch):
    def fail(*_, **__):
        raise InterruptedError

    monkeypatch.setenv("MISTRAL_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(placement, "free_memory", lambda: {"cpu": 2**20})
    monkeypatch.setattr(loader, "read_model", fail)
    with pytest.warns(UserWarning, match="tiny-mixtral is larger"), pytest.raises(InterruptedError):
        load("tiny-mixtral")
    assert not list(tmp_path.iterdir())


def test_a_disk_too_full_for_the_experts_is_said_before_the_download(tmp_path, pretended_gpu, monkeypatch):
    config = PRESETS["mixtral-8x7b-v0.1"].to_transformers()
    monkeypatch.setattr(Source, "config_folder", lambda self: tmp_path)
    monkeypatch.setattr(Source, "folder", lambda self, *beside: pytest.fail("the weights were fetched"))
    monkeypatch.setattr(quantising, "read_config", lambda folder: config)
    monkeypatch.setenv("MISTRAL_LAB_CACHE", str(tmp_path / "not" / "made"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=32 * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 10**9))
    message = refused(OSError, "for experts that fit neither", "5.0 GB are free there", name="mixtral-8x7b-v0.1")
    gigabytes = float(re.match(r"([\d.]+) GB are needed", message)[1])
    assert 90.2 * 0.3 < gigabytes < 90.2  # experts are 90.2 GB in all, and at most 50 GiB lie elsewhere


# Offered


def test_a_copy_is_offered_before_16_bits_are_fetched_for_four(monkeypatch, tmp_path):
    class Fetched(Exception):
        pass

    def fetch(self, *beside):
        raise Fetched

    monkeypatch.setattr(Source, "config_folder", lambda self: tmp_path)
    monkeypatch.setattr(Source, "folder", fetch)
    config = PRESETS["mixtral-8x7b-v0.1"].to_transformers()
    monkeypatch.setattr(quantising, "read_config", lambda folder: config)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=32 * GIB))
    with pytest.warns(UserWarning, match="is quantised here, once") as said, pytest.raises(Fetched):
        load("mixtral-8x7b-v0.1", bits=4, device="cpu")
    (message,) = [str(warning.message) for warning in said]
    assert "93.4 GB in 16 bits are downloaded and 24.5 GB in 4 bits written" in message
    assert f"load({COPIES['mixtral-8x7b-v0.1']!r}) downloads some 24.5 GB instead" in message
    assert said[0].filename == __file__
    with pytest.warns(UserWarning, match=r"load\('owner/name'\) of a repository"), pytest.raises(Fetched):
        load("owner/finetuned", bits=4, device="cpu")


def test_nothing_is_offered_where_the_16_bits_are_there(monkeypatch, tmp_path, recwarn):
    monkeypatch.setattr(Source, "config_folder", lambda self: BUNDLED["tiny-mistral"])
    monkeypatch.setattr(Source, "folder", lambda self, *beside: BUNDLED["tiny-mistral"])
    monkeypatch.setenv("MISTRAL_LAB_CACHE", str(tmp_path))
    load("owner/model", bits=4, device="cpu")
    assert not [warning for warning in recwarn if "download" in str(warning.message)]


def test_every_alias_has_a_copy():
    assert COPIES.keys() == ALIASES.keys()
    assert not set(COPIES.values()) & {repo for repo, _ in ALIASES.values()}
