import dataclasses
import json
import subprocess
import sys

import pytest
from transformers import AutoConfig, LlamaConfig, MistralConfig, MixtralConfig

from mistral_lab.config import PRESETS, ModelConfig

SMALL = ModelConfig(
    vocab_size=96,
    dim=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    hidden_dim=128,
    norm_eps=1e-5,
    rope_theta=1e4,
    max_positions=512,
)
# The file that huggingface.co/mistralai/Mistral-7B-v0.1 holds: no head_dim, rope_theta at the top.
MISTRAL_JSON = {
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}


def write(folder, fields):
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.dim = 128


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"n_heads": 6, "n_kv_heads": 4}, ValueError, "n_heads is 6 and n_kv_heads 4: n_heads must be a multiple"),
        ({"dim": -64}, ValueError, "dim is -64: expected at least 1"),
        ({"n_layers": 0}, ValueError, "n_layers is 0"),
        ({"vocab_size": 96.0}, TypeError, "vocab_size is 96.0: expected a whole number"),
        ({"n_heads": True}, TypeError, "n_heads is True"),
        ({"head_dim": 15}, ValueError, "head_dim is 15"),
        ({"sliding_window": 0}, ValueError, "sliding_window is 0"),
        ({"num_experts": 8}, ValueError, "num_experts is 8 and num_experts_per_tok None: give both"),
        ({"num_experts_per_tok": 2}, ValueError, "num_experts is None and num_experts_per_tok 2: give both"),
        ({"num_experts": 2, "num_experts_per_tok": 3}, ValueError, "only 2 experts"),
        ({"norm_eps": 0.0}, ValueError, "norm_eps is 0.0"),
        ({"rope_theta": float("nan")}, ValueError, "rope_theta is nan"),
        ({"tied_embeddings": "no"}, TypeError, "tied_embeddings is 'no'"),
        ({"max_positions": None}, TypeError, "max_positions is None"),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(change, kind, message):
    with pytest.raises(kind, match=message) as caught:
        dataclasses.replace(SMALL, **change)
    assert "\n" not in str(caught.value)


def test_group_size_is_query_heads_a_kv_head():
    assert [PRESETS[name].group_size for name in ("mistral-7b-v0.1", "llama-2-7b", "llama-2-70b")] == [4, 1, 8]


def test_the_published_mistral_config_is_the_preset(tmp_path):
    assert ModelConfig.from_pretrained(write(tmp_path, MISTRAL_JSON)) == PRESETS["mistral-7b-v0.1"]


def test_both_spellings_of_the_rotary_base_are_read(tmp_path):
    old = {**MISTRAL_JSON, "rope_theta": 1e6}
    new = {key: value for key, value in MISTRAL_JSON.items() if key != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    for fields in (old, new):
        assert ModelConfig.from_pretrained(write(tmp_path, fields)).rope_theta == 1e6


def test_a_transformers_4_config_object_is_read():
    class Old:  # what transformers 4 had: no rope_parameters
        model_type, vocab_size, hidden_size, num_hidden_layers = "mistral", 96, 64, 2
        num_attention_heads, num_key_value_heads, intermediate_size = 4, 2, 128
        rms_norm_eps, rope_theta, rope_scaling, max_position_embeddings = 1e-5, 1e4, None, 512
        tie_word_embeddings, sliding_window = False, None

    assert ModelConfig.from_transformers(Old()) == SMALL


def test_an_explicit_head_dim_wins_over_dim_by_heads():
    config = MistralConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    assert ModelConfig.from_transformers(config).head_dim == 32


def test_the_window_is_read_and_never_assumed(tmp_path):
    def window(**fields):
        return ModelConfig.from_pretrained(write(tmp_path, {**MISTRAL_JSON, **fields})).sliding_window

    assert window(sliding_window=64) == 64
    assert window(sliding_window=None) is None
    mixtral = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    assert window(**mixtral, sliding_window=None) is None
    assert window(model_type="llama", sliding_window=4096) is None  # Llama has none, whatever its file says


def test_a_missing_window_is_what_transformers_would_build(tmp_path):
    fields = {key: value for key, value in MISTRAL_JSON.items() if key != "sliding_window"}
    built = AutoConfig.from_pretrained(write(tmp_path, fields)).sliding_window
    assert ModelConfig.from_pretrained(tmp_path).sliding_window == built == 4096


@pytest.mark.parametrize("tied", [False, True])
def test_mixtral_and_llama_are_translated(tied):
    sizes = {
        "vocab_size": 96,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
    small = dataclasses.replace(SMALL, tied_embeddings=tied)
    assert ModelConfig.from_transformers(LlamaConfig(**sizes)) == small
    mixtral = MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=1)
    assert ModelConfig.from_transformers(mixtral) == dataclasses.replace(small, num_experts=4, num_experts_per_tok=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', expected one of mistral, mixtral, llama"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": 30}, "n_heads is 30"),
        ({"model_type": "llama", "attention_bias": True}, "biases"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
    ],
)
def test_files_that_describe_no_known_model_are_refused_in_one_line(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        ModelConfig.from_pretrained(write(tmp_path, {**MISTRAL_JSON, **fields}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_config_file_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json is not a JSON object"):
        ModelConfig.from_pretrained(tmp_path)


def test_a_folder_without_config_and_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json in"):
        ModelConfig.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        ModelConfig.from_pretrained(tmp_path / "nowhere")


def test_reading_a_preset_needs_no_torch():
    code = "import sys, mistral_lab.config as c; print(len(c.PRESETS), *{'torch', 'transformers'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "6\n"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_the_way_through_transformers(name):
    assert ModelConfig.from_transformers(PRESETS[name].to_transformers()) == PRESETS[name]
