"""Write a checkpoint of real shape with seeded random weights, to test the large models without a download.

    python tools/full_size.py mistral-7b-v0.1 FOLDER              16 bits, 13.5 GiB
    python tools/full_size.py mixtral-8x7b-v0.1 FOLDER --bits 4   NF4 with double quantisation, 24 GB

One layer is made and written under the names of all layers. What a model computes with such weights means nothing, but
all shapes, sizes and names are those of the real model. The tokenizer is that of the bundled models. Its pieces are the
first of the vocabulary; the other tokens decode to nothing.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from mistral_lab import PRESETS, ModelConfig
from mistral_lab.checkpoints import locate
from mistral_lab.memory.weights import attention_shapes, feed_forward_shapes

SEED = 0
SCALE = 0.02  # standard deviation of every matrix, as in the initialisation of transformers
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of one layer, by their names on the hub without the prefix "model.layers.N."."""
    shapes: dict[str, tuple[int, ...]] = {
        f"self_attn.{letter}_proj.weight": shape for letter, shape in zip("qkvo", attention_shapes(config), strict=True)
    }
    shapes |= {"input_layernorm.weight": (config.dim,), "post_attention_layernorm.weight": (config.dim,)}
    gate, up, down = feed_forward_shapes(config)
    if config.num_experts is None:
        return shapes | {"mlp.gate_proj.weight": gate, "mlp.up_proj.weight": up, "mlp.down_proj.weight": down}
    shapes["block_sparse_moe.gate.weight"] = (config.num_experts, config.dim)
    for expert in range(config.num_experts):
        for matrix, shape in (("w1", gate), ("w2", down), ("w3", up)):
            shapes[f"block_sparse_moe.experts.{expert}.{matrix}.weight"] = shape
    return shapes


def end_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors before the first layer and after the last, by their names on the hub."""
    table = (config.vocab_size, config.dim)
    head = {} if config.tied_embeddings else {"lm_head.weight": table}
    return {"model.embed_tokens.weight": table, "model.norm.weight": (config.dim,)} | head


def tensor(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Make a matrix of normally distributed numbers, or the vector of ones of a norm, in bfloat16."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=SCALE, generator=generator)


def write(config: ModelConfig, folder: Path, *, bits: int) -> None:
    """Write one shard per layer, one for the tensors outside the layers, their index, the config and the tokenizer.

    Args:
        config: the shape of the model.
        folder: where to write. It is created where it is missing, and files with the same names are overwritten.
        bits: 16, or 4 for the form that `load(..., bits=4)` caches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(SEED)
    shards = config.n_layers + 1
    layer = {
        name: value
        for part, shape in tqdm(layer_shapes(config).items(), desc="Making one layer")
        for name, value in _stored(part, tensor(shape, generator), bits).items()
    }
    where, total = {}, 0
    for index in tqdm(range(shards), desc=f"Writing {folder.name}", unit="shard"):
        if index < config.n_layers:
            tensors = {f"model.layers.{index}.{name}": value for name, value in layer.items()}
        else:
            tensors = {name: tensor(shape, generator) for name, shape in end_shapes(config).items()}
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
        total += sum(value.nbytes for value in tensors.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    source = locate("tiny-mistral").path
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    fields = config.to_transformers().to_dict() | {"dtype": "bfloat16"}
    fields |= {"architectures": ["MistralForCausalLM" if config.num_experts is None else "MixtralForCausalLM"]}
    if bits == 4:
        from mistral_lab.four_bit import nf4_config

        fields["quantization_config"] = nf4_config().to_dict()
    _write_json(folder / "config.json", fields)


def _stored(name: str, value: torch.Tensor, bits: int) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint holds for one tensor of a layer."""
    if bits == 16:
        return {name: value}
    from mistral_lab.four_bit.checkpoint import MATRIX, quantized_tensors

    return quantized_tensors(name, value) if MATRIX.search(f".{name}") else {name: value}


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Write what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("model", choices=PRESETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=int, choices=(16, 4), default=16)
    options = parser.parse_args()
    write(PRESETS[options.model], options.folder, bits=options.bits)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: what is written so far is no whole checkpoint")
