"""Write a checkpoint of real shape with seeded random weights, to test the large models without a download.

    python tools/full_size.py mistral-7b-v0.1 FOLDER              16 bits, 13.5 GiB
    python tools/full_size.py mixtral-8x7b-v0.1 FOLDER --bits 4   NF4 with double quantisation, 26 GB

One layer is made and written under the names of all layers. What a model computes with such weights means nothing, but
all shapes, sizes and names are those of the real model. The tokenizer is that of the bundled models. Its pieces are the
first of the vocabulary; the other tokens decode to nothing.
"""

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from mistral_lab import PRESETS, ModelConfig
from mistral_lab.checkpoints import locate
from mistral_lab.files import write_aligned, write_index, write_json
from mistral_lab.transformer.shapes import checkpoint_shapes

SEED = 0
SCALE = 0.02  # standard deviation of every matrix, as in the initialisation of transformers
FIRST = "model.layers.0."
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of one layer, by their names on the hub without the prefix "model.layers.N."."""
    one = checkpoint_shapes(replace(config, n_layers=1))
    return {name.removeprefix(FIRST): shape for name, shape in one.items() if name.startswith(FIRST)}


def end_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors before the first layer and after the last, by their names on the hub."""
    one = checkpoint_shapes(replace(config, n_layers=1))
    return {name: shape for name, shape in one.items() if not name.startswith(FIRST)}


def tensor(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Make a matrix of normally distributed numbers, or the vector of ones of a norm, in bfloat16."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=SCALE, generator=generator)


def write(config: ModelConfig, folder: Path, *, bits: int, packed: bool | None = None) -> None:
    """Write one shard per layer, one for the tensors outside the layers, their index, the config and the tokenizer.

    Args:
        config: the shape of the model.
        folder: where to write. It is created where it is missing, and files with the same names are overwritten.
        bits: 16, or 4 for the form that `load(..., bits=4)` caches.
        packed: of 4 bits, whether the codes lie as the fused kernel of a CPU reads them; None: if this CPU has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(SEED)
    shards = config.n_layers + 1
    layer = {
        name: value
        for part, shape in tqdm(layer_shapes(config).items(), desc="Making one layer")
        for name, value in _stored(part, tensor(shape, generator), bits, packed).items()
    }
    files = []
    for index in tqdm(range(shards), desc=f"Writing {folder.name}", unit="shard"):
        if index < config.n_layers:
            tensors = {f"model.layers.{index}.{name}": value for name, value in layer.items()}
        else:
            tensors = {name: tensor(shape, generator) for name, shape in end_shapes(config).items()}
        files.append(f"model-{index + 1:05}-of-{shards:05}.safetensors")
        write_aligned(tensors, folder / files[-1], {"format": "pt"})
    write_index(folder, files)
    source = locate("tiny-mistral").path
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    fields = config.to_transformers().to_dict() | {"dtype": "bfloat16"}
    fields |= {"architectures": ["MistralForCausalLM" if config.num_experts is None else "MixtralForCausalLM"]}
    if bits == 4:
        from mistral_lab.four_bit import nf4_config

        fields["quantization_config"] = nf4_config().to_dict()
    write_json(folder / "config.json", fields)


def _stored(name: str, value: torch.Tensor, bits: int, packed: bool | None) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint holds for one tensor of a layer."""
    if bits == 16:
        return {name: value}
    from mistral_lab.four_bit import packed_for, quantized_tensors
    from mistral_lab.four_bit.shards import MATRIX

    packed = packed_for(torch.device("cpu")) if packed is None else packed
    return quantized_tensors(name, value, packed=packed) if MATRIX.search(f".{name}") else {name: value}


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
