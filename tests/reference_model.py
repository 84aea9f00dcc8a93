"""A whole decoder in float64 NumPy, on the tensors of a checkpoint. Shares no code with the package."""

import numpy as np
import reference
from safetensors.torch import load_file


def read(folder):
    """The tensors of a checkpoint, one file or many, in float64."""
    files = sorted(folder.glob("model*.safetensors"))
    return {name: tensor.double().numpy() for file in files for name, tensor in load_file(file).items()}


def rms_norm(x, weight, eps):
    return weight * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)


def feed_forward(x, gate, up, down):
    hidden = x @ gate.T
    return (hidden / (1 + np.exp(-hidden)) * (x @ up.T)) @ down.T


def mixture(x, weights, layer, experts, chosen):
    tokens = x.reshape(-1, x.shape[-1])
    moe = f"{layer}.block_sparse_moe"
    indices, shares = reference.route_top_k(tokens @ weights[f"{moe}.gate.weight"].T, chosen)
    gates, downs, ups = (
        np.stack([weights[f"{moe}.experts.{e}.{name}.weight"] for e in range(experts)]) for name in ("w1", "w2", "w3")
    )
    return reference.experts(tokens, indices, shares, gates, ups, downs).reshape(x.shape)


def logits(folder, config, tokens):
    """tokens (B, T) -> (B, T, V); config is the one of transformers."""
    weights = read(folder)
    B, T = tokens.shape
    D = config.head_dim or config.hidden_size // config.num_attention_heads
    theta, eps = config.rope_parameters["rope_theta"], config.rms_norm_eps
    mask = reference.window_mask(T, getattr(config, "sliding_window", None) or T)
    x = weights["model.embed_tokens.weight"][np.asarray(tokens)]
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}"
        normed = rms_norm(x, weights[f"{layer}.input_layernorm.weight"], eps)
        q, k, v = ((normed @ weights[f"{layer}.self_attn.{name}_proj.weight"].T).reshape(B, T, -1, D) for name in "qkv")
        q, k = (reference.rotate(each, range(T), theta) for each in (q, k))
        out = reference.attention(q, k, v, mask)[0].reshape(B, T, -1)
        x = x + out @ weights[f"{layer}.self_attn.o_proj.weight"].T
        normed = rms_norm(x, weights[f"{layer}.post_attention_layernorm.weight"], eps)
        if config.model_type == "mixtral":
            x = x + mixture(normed, weights, layer, config.num_local_experts, config.num_experts_per_tok)
        else:
            x = x + feed_forward(
                normed, *(weights[f"{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
            )
    x = rms_norm(x, weights["model.norm.weight"], eps)
    return x @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T
