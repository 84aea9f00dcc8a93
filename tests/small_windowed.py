"""A model of two layers with a window of 4, for what lesson 3 measures."""

import torch
from transformers import MistralConfig, MistralForCausalLM

from mistral_lab import ModelConfig
from mistral_lab.loading.loaded import Loaded


def windowed(tokenizer) -> Loaded:
    """Random weights, with the tokenizer of the bundled models."""
    torch.manual_seed(0)
    shape = {"vocab_size": 2560, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    config = MistralConfig(**shape, num_attention_heads=4, num_key_value_heads=2, sliding_window=4, pad_token_id=2)
    model = MistralForCausalLM(config).eval()
    return Loaded(model, tokenizer, "small", ModelConfig.from_transformers(config))
