"""A copy in four bits whose codes lie as this CPU's kernel reads them: mapped, exact, and turned round without loss."""

import copy
import json
import shutil
import warnings
from pathlib import Path

import psutil
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import MixtralConfig, MixtralForCausalLM

from mistral_lab import checkpoints, four_bit, load
from mistral_lab.files import read_header, write_index
from mistral_lab.four_bit import ExactLinear4bit, checkpoint, holds_packed_codes, quantized_tensors, shards
from mistral_lab.loading import quantising, quantized_copy

TOKENS = torch.arange(3, 20)[None]
kernel = pytest.mark.skipif(not has_avx512bf16(), reason="without AVX512_BF16 nothing is packed")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MISTRAL_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A Mixtral in 16 bits whose every matrix fits the kernel, in several files."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=2560, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=3, max_position_embeddings=256,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("plain")
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="500KB")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoints.locate("tiny-mixtral").path / file, folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def in_rows(plain, cache, monkeypatch):
    """The folder in four bits as a CPU without the kernel, or a GPU, makes it."""
    monkeypatch.setattr(checkpoint, "has_fused_kernel", lambda: False)
    made = quantized_copy(plain)
    monkeypatch.undo()
    monkeypatch.setenv("MISTRAL_LAB_CACHE", str(cache))
    return made


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def as_stored(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names that checkpoints of Mixtral have."""
    return {name.replace(".mlp.", ".block_sparse_moe."): value for name, value in state.items()}


def linears(model) -> list[ExactLinear4bit]:
    return [module for module in model.modules() if isinstance(module, ExactLinear4bit)]


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS).logits


@kernel
def test_a_packed_folder_answers_as_one_that_is_packed_in_memory_and_holds_the_same_weights(plain, cache, tmp_path):
    rows = MixtralForCausalLM.from_pretrained(plain, quantization_config=four_bit.nf4_config(), dtype=torch.bfloat16)
    loaded = load(plain, bits=4).model
    assert all(module.packed for module in linears(loaded))
    assert not any(module.packed for module in linears(rows))
    assert torch.equal(logits(loaded), logits(rows.eval()))  # bit for bit
    assert same(loaded.state_dict(), rows.state_dict())  # which unpacks
    loaded.save_pretrained(tmp_path / "saved")
    assert same(tensors(tmp_path / "saved"), as_stored(loaded.state_dict()))
    assert all(module.packed for module in linears(loaded))  # and mapped still
    assert torch.equal(logits(loaded), logits(rows))


@kernel
@pytest.mark.skipif(not psutil.LINUX, reason="reads the list of mapped files as Linux has it")
def test_codes_and_rounded_scales_are_mapped_and_not_copied(plain, cache):
    model = load(plain, bits=4).model
    logits(model)
    folder = Path(model.name_or_path)
    assert folder.is_relative_to(cache)
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors") and Path(line.split()[-1]).parent == folder:
            begin, end = line.split()[0].split("-")
            mapped.append((int(begin, 16), int(end, 16)))
    for module in linears(model):
        for tensor in (module.weight.data, module.weight.quant_state.absmax):
            assert any(begin <= tensor.data_ptr() < end for begin, end in mapped)


@kernel
def test_a_packed_copy_can_be_copied_trained_and_read_as_it_was_quantised(plain, cache):
    model = load(plain, bits=4).model
    expected = logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), expected)
    module = linears(twin)[0]
    with pytest.raises(ValueError, match=r"nf4, packed for this CPU: call model\.train\(\) first"):
        dequantize_4bit(module.weight.data, module.weight.quant_state)  # as PEFT does, which would take strips for rows
    weight = module.dequantized()
    assert module.packed
    twin.train()
    assert not module.packed
    assert torch.equal(dequantize_4bit(module.weight.data, module.weight.quant_state).to(weight.dtype), weight)
    assert torch.equal(logits(twin.eval()), expected)
    assert torch.equal(logits(model), expected)


@kernel
@pytest.mark.parametrize("first", ["rows", "strips"])
def test_a_folder_is_turned_round_in_place_and_back_to_the_same_tensors(plain, cache, monkeypatch, first):
    monkeypatch.setattr(checkpoint, "has_fused_kernel", lambda: first == "strips")
    folder = quantized_copy(plain)
    before, files = tensors(folder), sorted(folder.iterdir())
    monkeypatch.setattr(checkpoint, "has_fused_kernel", lambda: first != "strips")
    assert quantized_copy(plain) == folder
    turned = tensors(folder)
    assert any(name.endswith("packed_absmax") for name in turned) == (first == "rows")
    monkeypatch.setattr(checkpoint, "has_fused_kernel", lambda: first == "strips")
    quantized_copy(plain)
    assert same(tensors(folder), before)
    assert sorted(folder.iterdir()) == files


@kernel
def test_turning_round_goes_on_where_it_was_interrupted(plain, in_rows, monkeypatch):
    expected, done, write = tensors(in_rows), [], shards.write_four_bits

    def stop_at_the_second(file, out, **how):
        if done:
            raise KeyboardInterrupt
        done.append(file)
        write(file, out, **how)

    monkeypatch.setattr(checkpoint, "write_four_bits", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        load(plain, bits=4)
    half = []
    for file in sorted(in_rows.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            half.append(bool(opened.metadata()["packed_for"]))
    assert half == [True] + [False] * (len(half) - 1)
    again = []
    monkeypatch.setattr(
        checkpoint, "write_four_bits", lambda file, out, **how: (again.append(file), write(file, out, **how))
    )
    state = load(plain, bits=4).model.state_dict()
    assert again
    assert done[0] not in again
    assert same(as_stored(state), expected)


@kernel
def test_a_device_without_the_kernel_reads_packed_files_as_they_were_quantised(plain, cache, in_rows):
    expected = load(in_rows).model.state_dict()  # the folder itself, as somebody else's: nothing is written
    load(plain, bits=4)
    assert any(map(holds_packed_codes, in_rows.glob("*.safetensors")))
    init = ExactLinear4bit.__init__

    def without_kernel(self, *shape, **settings):
        init(self, *shape, **settings)
        self.fused_kernel = False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExactLinear4bit, "__init__", without_kernel)
        model = load(in_rows).model
    assert not any(module.packed for module in linears(model))
    assert same(model.state_dict(), expected)


@kernel
def test_where_nothing_can_be_written_a_copy_in_rows_is_read_and_packing_is_said_to_repeat(plain, in_rows, monkeypatch):
    def read_only(*_):
        raise PermissionError(30, "Read-only file system", str(in_rows))

    monkeypatch.setattr(checkpoint, "_make", read_only)
    with pytest.warns(UserWarning, match=r"cannot be packed .* disk \(Read-only file system\)") as said:
        model = load(plain, bits=4).model
    assert said[0].filename == __file__
    assert Path(model.name_or_path) == in_rows
    logits(model)
    assert all(module.packed for module in linears(model))


@kernel
def test_a_large_foreign_copy_is_packed_once_in_the_cache(in_rows, cache, tmp_path, monkeypatch):
    foreign = shutil.copytree(in_rows, tmp_path / "foreign")
    before = {file: file.stat().st_mtime_ns for file in foreign.iterdir()}
    expected = load(foreign)  # small: read as it is
    assert Path(expected.model.name_or_path) == foreign
    monkeypatch.setattr(quantising, "PACK_EACH_TIME_BYTES", 0)
    loaded = load(foreign)
    folder = Path(loaded.model.name_or_path)
    assert folder.parent == cache
    assert all(module.packed for module in linears(loaded.model))
    assert torch.equal(logits(loaded.model), logits(expected.model))
    assert before == {file: file.stat().st_mtime_ns for file in foreign.iterdir()}
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["double"] is True
    times = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    load(foreign)
    load(folder)  # is packed, and needs no copy
    assert times == {file: file.stat().st_mtime_ns for file in folder.iterdir()}


@kernel
def test_a_large_foreign_copy_that_cannot_be_packed_is_read_as_it_is(in_rows, tmp_path, monkeypatch):
    foreign = shutil.copytree(in_rows, tmp_path / "foreign")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MISTRAL_LAB_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(quantising, "PACK_EACH_TIME_BYTES", 0)
    with pytest.warns(UserWarning, match=r"foreign cannot be packed for this CPU on the disk \(.+\): every process"):
        model = load(foreign).model
    assert Path(model.name_or_path) == foreign


def test_a_long_file_becomes_several_and_the_last_one_marks_it_finished(plain, cache, monkeypatch):
    whole = tensors(quantized_copy(plain))
    shutil.rmtree(cache)
    monkeypatch.setattr(shards, "SHARD_BYTES", 50_000)
    folder = quantized_copy(plain)
    parts = sorted(folder.glob("*.part-*.safetensors"))
    assert len(parts) >= 3
    for file in parts:
        assert file.stat().st_size < 2 * 50_000 or len(read_header(file)) == 1  # the embedding is larger
    assert same(tensors(folder), whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert quantized_copy(plain) == folder
    load(folder)


def test_the_disk_space_that_is_asked_for_is_what_is_written_or_a_little_more(plain, cache):
    folder = quantized_copy(plain)
    packed = has_avx512bf16()
    how = {"packed": packed, "dtype": torch.bfloat16}
    asked = sum(shards.bytes_in_four_bits(file, **how) for file in plain.glob("*.safetensors"))
    written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    headers = sum(len(json.dumps(read_header(file))) for file in folder.glob("*.safetensors"))
    assert written - 1.2 * headers < asked < 1.2 * written
    again = sum(shards.bytes_in_four_bits(file, **how) for file in folder.glob("*.safetensors"))
    assert again == pytest.approx(asked, rel=0.2)


def test_a_matrix_that_does_not_fill_the_kernel_stays_in_rows():
    for shape in ((48, 64), (32, 96)):
        weight = torch.randn(shape)
        assert same(quantized_tensors("w", weight, packed=True), quantized_tensors("w", weight, packed=False))
    assert any(name.endswith(shards.SCALES) for name in quantized_tensors("w", torch.randn(32, 64), packed=True))


@kernel
def test_a_disk_that_is_too_full_to_pack_leaves_the_folder_usable_every_time(plain, in_rows, monkeypatch):
    def full(*needs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "check_disk", full)
    for _ in range(2):
        with pytest.warns(UserWarning, match="cannot be packed for this CPU on the disk"):
            assert Path(load(plain, bits=4).model.name_or_path) == in_rows


@kernel
def test_a_matrix_in_two_files_is_read_as_it_lies_and_never_quantised_again(in_rows, cache, tmp_path, monkeypatch):
    foreign = shutil.copytree(in_rows, tmp_path / "foreign")
    everything = tensors(foreign)
    for file in foreign.glob("*.safetensors"):
        file.unlink()
    scales = {name: value for name, value in everything.items() if name.endswith(".absmax")}
    save_file(scales, foreign / "model-00002.safetensors", metadata={"format": "pt"})
    rest = {name: value for name, value in everything.items() if name not in scales}
    save_file(rest, foreign / "model-00001.safetensors", metadata={"format": "pt"})
    write_index(foreign, ["model-00001.safetensors", "model-00002.safetensors"])
    monkeypatch.setattr(quantising, "PACK_EACH_TIME_BYTES", 0)
    assert Path(load(foreign).model.name_or_path) == foreign
    how = {"packed": True, "dtype": torch.bfloat16, "device": torch.device("cpu")}
    file = tmp_path / "model-00001.safetensors"
    save_file({name: value for name, value in rest.items() if name.endswith("w1.weight")}, file)
    with pytest.raises(ValueError, match=r"model-00001\.safetensors holds the codes of .* without their scales"):
        shards.write_four_bits(file, tmp_path / "out", **how, fingerprint="", bar=tqdm(disable=True))


@kernel
def test_a_forward_with_gradients_enabled_leaves_weights_mapped(plain, cache):
    model = load(plain, bits=4).model
    with torch.enable_grad():
        model(TOKENS)
    assert all(module.packed for module in linears(model))


@kernel
def test_peft_cannot_merge_into_strips(plain, cache):
    peft = pytest.importorskip("peft")
    model = load(plain, bits=4).model
    settings = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    with pytest.raises(ValueError, match="packed for this CPU: call"):
        peft.get_peft_model(model, settings).merge_and_unload()
