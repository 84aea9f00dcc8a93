"""Four bits that are four bits: what is quantised, that it computes what it says, and that it survives every use."""

import copy
import gc
import json
import logging
import shutil
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16, quantize_4bit
from bitsandbytes.nn import Params4bit
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, MixtralConfig
from transformers.core_model_loading import MergeModulelist, WeightConverter, WeightRenaming
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from mistral_lab import four_bit, load, memory, nf4
from mistral_lab.checkpoints import BUNDLED
from mistral_lab.config import PRESETS, ModelConfig
from mistral_lab.four_bit import ExactLinear4bit, audit, checkpoint, matrix, nf4_config, shards
from mistral_lab.four_bit.quantizer import FourBitQuantizer

TOKENS = torch.arange(3, 60)[None]
SMALL = dict(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=128, num_local_experts=5, num_experts_per_tok=2,
)  # fmt: skip


def from_pretrained(folder, **settings):
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16, **settings).eval()


@pytest.fixture
def model():
    return from_pretrained(BUNDLED["tiny-mixtral"], quantization_config=nf4_config())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A Mixtral of odd sizes in two shards, without a tokenizer of its own: that of tiny-mixtral."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MixtralConfig(**SMALL), dtype=torch.bfloat16).save_pretrained(
        folder, max_shard_size=150_000
    )
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED["tiny-mixtral"] / file, folder)
    assert len(list(folder.glob("*.safetensors"))) >= 2
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MISTRAL_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(cache):
    """The folders with quantised models, beside which the cache has its locks."""
    return sorted(cache.glob("*nf4*"))


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def linears(model):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, ExactLinear4bit)]


# What is computed


def dequantised(model, folder):
    """transformers' own Mixtral, its weights those that the 4-bit model stands for."""
    plain = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    weights = plain.state_dict()
    for name, module in linears(model):
        weight = module.dequantized().float()
        if ".experts." not in name:
            weights[f"{name}.weight"].copy_(weight)
            continue
        layer, _, rest = name.partition(".experts.")
        expert, matrix = rest.split(".")
        target = weights[f"{layer}.experts.{'down_proj' if matrix == 'w2' else 'gate_up_proj'}"][int(expert)]
        half = len(target) // 2
        {"w1": target[:half], "w2": target, "w3": target[half:]}[matrix].copy_(weight)
    return plain


@pytest.mark.parametrize("double", [True, False])
def test_the_logits_are_those_of_transformers_with_the_dequantised_weights(double):
    folder = BUNDLED["tiny-mixtral"]
    settings = {"quantization_config": nf4_config(double=double), "dtype": torch.float32}
    ours = AutoModelForCausalLM.from_pretrained(str(folder), **settings).train()  # train: the path that rounds nothing
    # float32 sums of at most 256 products in another order, through four layers.
    torch.testing.assert_close(ours(TOKENS).logits, dequantised(ours, folder)(TOKENS).logits, rtol=0, atol=2e-4)


def test_every_matrix_holds_what_bitsandbytes_makes_of_it(model):
    source = load_file(BUNDLED["tiny-mixtral"] / "model.safetensors")
    assert len(linears(model)) == 4 * (4 + 3 * 8)
    for name, module in linears(model):
        weight = source[f"{name.replace('.mlp.', '.block_sparse_moe.')}.weight"]
        codes, made = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
        assert torch.equal(module.weight.data, codes)
        assert torch.equal(module.weight.quant_state.absmax, made.absmax)
        assert torch.equal(module.weight.quant_state.state2.absmax, made.state2.absmax)
        assert torch.equal(module.weight.quant_state.offset, made.offset)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (64, 64), (33, 64), (129, 65), (96, 160)])
def test_pieces_come_out_as_the_whole(shape, double, monkeypatch):
    monkeypatch.setattr(matrix, "PIECE", 64 * 5)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    codes, state = matrix.quantize_matrix("w", weight, double=double)
    expected_codes, expected = quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
    assert torch.equal(codes, expected_codes)
    ours, theirs = state.as_dict(packed=True), expected.as_dict(packed=True)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_an_expert_that_nobody_chose_does_no_work(model):
    calls = []
    for layer, block in enumerate(model.model.layers):
        for number, expert in enumerate(block.mlp.experts):
            expert.register_forward_hook(lambda *_, key=(layer, number): calls.append(key))
    with torch.no_grad():
        model(TOKENS[:, :1])
    assert len(calls) == len(set(calls)) == 4 * 2


def test_gradients_reach_the_input_after_the_fused_kernel_has_run(model):
    linear = model.model.layers[0].mlp.experts[0].w1
    x = torch.randn(3, 128, dtype=torch.bfloat16)
    with torch.no_grad():
        linear(x)
    x.requires_grad_()
    linear(x).sum().backward()
    weight = dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    torch.testing.assert_close(x.grad[0].float(), weight.float().sum(0), rtol=2**-7, atol=2**-7)  # bfloat16: 8 bits


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(65, 64), (64, 96), (33, 70), (8, 6), (1, 1)])
def test_shapes_that_fill_neither_tiles_nor_blocks(shape, training):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    linear = ExactLinear4bit(shape[1], shape[0], compute_dtype=torch.float32, double=True).train(training)
    codes, quant_state = matrix.quantize_matrix("w", weight, double=True)
    linear.weight = Params4bit(codes, quant_state=quant_state, bnb_quantized=True, quant_type="nf4", module=linear)
    x = torch.randn(5, shape[1], generator=torch.Generator().manual_seed(1))
    expected = x @ nf4.dequantize(nf4.quantize(weight, double=True)).T
    torch.testing.assert_close(linear(x), expected, rtol=0, atol=1e-5)  # float32 sums of at most 96 products


def test_a_mixtral_of_odd_sizes(small):
    quantised = AutoModelForCausalLM.from_pretrained(str(small), quantization_config=nf4_config(), dtype=torch.float32)
    assert audit(quantised).passed
    tokens = TOKENS % SMALL["vocab_size"]
    expected = dequantised(quantised, small)(tokens).logits
    torch.testing.assert_close(quantised.train()(tokens).logits, expected, rtol=0, atol=2e-4)


def test_a_dense_model_is_quantised_as_well():
    quantised = from_pretrained(BUNDLED["tiny-mistral"], quantization_config=nf4_config())
    assert audit(quantised).passed
    assert len(linears(quantised)) == 4 * 7


# What survives


def test_a_forward_changes_neither_the_weights_nor_later_answers(model, tmp_path):
    before = state(model)
    first = logits(model)
    packed = any(module.packed for _, module in linears(model))
    assert packed == bool(has_avx512bf16())
    assert same(before, state(model))
    assert torch.equal(first, logits(model))
    model.save_pretrained(tmp_path / "late")
    assert torch.equal(first, logits(model))
    again = from_pretrained(tmp_path / "late")
    assert same(before, state(again))
    again.save_pretrained(tmp_path / "again")  # transformers' own quantiser fails here
    assert same(before, state(from_pretrained(tmp_path / "again")))


def test_what_bitsandbytes_itself_saves_after_a_forward_is_something_else(model):
    """The reason for ExactLinear4bit: should this fail, the library has mended it."""
    if not has_avx512bf16():
        pytest.skip("no AVX512_BF16 here: nothing is packed")
    plain = from_pretrained(
        BUNDLED["tiny-mistral"],
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )  # fmt: skip
    before = state(plain)
    logits(plain)
    assert not same(before, state(plain))


def test_a_new_process_reads_what_was_saved_after_a_forward(model, tmp_path):
    expected = logits(model)
    model.save_pretrained(tmp_path)
    code = (
        "import sys, torch, mistral_lab.four_bit\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()\n"
        "with torch.no_grad(): torch.save(model(torch.arange(3, 60)[None]).logits, sys.argv[1] + '/logits.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, timeout=300)
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), expected)


def test_a_process_without_the_room_is_told_what_to_import(model, tmp_path):
    model.save_pretrained(tmp_path)
    code = "import sys; from transformers import AutoModelForCausalLM as A; A.from_pretrained(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0  # nothing answers with random weights
    assert "Unknown quantization type, got mistral_lab.four_bit (import it first)" in done.stderr


def test_a_copy_and_a_move_are_exact(model):
    before, first = state(model), logits(model)
    assert same(before, state(copy.deepcopy(model)))
    assert torch.equal(first, logits(copy.deepcopy(model)))
    assert same(before, state(model.to("cpu")))


def test_a_checkpoint_from_when_experts_were_separate_loads(model, tmp_path, cache):
    model.save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED["tiny-mixtral"] / file, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "float16", "bnb_4bit_quant_storage": "uint8",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    for bits in (None, 4):
        assert same(state(model), state(load(tmp_path, bits=bits, dtype=torch.bfloat16).model))
    assert not cache.exists()
    config["quantization_config"]["bnb_4bit_quant_type"] = "fp4"  # what the files say counts
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert same(state(model), state(load(tmp_path, dtype=torch.bfloat16).model))


# The audit


def test_the_plain_call_fails_and_says_what_is_left():
    plain = from_pretrained(BUNDLED["tiny-mixtral"], quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    report = audit(plain)
    assert not report.passed
    assert report.four_bit_share == pytest.approx(393_216 / 3_413_120)
    assert report.verdict == "failed: 88.5% of the parameters are still in 16 bits; should be in 4: experts (69.1%)"
    assert str(report).endswith(report.verdict)


@pytest.mark.parametrize(("double", "precision"), [(True, "nf4-double"), (False, "nf4")])
@pytest.mark.parametrize("name", BUNDLED)
def test_bytes_are_those_of_the_closed_form(name, double, precision):
    quantised = from_pretrained(BUNDLED[name], quantization_config=nf4_config(double=double))
    config = ModelConfig.from_pretrained(BUNDLED[name])
    report = audit(quantised)
    assert report.nbytes == memory.weight_bytes(config, precision)
    assert report.parameters == memory.parameter_counts(config).total
    logits(quantised)
    packed = sum(module.weight.quant_state.absmax.nbytes for _, module in linears(quantised) if module.packed)
    after = audit(quantised)
    assert (after.nbytes, after.rounded_bytes, report.rounded_bytes) == (report.nbytes, packed, 0)


def test_full_size_on_the_meta_device():
    names = {"mixtral-8x7b-v0.1": "experts", "mistral-7b-v0.1": "feed-forward"}
    for name, part in names.items():
        quantised = meta(name)
        report = audit(quantised)
        assert report.nbytes == memory.weight_bytes(PRESETS[name], "nf4-double")
        assert {row.name: row.bits for row in report.rows}[part] == 4
        assert report.passed


def meta(name):
    """A model of full size without weights, as the quantiser lays it out."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(PRESETS[name].to_transformers(), dtype=torch.bfloat16)
    quantiser = four_bit.quantizer.FourBitQuantizer(nf4_config(compute_dtype="bfloat16"), pre_quantized=False)
    quantiser.preprocess_model(model, device_map={"": "cpu"})
    return model


def test_a_fused_tensor_in_four_bits_counts_as_such():
    plain = from_pretrained(BUNDLED["tiny-mixtral"], quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    for block in plain.model.layers:
        for name in ("gate_up_proj", "down_proj"):
            replace_parameter_4bit(block.mlp.experts, name)
    assert audit(plain).passed


# Loading, and the work that is kept


def test_load_gives_four_bits_and_one_cached_copy(small, cache, capfd):
    first = load(small, bits=4)
    (folder,) = kept(cache)
    times = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    again = load(small, bits=4)
    assert times == {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert audit(first.model).passed
    assert same(state(first.model), state(again.model))
    direct = from_pretrained(small, quantization_config=nf4_config())
    assert same(state(first.model), state(direct))
    load(small, bits=4, dtype=torch.float16)
    assert len(kept(cache)) == 2  # another dtype is another result


def test_an_interrupted_call_goes_on_where_it_stopped(small, cache, monkeypatch):
    done, write = [], checkpoint.write_four_bits

    def stop_at_the_second(file, out, **how):
        if done:
            raise KeyboardInterrupt
        done.append(file)
        write(file, out, **how)

    monkeypatch.setattr(checkpoint, "write_four_bits", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        load(small, bits=4)
    (folder,) = kept(cache)
    assert not (folder / "config.json").exists()
    again = []
    monkeypatch.setattr(
        checkpoint, "write_four_bits", lambda file, out, **how: (again.append(file), write(file, out, **how))
    )
    assert audit(load(small, bits=4).model).passed
    assert again
    assert not set(again) & set(done)


def test_a_full_disk_leaves_no_half_file(small, cache, monkeypatch):
    def full(tensors, path, about):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "write_aligned", full)
    with pytest.raises(OSError, match=r"is full: 0\.\d MB for .* in four bits are still needed, and .* GB are free"):
        load(small, bits=4)
    (folder,) = kept(cache)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "foreign", "gone"])
def test_a_damaged_result_is_set_aside_and_made_again(small, cache, damage):
    expected = state(load(small, bits=4).model)
    (folder,) = kept(cache)
    shard = sorted(folder.glob("*.safetensors"))[0]
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "foreign":
        save_file({"x": torch.ones(1)}, shard)
    else:
        shard.unlink()
    with pytest.warns(UserWarning, match=r"it is kept as .*aside-1, and quantised again"):
        model = load(small, bits=4).model
    assert same(expected, state(model))
    assert [path.name for path in kept(cache)] == [folder.name, f"{folder.name}.aside-1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load(small, bits=4)


def test_a_change_of_the_weights_is_noticed(small, cache, tmp_path):
    folder = shutil.copytree(small, tmp_path / "own")
    load(folder, bits=4)
    file = sorted(folder.glob("*.safetensors"))[0]
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    load(folder, bits=4)
    assert len(kept(cache)) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(small, tmp_path, cache, value, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # or caplog may not see what it logs
    folder = shutil.copytree(small, tmp_path / "own")
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if any("experts.3.w2" in name for name in tensors):
            name = next(name for name in tensors if "experts.3.w2" in name)
            tensors[name][1, 2] = value
            save_file(tensors, file, metadata={"format": "pt"})
            break
    with pytest.raises(ValueError, match=r"experts\.3\.w2\.weight holds 1 weights that are NaN or infinite"):
        load(folder, bits=4)
    with pytest.raises(RuntimeError):  # transformers gathers what went wrong and logs it first
        from_pretrained(folder, quantization_config=nf4_config())
    assert "experts.3.w2.weight holds 1 weights that are NaN or infinite" in caplog.text


def test_experts_fused_on_disk_are_refused_in_a_sentence(tmp_path, cache):
    model = AutoModelForCausalLM.from_config(MixtralConfig(**SMALL), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED["tiny-mixtral"] / file, tmp_path / "fused")
    with pytest.raises(ValueError, match="holds all experts of a layer: expected one tensor per expert"):
        load(tmp_path / "fused", bits=4)


def test_a_model_that_does_not_come_out_in_four_bits_is_not_returned(monkeypatch):
    monkeypatch.setattr(four_bit, "nf4_config", lambda: BitsAndBytesConfig(load_in_4bit=True))
    with pytest.raises(RuntimeError, match=r"tiny-mixtral was to be in 4 bits, but failed: 88\.5%"):
        load("tiny-mixtral", bits=4)


def test_a_cpu_without_avx2_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(RuntimeError, match="4 bits on a CPU need AVX2"):
        load("tiny-mixtral", bits=4, device="cpu")


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"compute_dtype": torch.int8}, ValueError, "compute_dtype is torch.int8: expected one of torch.bfloat16"),
        ({"compute_dtype": "half a float"}, ValueError, "compute_dtype is 'half a float'"),
        ({"double": "yes"}, TypeError, "double is 'yes': expected True or False"),
    ],
)
def test_settings_that_mean_nothing(settings, kind, message):
    with pytest.raises(kind, match=message):
        nf4_config(**settings)


def test_another_mixture_of_experts_is_refused_by_name(tmp_path):
    from transformers import Qwen2MoeConfig

    config = Qwen2MoeConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, moe_intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, num_experts=4, shared_expert_intermediate_size=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(NotImplementedError, match="Qwen2MoeForCausalLM keeps its experts in one tensor"):
        from_pretrained(tmp_path, quantization_config=nf4_config())


def test_a_model_that_is_dropped_gives_its_memory_back_at_once():
    model = load("tiny-mixtral", bits=4).model
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    left = [weakref.ref(module) for _, module in linears(model)]
    gc.collect()
    gc.disable()  # without the collector, which gigabytes of tensors do not wake
    try:
        del model
        assert [ref for ref in left if ref() is not None] == []
    finally:
        gc.enable()


@pytest.mark.parametrize("model", [(), ("the model",)], ids=["transformers 5.15 to 5.20", "5.21 on"])
def test_converters_that_merge_experts_are_dropped_with_a_model_or_without(monkeypatch, model):
    monkeypatch.setattr(Bnb4BitHfQuantizer, "update_weight_conversions", lambda _, entries, *handed: (entries, handed))
    merging = WeightConverter(["experts.*.w1.weight"], "mlp.experts.gate_up_proj", operations=[MergeModulelist()])
    other = WeightRenaming("block_sparse_moe", "mlp")
    quantizer = FourBitQuantizer(nf4_config())
    assert quantizer.update_weight_conversions([other, merging], *model) == ([other], model)
