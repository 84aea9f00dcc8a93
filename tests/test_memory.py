import dataclasses
import math
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, MistralConfig, MixtralConfig

from mistral_lab.config import PRESETS, ModelConfig
from mistral_lab.memory import PRECISIONS, kv_cache_bytes, parameter_counts, weight_bytes

MISTRAL, MIXTRAL = PRESETS["mistral-7b-v0.1"], PRESETS["mixtral-8x7b-v0.1"]


def as_transformers(config: ModelConfig):
    fields = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden_dim,
        "tie_word_embeddings": config.tied_embeddings,
    }
    if config.num_experts:
        return MixtralConfig(
            **fields, num_local_experts=config.num_experts, num_experts_per_tok=config.num_experts_per_tok
        )
    return MistralConfig(**fields, sliding_window=config.sliding_window)


def meta_model(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def random_config(seed: int) -> ModelConfig:
    draw = random.Random(seed)
    n_kv_heads, experts = draw.choice([1, 2, 3]), draw.choice([None, 3, 8])
    return ModelConfig(
        vocab_size=draw.randrange(50, 500),
        dim=draw.randrange(3, 40) * 2,
        n_layers=draw.randrange(1, 5),
        n_heads=n_kv_heads * draw.choice([1, 2, 4]),
        n_kv_heads=n_kv_heads,
        head_dim=draw.randrange(2, 20) * 2,
        hidden_dim=draw.randrange(10, 200),
        norm_eps=1e-5,
        rope_theta=1e4,
        max_positions=512,
        tied_embeddings=seed % 2 == 0,
        num_experts=experts,
        num_experts_per_tok=experts and draw.randrange(1, experts + 1),
    )


def test_the_parts_of_mistral_and_mixtral():
    # By hand from the papers' tables: 32 layers, width 4096, 32 and 8 heads of 128, inner width 14336, 32000 pieces.
    assert parameter_counts(MISTRAL) == {
        "embedding": 131_072_000,
        "lm_head": 131_072_000,
        "attention": 1_342_177_280,
        "feed_forward": 5_637_144_576,
        "router": 0,
        "norms": 266_240,
    }
    assert parameter_counts(MISTRAL).total == parameter_counts(MISTRAL).active == 7_241_732_096
    mixtral = parameter_counts(MIXTRAL)
    assert (mixtral["feed_forward"], mixtral["router"]) == (45_097_156_608, 1_048_576)
    assert (mixtral.total, mixtral.active) == (46_702_792_704, 12_879_925_248)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_count_what_transformers_builds(name):
    preset = PRESETS[name]
    config = as_transformers(preset)
    if name.startswith("llama"):
        fields = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "sliding_window")}
        config = LlamaConfig(**fields)
    assert sum(p.numel() for p in meta_model(config).parameters()) == parameter_counts(preset).total


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes_count_what_transformers_builds_part_by_part(seed):
    config = random_config(seed)
    parts = dict.fromkeys(parameter_counts(config), 0)
    for name, parameter in meta_model(as_transformers(config)).named_parameters():
        part = next(
            part
            for key, part in {
                "embed_tokens": "embedding",
                "lm_head": "lm_head",
                "self_attn": "attention",
                "mlp.gate.": "router",
                "mlp.": "feed_forward",
                "norm": "norms",
            }.items()
            if key in name
        )
        parts[part] += parameter.numel()
    assert parts == parameter_counts(config)


def test_one_expert_of_a_mixture_more_a_token_is_one_more_that_works():
    three = dataclasses.replace(MIXTRAL, num_experts_per_tok=3)
    assert parameter_counts(three).active - parameter_counts(MIXTRAL).active == 32 * 3 * 4096 * 14_336
    assert (
        parameter_counts(dataclasses.replace(MIXTRAL, num_experts_per_tok=8)).active == parameter_counts(MIXTRAL).total
    )


@pytest.mark.parametrize(
    ("precision", "mistral", "mixtral"),
    [("bfloat16", 13.49, 86.99), ("int8", 6.99, 43.77), ("nf4", 4.15, 24.82), ("nf4-double", 3.84, 22.80)],
)
def test_the_gib_of_both_models(precision, mistral, mixtral):
    # Worked out apart from this package, from the published configs. Of the 43.77, 0.03 are row scales.
    assert round(weight_bytes(MISTRAL, precision) / 2**30, 2) == mistral
    assert round(weight_bytes(MIXTRAL, precision) / 2**30, 2) == mixtral


def test_float32_is_four_bytes_a_parameter():
    assert weight_bytes(MISTRAL, "float32") == 4 * 7_241_732_096


def test_an_unknown_precision_is_refused():
    with pytest.raises(
        ValueError, match="precision is 'int4': expected one of float32, bfloat16, int8, nf4, nf4-double"
    ):
        weight_bytes(MISTRAL, "int4")


@pytest.fixture(scope="module")
def odd_checkpoint(tmp_path_factory):
    # Inner width 90: the down matrix has 64·90 = 5,760 weights, the key matrix 1,024; neither fills 256 blocks of 64.
    folder = tmp_path_factory.mktemp("odd")
    config = MistralConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        intermediate_size=90,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("precision", ["int8", "nf4", "nf4-double"])
def test_quantised_bytes_are_what_bitsandbytes_holds(odd_checkpoint, precision):
    quantisation = BitsAndBytesConfig(
        load_in_8bit=precision == "int8",
        load_in_4bit=precision != "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=precision == "nf4-double",
    )
    model = AutoModelForCausalLM.from_pretrained(
        odd_checkpoint, quantization_config=quantisation, dtype=torch.bfloat16, device_map="cpu"
    )
    held = 0
    for parameter in model.parameters():
        held += parameter.numel() * parameter.element_size()
        if precision == "int8" and hasattr(parameter, "SCB"):
            held += parameter.SCB.numel() * parameter.SCB.element_size()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            held += state.absmax.numel() * state.absmax.element_size()
            held += state.state2.absmax.numel() * state.state2.absmax.element_size() if state.nested else 0
    assert held == weight_bytes(ModelConfig.from_pretrained(odd_checkpoint), precision)


def test_every_matrix_is_rounded_up_to_whole_blocks():
    tiny = dataclasses.replace(
        MISTRAL, vocab_size=1, dim=2, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=2, hidden_dim=3, sliding_window=None
    )
    # Four matrices of 4 weights and three of 6, each less than a block: payload 4·2 + 3·3; 7 absmax; 7 nested absmax.
    kept = 2 * (2 + 2 + 3 * 2)
    assert weight_bytes(tiny, "nf4") == kept + 17 + 7 * 4
    assert weight_bytes(tiny, "nf4-double") == kept + 17 + 7 + 7 * 4


def test_the_cache_of_both_models():
    assert kv_cache_bytes(MIXTRAL, 1) == 128 * 2**10
    assert kv_cache_bytes(MISTRAL, 4096) == kv_cache_bytes(MISTRAL, 32_768) == 2**29  # the window of 4,096 is full
    assert kv_cache_bytes(MIXTRAL, 32_768) == 8 * kv_cache_bytes(MISTRAL, 32_768)  # the paper's 8 times
    assert kv_cache_bytes(MISTRAL, 10, batch=3, bytes_per_value=4) == 6 * kv_cache_bytes(MISTRAL, 10)
    assert kv_cache_bytes(MISTRAL, 0) == 0


def test_the_cache_is_what_transformers_holds():
    config = dataclasses.replace(random_config(1), num_experts=None, num_experts_per_tok=None)
    model = AutoModelForCausalLM.from_config(as_transformers(config))
    cache = model(torch.zeros(2, 7, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == kv_cache_bytes(config, 7, batch=2, bytes_per_value=4)


@pytest.mark.parametrize("wrong", [{"tokens": -1}, {"tokens": 1, "batch": -2}, {"tokens": 1, "bytes_per_value": -1}])
def test_negative_amounts_are_refused(wrong):
    with pytest.raises(ValueError, match="expected 0 or more"):
        kv_cache_bytes(MISTRAL, **wrong)


def test_more_bits_are_more_bytes():
    ordered = ["nf4-double", "nf4", "int8", "bfloat16", "float32"]
    assert sorted(ordered) == sorted(PRECISIONS)
    sizes = [weight_bytes(MISTRAL, precision) for precision in ordered]
    assert sizes == sorted(sizes)
    assert math.isclose(sizes[0] / sizes[1], 0.51587 / 0.5625, rel_tol=0.02)  # the kept 16-bit parts blur it by 2 %
