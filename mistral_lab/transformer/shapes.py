"""The tensors of a checkpoint of any shape, by name, without a checkpoint."""

import torch

from ..config import ModelConfig
from .decoder import Transformer
from .weights import checkpoint_name


def checkpoint_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """List the tensors of a Mistral, Mixtral or Llama checkpoint, with one tensor per matrix of an expert.

    Returns:
        the shape of each tensor by its name in the checkpoint; without the output layer where it is the embedding.

    >>> from mistral_lab.config import PRESETS
    >>> checkpoint_shapes(PRESETS["mistral-7b-v0.1"])["model.layers.31.self_attn.k_proj.weight"]
    (1024, 4096)
    """
    with torch.device("meta"):  # shapes alone, which take no memory
        model = Transformer(config)
    return {checkpoint_name(name): tuple(weight.shape) for name, weight in model.named_parameters()}
