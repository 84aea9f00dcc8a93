import io
import json
import logging
import os
import shutil
import socket
import sys
import warnings
import weakref
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from mistral_lab.checkpoints import ALIASES, BUNDLED, PINNED, Source, locate
from mistral_lab.config import PRESETS, ModelConfig
from mistral_lab.loading import load, loader, quantising, reading
from mistral_lab.loading.printing import Printer

PROMPT = "AI的未来是"
SIZES = {
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that every Chinese character takes three."""
    pieces = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """The kind that Mistral 7B has: words with a leading mark, and bytes for what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    model = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], unk_token="<unk>", byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def save(folder: Path, config, **options) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, **options)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    return save(tmp_path_factory.mktemp("mistral"), MistralConfig(**SIZES, sliding_window=8))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    return save(tmp_path_factory.mktemp("mixtral"), config)


@pytest.fixture(scope="module")
def loaded(mistral):
    return load(mistral)


@pytest.fixture
def copy(mistral, tmp_path):
    return shutil.copytree(mistral, tmp_path / "copy")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("something went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


# What load() returns


def test_a_folder_is_loaded_as_transformers_loads_it(mistral, no_network):
    loaded = load(mistral)
    theirs = AutoModelForCausalLM.from_pretrained(mistral, dtype=torch.float32)
    assert not loaded.model.training
    assert loaded.name == str(mistral)
    assert loaded.config == ModelConfig.from_pretrained(mistral)
    tokens = torch.arange(3, 40)[None]
    assert torch.equal(loaded.model(tokens).logits, theirs.eval()(tokens).logits)
    assert loaded.tokenizer(PROMPT)["input_ids"][0] == loaded.tokenizer.bos_token_id
    assert "Mistral" not in repr(loaded).replace("ModelConfig", "")  # the model's own listing would fill a screen


def test_tied_and_sharded_checkpoints_are_whole(tmp_path):
    tied = save(tmp_path / "tied", LlamaConfig(**SIZES, tie_word_embeddings=True))
    model = load(tied).model
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    sharded = save(tmp_path / "sharded", MistralConfig(**SIZES), max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert load(sharded).generate_text("a", max_new_tokens=1, seed=0).startswith("a")


def test_without_a_name_the_environment_decides(mistral, mixtral, monkeypatch):
    monkeypatch.setitem(BUNDLED, "tiny-mistral", mistral)
    assert load().name == "tiny-mistral"
    monkeypatch.setenv("MISTRAL_LAB_MODEL", "")
    assert load().name == "tiny-mistral"
    monkeypatch.setenv("MISTRAL_LAB_MODEL", str(mixtral))
    assert load().config.num_experts == 4


def test_a_bundled_name_loads_without_a_word_and_leaves_the_settings(mistral, monkeypatch, capfd, caplog, no_network):
    def settings():
        level, bars = logging.root.manager.disable, transformers_logging.is_progress_bar_enabled()
        return level, bars, transformers_logging.get_verbosity(), list(warnings.filters)

    monkeypatch.setitem(BUNDLED, "tiny-mistral", mistral)
    transformers_logging.enable_progress_bar()
    logging.disable(logging.NOTSET)
    before = settings()
    for bits in (None, 4, 8):
        load("tiny-mistral", bits=bits)
    assert capfd.readouterr() == ("", "")
    assert settings() == before
    with reading.quiet():
        logging.getLogger("a.library").warning("something")
        warnings.warn("something else", stacklevel=1)
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])
    load(mistral)
    assert "Loading weights" in capfd.readouterr().err  # a folder of 14 GB should show that it moves


@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_models_are_what_the_lessons_count_on(name, no_network):
    loaded = load(name)
    assert (loaded.config.sliding_window, loaded.config.num_experts) == {
        "tiny-mistral": (64, None),
        "tiny-mixtral": (None, 8),
    }[name]
    assert loaded.config.group_size > 1
    assert loaded.model.dtype == torch.float32


@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_models_continue_chinese_whole_characters_only(name, capsys):
    text = load(name).generate_text(PROMPT, max_new_tokens=40, seed=0, stream=True)
    assert text.startswith(PROMPT)
    assert len(text) > len(PROMPT)
    assert capsys.readouterr().out == text + "\n"
    assert "\ufffd" not in text[:-1]  # the 40th token may end inside a character


# generate_text


@pytest.mark.parametrize("folder", ["mistral", "mixtral"])
@pytest.mark.parametrize(
    ("temperature", "top_p", "seed"), [(0.7, 0.9, 0), (0.7, 0.9, 1), (1.3, 1.0, 2), (1, 1, 3), (0.2, 0.5, 4)]
)
def test_the_text_is_what_generate_gives_for_the_seed(request, folder, temperature, top_p, seed):
    loaded = load(request.getfixturevalue(folder))
    text = loaded.generate_text(PROMPT, max_new_tokens=12, temperature=temperature, top_p=top_p, seed=seed)
    inputs = loaded.tokenizer(PROMPT, return_tensors="pt")
    options = {"max_new_tokens": 12, "do_sample": True, "temperature": float(temperature), "top_p": float(top_p)}

    def theirs(top_k):
        torch.manual_seed(seed)
        tokens = loaded.model.generate(**inputs, **options, top_k=top_k)
        return loaded.tokenizer.decode(tokens[0], skip_special_tokens=True)

    assert text == theirs(0)
    if temperature > 1:  # near-uniform over 259 tokens, so a cut to 50 shows
        assert text != theirs(50)


def test_temperature_zero_is_greedy_and_says_nothing(loaded, capfd, monkeypatch):
    inputs = loaded.tokenizer(PROMPT, return_tensors="pt")
    tokens = loaded.model.generate(**inputs, max_new_tokens=20, do_sample=False)
    greedy = loaded.tokenizer.decode(tokens[0], skip_special_tokens=True)
    monkeypatch.setattr(loaded.model.generation_config, "temperature", 0.6)  # as the config of Llama 2 has it
    capfd.readouterr()
    for top_p in (0.9, 0.1):
        assert loaded.generate_text(PROMPT, max_new_tokens=20, temperature=0, top_p=top_p) == greedy
    assert capfd.readouterr() == ("", "")


def test_a_seed_leaves_the_random_state_and_none_draws_from_it(loaded):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = loaded.generate_text(PROMPT, max_new_tokens=10, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.generate_text(PROMPT, max_new_tokens=10, seed=3) == first
    assert loaded.generate_text(PROMPT, max_new_tokens=10, seed=4) != first
    unseeded = loaded.generate_text(PROMPT, max_new_tokens=10)
    assert not torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert loaded.generate_text(PROMPT, max_new_tokens=10) == unseeded


def test_a_failure_gives_the_random_state_back(loaded, monkeypatch):
    def fail(*_, **__):
        torch.rand(1)
        raise MemoryError

    state = torch.get_rng_state()
    monkeypatch.setattr(loaded.model, "generate", fail)
    with pytest.raises(MemoryError):
        loaded.generate_text(PROMPT, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_stops_at_the_end_token_and_shows_no_special_token(loaded, monkeypatch):
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", list(range(259)))
    text = loaded.generate_text("hello", max_new_tokens=50, seed=0)
    assert (
        len(loaded.tokenizer(text)["input_ids"]) <= 1 + len("hello") + 3
    )  # one token; half a character decodes to three
    assert "<s>" not in text


@pytest.mark.parametrize("seed", range(4))
def test_what_is_streamed_is_the_text(loaded, capsys, seed):
    # An untrained model writes bytes that are no UTF-8, which is the hardest case: the text has U+FFFD in its midst.
    text = loaded.generate_text(PROMPT, max_new_tokens=30, temperature=1.0, seed=seed, stream=True)
    assert capsys.readouterr().out == text + "\n"
    assert loaded.generate_text(PROMPT, max_new_tokens=30, temperature=1.0, seed=seed) == text
    assert capsys.readouterr().out == ""


class Chunks(io.StringIO):
    def __init__(self):
        super().__init__()
        self.chunks = []

    def write(self, text):
        self.chunks.append(text)
        return len(text)


@pytest.mark.parametrize("make", [byte_tokenizer, fallback_tokenizer])
@pytest.mark.parametrize("text", ["ai 的未来是 open 。\nso we hope", "é😀 naïve 未来", "a  b \n c ", "\n\n的"])
def test_a_character_of_several_tokens_is_printed_once_and_whole(make, text, monkeypatch):
    tokenizer = make()
    monkeypatch.setattr(sys, "stdout", out := Chunks())
    printer = Printer(tokenizer)
    tokens = tokenizer(text)["input_ids"]
    printer.put(torch.tensor([tokens[:2]]))
    for token in tokens[2:]:
        printer.put(torch.tensor([token]))
    assert "".join(out.chunks) == text  # nothing waits for the end: each piece came with the token that completed it
    printer.end()
    monkeypatch.undo()
    assert "".join(out.chunks) == text + "\n"
    assert "\ufffd" not in "".join(out.chunks)
    assert max(len(chunk) for chunk in out.chunks) <= 2  # token by token, not word by word


def test_a_character_cut_off_by_the_end_is_shown_as_generate_shows_it(monkeypatch):
    tokenizer = byte_tokenizer()
    monkeypatch.setattr(sys, "stdout", out := Chunks())
    printer = Printer(tokenizer)
    tokens = tokenizer("是的")["input_ids"][:-1]
    printer.put(torch.tensor([tokens]))
    before_the_end = "".join(out.chunks)
    printer.end()
    monkeypatch.undo()
    assert before_the_end == "是"
    assert "".join(out.chunks) == tokenizer.decode(tokens, skip_special_tokens=True) + "\n" == "是\ufffd\n"


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"prompt": ""}, ValueError, "the prompt is empty"),
        ({"prompt": None}, TypeError, "prompt is a NoneType"),
        ({"prompt": ["a"]}, TypeError, "prompt is a list"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens is 0: expected at least 1"),
        ({"max_new_tokens": -5}, ValueError, "max_new_tokens is -5"),
        ({"max_new_tokens": 2.5}, TypeError, "max_new_tokens is 2.5: expected a whole number"),
        ({"max_new_tokens": True}, TypeError, "max_new_tokens is True"),
        ({"temperature": -0.1}, ValueError, "temperature is -0.1"),
        ({"temperature": float("nan")}, ValueError, "temperature is nan"),
        ({"temperature": float("inf")}, ValueError, "temperature is inf"),
        ({"temperature": 1e-40}, ValueError, "temperature is 1e-40: expected 0"),
        ({"seed": 2**70}, ValueError, "expected a number of 64 bits"),
        ({"temperature": "hot"}, TypeError, "temperature is 'hot': expected a number"),
        ({"top_p": 0.0}, ValueError, "top_p is 0.0"),
        ({"top_p": 1.01}, ValueError, "top_p is 1.01"),
        ({"top_p": float("nan")}, ValueError, "top_p is nan"),
        ({"top_p": None}, TypeError, "top_p is None"),
        ({"seed": 1.5}, TypeError, "seed is 1.5"),
    ],
)
def test_requests_outside_their_range_are_refused_in_one_line(loaded, wrong, kind, message):
    request = {"prompt": "a", **wrong}
    with pytest.raises(kind, match=message) as caught:
        loaded.generate_text(request.pop("prompt"), **request)
    assert "\n" not in str(caught.value)


# Precision and device


def test_four_bits_are_nf4_with_double_quantisation(mistral):
    model = load(mistral, bits=4).model
    linears = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(linears) == 7 * SIZES["num_hidden_layers"]
    for linear in linears:
        linear.unpack()
        assert linear.weight.quant_state.quant_type == "nf4"
        assert linear.weight.quant_state.nested
        assert linear.compute_dtype == torch.bfloat16
    assert not isinstance(model.lm_head, Linear4bit)
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert load(mistral, bits=4, dtype=torch.float16).model.model.layers[0].mlp.up_proj.compute_dtype == torch.float16


def test_eight_bits_are_int8(mistral):
    loaded = load(mistral, bits=8)
    linears = [module for module in loaded.model.modules() if isinstance(module, Linear8bitLt)]
    assert len(linears) == 7 * SIZES["num_hidden_layers"]
    assert all(linear.weight.dtype == torch.int8 for linear in linears)
    assert loaded.model.lm_head.weight.dtype == torch.float16
    assert loaded.generate_text("a", max_new_tokens=2, seed=0).startswith("a")


def test_a_mixture_in_eight_bits_is_refused(mixtral):
    with pytest.raises(NotImplementedError, match="bits=8 would leave its experts in 16 bits"):
        load(mixtral, bits=8)


def test_16_and_32_bits_are_dtypes(mistral):
    assert load(mistral, bits=16).model.dtype == torch.bfloat16
    assert load(mistral, bits=32).model.dtype == torch.float32
    assert load(mistral, bits=16, dtype="float16").model.dtype == torch.float16
    with pytest.raises(ValueError, match="bits is 32 and dtype is 'bfloat16': expected one of them, or two that agree"):
        load(mistral, bits=32, dtype="bfloat16")


def test_a_quantised_checkpoint_loads_as_it_is_and_not_twice(mistral, tmp_path):
    first = load(mistral, bits=4)
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path, dtype=torch.bfloat16).model
    assert isinstance(again.model.layers[0].mlp.up_proj, Linear4bit)
    assert load(tmp_path, bits=4, dtype=torch.bfloat16).generate_text("a", max_new_tokens=1, seed=0).startswith("a")
    with pytest.raises(ValueError, match="is quantised already"):
        load(tmp_path, bits=8)


@pytest.mark.parametrize("bits", [3, 64, "4", 0])
def test_other_bits_are_refused(mistral, bits):
    with pytest.raises(ValueError, match=f"bits is {bits!r}: expected 4, 8, 16, 32 or None"):
        load(mistral, bits=bits)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_the_gpu_decides_the_dtype_by_its_compute_capability(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # a T4 (7.5) says so too
    for bits in (None, 4):
        assert loader.choose_dtype(torch.device("cuda", 0), bits, PRESETS["mistral-7b-v0.1"]) == expected


def test_on_a_cpu_only_small_models_are_float32(mistral):
    cpu, small, large = torch.device("cpu"), ModelConfig.from_pretrained(mistral), PRESETS["mistral-7b-v0.1"]
    assert loader.choose_dtype(cpu, None, small) == torch.float32
    assert loader.choose_dtype(cpu, None, large) == torch.bfloat16
    for dtype in (torch.bfloat16, "bfloat16"):
        assert load(mistral, dtype=dtype).model.lm_head.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype is 'int8': expected torch.float32"):
        load(mistral, dtype="int8")


def test_without_a_device_a_gpu_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for there, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert loader.choose_device(None).type == kind
    with pytest.raises(RuntimeError, match="device is 'cuda:1', but PyTorch sees 1 such GPU here: use device='cpu'"):
        loader.choose_device("cuda:1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(mistral):
    with pytest.raises(RuntimeError, match="device is 'cuda', but PyTorch sees no such GPU here"):
        load(mistral, device="cuda")


@pytest.mark.parametrize("device", ["gpu", "meta", 3.5])
def test_an_unknown_device_is_refused(mistral, device):
    with pytest.raises(ValueError, match=f"device is {device!r}: expected 'cpu', 'cuda'"):
        load(mistral, device=device)


# Names and folders


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("tiny-mistrl", "tiny-mistral"),
        ("mixtral-8x7b", "mixtral-8x7b-v0.1"),
        ("Mistral-7B-v0.1", "mistral-7b-v0.1"),
        ("", None),
        ("zebra", None),
    ],
)
def test_an_unknown_name_brings_the_nearest_and_all_known_ones(name, near):
    with pytest.raises(ValueError, match="unknown model") as caught:
        load(name)
    message = str(caught.value)
    assert all(known in message for known in [*BUNDLED, *ALIASES])
    assert ("did you mean" in message and near in message.split(":")[0]) if near else "did you mean" not in message
    assert "\n" not in message


def test_aliases_stand_for_one_commit():
    for alias, (repo, commit) in ALIASES.items():
        assert alias == repo.split("/")[1].lower()
        assert len(commit) == 40
        assert set(commit) <= set("0123456789abcdef")
        assert (
            (locate(alias).repo, locate(alias).revision) == (locate(repo).repo, locate(repo).revision) == (repo, commit)
        )
    assert len(set(PINNED.values())) == len(ALIASES)
    assert locate("mistral-7b-v0.1", "main").revision == "main"
    assert locate("owner/name").revision == "main"
    other = locate("MistralAI/mistral-7b-v0.1")  # the hub reads names in any casing
    assert (other.repo, other.revision) == ALIASES["mistral-7b-v0.1"]


def test_a_folder_wins_over_a_hub_id_and_has_no_revision(mistral, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mistral, "owner/name")
    assert locate("owner/name").repo is None
    with pytest.raises(ValueError, match="only models on the hub have revisions"):
        load(mistral, revision="main")
    with pytest.raises(ValueError, match="only models on the hub have revisions"):
        load("tiny-mistral", revision="main")


@pytest.mark.parametrize("path", ["./nowhere", "~/no-such-folder", "a/b/c", Path("nowhere"), "/no/such/folder"])
def test_a_path_that_is_no_folder(path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        load(path)


def test_what_is_neither_name_nor_path(copy):
    with pytest.raises(TypeError, match="the model is 7: expected a name, a path or a hub id"):
        load(7)
    with pytest.raises(FileNotFoundError, match="is a file: expected the folder"):
        load(copy / "config.json")


def fails(folder, kind, *parts):
    with pytest.raises(kind) as caught:
        load(folder)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert all(part in message for part in parts), message
    assert "\n" not in message
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)  # one traceback, not two


def test_a_folder_without_config(copy):
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config.json in .*copy"):
        load(copy)


@pytest.mark.parametrize("size", [0, 4, 100, 20_000])
def test_a_truncated_weight_file(copy, size):
    os.truncate(copy / "model.safetensors", size)
    fails(copy, OSError, "model.safetensors is truncated or damaged", "copy or download it again")


def test_a_corrupt_weight_file(copy):
    with open(copy / "model.safetensors", "r+b") as file:
        file.seek(8)
        file.write(b"\xff" * 50)
    fails(copy, OSError, "model.safetensors is truncated or damaged")


@pytest.mark.parametrize("change", ["missing", "misshapen"])
def test_weights_that_do_not_fill_the_model(copy, change):
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    del tensors[name]
    if change == "misshapen":
        tensors[name] = torch.zeros(3, 3)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match=f"lacks 1 of the tensors .* {name} first: copy or download it again"):
        load(copy)


def test_a_shard_that_is_gone_or_cut(tmp_path):
    folder = save(tmp_path / "sharded", MistralConfig(**SIZES), max_shard_size="100KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    os.truncate(shard, 1000)
    fails(folder, OSError, f"{shard.name} is truncated or damaged")
    shard.unlink()
    fails(folder, FileNotFoundError, f"lacks {shard.name}")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1')
    fails(folder, OSError, "index.json is damaged")


def test_a_pickle_checkpoint_is_never_opened(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no model.safetensors in .*copy: weights are read from"):
        load(copy)
    # Opening this one would raise ZeroDivisionError.
    (copy / "pytorch_model.bin").write_bytes(b"c__builtin__\neval\n(S'1/0'\ntR.")
    with pytest.raises(FileNotFoundError, match=r"\(only pytorch_model.bin\): .* can run any code"):
        load(copy)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_tokenizer_that_is_gone_or_damaged(copy, content):
    (copy / "tokenizer_config.json").unlink()
    (copy / "tokenizer.json").unlink()
    if content:
        (copy / "tokenizer.json").write_text(content)
    fails(copy, OSError, "has no readable tokenizer", "expected tokenizer.json")


def test_no_code_of_a_checkpoint_is_run(copy):
    fields = json.loads((copy / "config.json").read_text())
    fields["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (copy / "config.json").write_text(json.dumps(fields))
    (copy / "evil.py").write_text("raise SystemExit('this was run')")
    assert type(load(copy).model).__name__ == "MistralForCausalLM"


# Memory


def test_what_cannot_fit_is_refused_before_a_download_with_what_fits(monkeypatch, no_network):
    config = PRESETS["mixtral-8x7b-v0.1"]
    monkeypatch.setattr(Source, "config_folder", lambda self: None)
    monkeypatch.setattr(quantising, "read_config", lambda folder: config.to_transformers())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=24 * 2**30))
    # What this process holds for other things makes no room.
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(rss=60 * 2**30))
    with pytest.raises(
        MemoryError, match=r"bfloat16, 512 tokens: weights 86\.99 .* does not fit\); the nearest"
    ) as caught:
        load("mixtral-8x7b-v0.1", device="cpu")
    assert "nf4-double, 512 tokens: weights 22.80" in str(caught.value)
    # In four bits weights are mapped: cache and overhead alone have to fit.
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**27))
    with pytest.raises(MemoryError, match="at no precision does it: choose a smaller model"):
        load("mixtral-8x7b-v0.1", bits=4, device="cpu")


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    ],
)
def test_running_out_of_memory_frees_what_was_taken_and_shows_the_plan(mistral, monkeypatch, failure):
    taken = []

    def fail(*_, **__):
        half_loaded = torch.nn.Linear(2, 2)
        taken.append(weakref.ref(half_loaded))
        raise failure

    monkeypatch.setattr(loader, "read_model", fail)
    with pytest.raises(
        MemoryError, match=r"ran out of memory while it was loaded \(float32, .* fits\); other programs"
    ):
        load(mistral)
    assert taken[0]() is None


def test_other_failures_of_torch_pass_through(mistral, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("something else")

    monkeypatch.setattr(loader, "read_model", fail)
    with pytest.raises(RuntimeError, match="^something else$"):
        load(mistral)


def test_a_long_prompt_is_read_in_chunks_and_answered_alike():
    loaded = load("tiny-mistral")
    prompt = "the road goes on and on " * 150
    (tokens,) = loaded.tokenizer(prompt, return_tensors="pt")["input_ids"]
    assert len(tokens) > 512
    whole = loaded.model.generate(tokens[None], max_new_tokens=8, do_sample=False)
    text = loaded.generate_text(prompt, max_new_tokens=8, temperature=0)
    assert text == loaded.tokenizer.decode(whole[0], skip_special_tokens=True)
