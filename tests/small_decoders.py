"""Random decoders of a few thousand weights, in every kind that the lab reads, beside their twins of transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, MixtralConfig

from mistral_lab.checkpoints import BUNDLED
from mistral_lab.loading import load
from mistral_lab.transformer import Transformer

# The logits of these models are at most 4, where float32 has steps of 2e-7. A dozen operations per layer, in another
# order, leave differences of 1e-6. Whatever a test breaks on purpose differs by more than 1e-2.
CLOSE = {"rtol": 0, "atol": 1e-5}

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 160,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
MIXTURE = {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None}
IN_SHARDS, FUSED = {"max_shard_size": "6KB"}, {"save_original_format": False}

KINDS = {  # the config's class, what differs from SMALL, how it is saved
    "window": (MistralConfig, {"sliding_window": 7}, {}),
    "window of one": (MistralConfig, {"sliding_window": 1}, {}),
    "no window": (MistralConfig, {"sliding_window": None}, {}),
    "head_dim of its own": (MistralConfig, {"sliding_window": 9, "head_dim": 12}, {}),
    "no head_dim": (LlamaConfig, {"head_dim": None}, {}),
    "multi-head": (LlamaConfig, {"num_key_value_heads": 4}, {}),
    "multi-query, tied": (MistralConfig, {"num_key_value_heads": 1, "tie_word_embeddings": True}, {}),
    "another rotary base": (LlamaConfig, {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}, {}),
    "shards": (MistralConfig, {"sliding_window": 7}, IN_SHARDS),
    "mixture": (MixtralConfig, MIXTURE, {}),
    "mixture, window": (MixtralConfig, MIXTURE | {"sliding_window": 7}, {}),
    "mixture, one expert per token": (MixtralConfig, MIXTURE | {"num_experts_per_tok": 1}, {}),
    "mixture, all experts": (MixtralConfig, MIXTURE | {"num_experts_per_tok": 5}, {}),
    "mixture, fused": (MixtralConfig, MIXTURE, FUSED),
    "mixture, tied, shards": (MixtralConfig, MIXTURE | {"tie_word_embeddings": True}, IN_SHARDS),
    "mixture, fused, shards": (MixtralConfig, MIXTURE, FUSED | IN_SHARDS),
}


def random_model(config):
    """A transformers model whose weights, norms included, all make a difference."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
        else:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def pair(folder, family, changes, how):
    theirs = random_model(family(**SMALL | changes))
    theirs.save_pretrained(folder, **how)
    return Transformer.from_pretrained(folder), theirs


def bundled_pair(name):
    """A bundled model in float32, its twin of transformers without an end token, and their tokenizer."""
    theirs = load(name, dtype=torch.float32)
    theirs.model.generation_config.eos_token_id = None
    return Transformer.from_pretrained(name, dtype=torch.float32), theirs.model, theirs.tokenizer


def prompt(T, *, batch=2, V=SMALL["vocab_size"]):
    return torch.randint(1, V, (batch, T), generator=torch.Generator().manual_seed(T))


@torch.no_grad()
def logits_of(theirs, tokens):
    return theirs(tokens, use_cache=False).logits


def in_chunks(model, tokens, size):
    cache = model.new_cache(len(tokens))
    return torch.cat([model(chunk, cache) for chunk in tokens.split(size, dim=1)], dim=1)


def generate(theirs, tokens, new, *, mask=None, **how):
    """transformers' own, without its cache, which at a window of one keeps everything."""
    mask = torch.ones_like(tokens) if mask is None else mask.long()
    how = {"do_sample": False, "pad_token_id": 0} | how
    return theirs.generate(tokens, attention_mask=mask, max_new_tokens=new, use_cache=False, **how)


def one_line(pattern, kind=ValueError):
    return pytest.raises(kind, match=rf"\A[^\n]*{pattern}[^\n]*\Z")


# Fixtures. Each has another name than its function, which the files that use it import.


@pytest.fixture(scope="module", params=KINDS, name="models")
def every_kind(request, tmp_path_factory):
    return pair(tmp_path_factory.mktemp("kind"), *KINDS[request.param])


@pytest.fixture(scope="module", name="dense")
def dense_decoder(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("window"), *KINDS["window"])[0]


@pytest.fixture(scope="module", params=list(BUNDLED), name="bundled")
def every_bundled_model(request):
    return bundled_pair(request.param)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices this small gain nothing from a second thread, and on a busy machine wait for it at every product."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
