"""Write a GGUF file of real shape with seeded random weights, so that llama.cpp can be timed without a download.

    python benchmarks/gguf_writer.py mistral-7b-v0.1 FILE                4.1 GB
    python benchmarks/gguf_writer.py mixtral-8x7b-v0.1 FILE --layers 1   0.9 GB; all layers take 26 GB

Each tensor has the type that llama.cpp's own quantiser gives it for Q4_0: Q6_K for the output layer, Q8_0 for the keys
and values of a mixture of eight experts, F32 for norms and routers, Q4_0 for all else. The codes are drawn at random in
that form, since no product takes longer for one code than for another. There is no vocabulary: the model is given token
ids. At most one tensor is in memory.
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from tqdm.auto import tqdm

from mistral_lab.config import PRESETS, ModelConfig
from mistral_lab.files import written_whole
from mistral_lab.transformer.shapes import checkpoint_shapes

SEED = 0
SCALE = 0.02  # standard deviation of every matrix, as in the initialisation of transformers

# What follows is of blocks as ggml-common.h of llama.cpp lays them out: where the factor of a block stands, a float16,
# and which numbers its codes stand for, all of them equally likely here.
FACTOR_AT = {GGMLQuantizationType.Q4_0: 0, GGMLQuantizationType.Q8_0: 0, GGMLQuantizationType.Q6_K: 208}
CODES = {GGMLQuantizationType.Q4_0: 2**4, GGMLQuantizationType.Q8_0: 2**8, GGMLQuantizationType.Q6_K: 2**6}
SUB_FACTORS = slice(192, 208)  # in a block of Q6_K, one int8 for 16 weights


def tensors(config: ModelConfig) -> dict[str, tuple[tuple[int, ...], GGMLQuantizationType]]:
    """List the tensors of a GGUF file: shape and type by name. The experts of a layer are one tensor per matrix.

    Args:
        config: the shape of the model.
    """
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.n_layers)
    found = {}
    for name, shape in checkpoint_shapes(config).items():
        merged = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        if merged != name:
            shape = (config.num_experts, *shape)
        name = names.get_name(merged, try_suffixes=(".weight",))
        found[name] = (shape, stored_type(name, shape, config))
    return found


def stored_type(name: str, shape: tuple[int, ...], config: ModelConfig) -> GGMLQuantizationType:
    """Choose the type of one tensor as llama.cpp's quantiser does for Q4_0 (`llama-quant.cpp`, version 0.3.36's)."""
    if len(shape) == 1 or ".ffn_gate_inp." in name:
        return GGMLQuantizationType.F32
    if name == "output.weight" and shape[-1] % 256 == 0:  # Q6_K has blocks of 256
        return GGMLQuantizationType.Q6_K
    if name == "output.weight" or (config.num_experts == 8 and re.search(r"\.attn_[kv]\.", name)):
        return GGMLQuantizationType.Q8_0
    return GGMLQuantizationType.Q4_0


def stored_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Count the bytes of a tensor in a file.

    >>> stored_bytes((2, 64), GGMLQuantizationType.Q4_0)
    72
    """
    block, size = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // block * size


def file_bytes(config: ModelConfig) -> int:
    """Count the bytes of all tensors of a model in GGUF."""
    return sum(stored_bytes(*each) for each in tensors(config).values())


def bytes_per_token(config: ModelConfig) -> int:
    """Count the bytes of weights that llama.cpp reads for one token: without the embedding and the idle experts."""
    share = (config.num_experts_per_tok or 1) / (config.num_experts or 1)
    read = {name: stored_bytes(*each) for name, each in tensors(config).items() if name != "token_embd.weight"}
    return sum(int(size * share) if "_exps." in name else size for name, size in read.items())


def drawn(shape: tuple[int, ...], kind: GGMLQuantizationType, random: np.random.Generator) -> np.ndarray:
    """Draw a tensor in its stored form; a norm, and what is not quantised, in float32.

    Returns:
        uint8 blocks, (bytes,), or float32 of the shape.
    """
    if len(shape) == 1:
        return np.ones(shape, dtype=np.float32)
    if kind == GGMLQuantizationType.F32:
        return random.normal(scale=SCALE, size=shape).astype(np.float32)
    (_, size), nbytes = GGML_QUANT_SIZES[kind], stored_bytes(shape, kind)
    eights = random.integers(2**64, size=-(-nbytes // 8), dtype=np.uint64)  # ten times as fast as byte by byte
    blocks = eights.view(np.uint8)[:nbytes].reshape(-1, size)
    std = ((CODES[kind] ** 2 - 1) / 12) ** 0.5  # of whole numbers that are drawn evenly
    blocks[:, FACTOR_AT[kind] : FACTOR_AT[kind] + 2] = np.array([SCALE / std], dtype=np.float16).view(np.uint8)
    if kind == GGMLQuantizationType.Q6_K:
        blocks[:, SUB_FACTORS] = 1
    return blocks.reshape(-1)


def write(config: ModelConfig, path: Path) -> None:
    """Write the file; it is there once it is whole.

    Args:
        config: the shape of a Mistral, Mixtral or Llama model.
        path: of the file, which is replaced where it exists.
    """
    listed = tensors(config)
    with written_whole(path) as unfinished:
        writer = gguf.GGUFWriter(unfinished, "llama")
        describe(writer, config)
        for name, (shape, kind) in listed.items():
            writer.add_tensor_info(name, shape, np.dtype(np.float32), stored_bytes(shape, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with tqdm(desc=f"Writing {path.name}", total=file_bytes(config), unit="B", unit_scale=True) as bar:
            for values in _all_drawn(listed):
                writer.write_tensor_data(values)
                bar.update(values.nbytes)
        writer.close()


def describe(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """Put the shape of a model into the file, and that it has no vocabulary."""
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.num_experts:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)


def _all_drawn(listed: dict[str, tuple[tuple[int, ...], GGMLQuantizationType]]) -> Iterator[np.ndarray]:
    random = np.random.default_rng(SEED)
    for shape, kind in listed.values():
        yield drawn(shape, kind, random)


def main() -> None:
    """Write what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("model", choices=PRESETS)
    parser.add_argument("path", type=Path, metavar="FILE")
    parser.add_argument("--layers", type=int, help="how many layers to write (default: all)")
    options = parser.parse_args()
    full = PRESETS[options.model]
    write(replace(full, n_layers=min(options.layers or full.n_layers, full.n_layers)), options.path)


if __name__ == "__main__":
    main()
