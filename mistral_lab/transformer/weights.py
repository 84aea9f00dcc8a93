"""Reading the weights of a checkpoint: memory-mapped, renamed to the names used here, and checked for their shapes."""

import re
from collections.abc import Collection, Iterator, Mapping

import torch
from safetensors import safe_open

from ..checkpoints import locate
from ..files import weight_files

# The parameters of `Transformer`, and the name of each in a checkpoint. {} is the layer, then the expert.
CHECKPOINT_NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "layers.{}.attention_norm": "model.layers.{}.input_layernorm.weight",
    "layers.{}.attention.wq": "model.layers.{}.self_attn.q_proj.weight",
    "layers.{}.attention.wk": "model.layers.{}.self_attn.k_proj.weight",
    "layers.{}.attention.wv": "model.layers.{}.self_attn.v_proj.weight",
    "layers.{}.attention.wo": "model.layers.{}.self_attn.o_proj.weight",
    "layers.{}.feed_forward_norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.feed_forward.gate": "model.layers.{}.mlp.gate_proj.weight",
    "layers.{}.feed_forward.up": "model.layers.{}.mlp.up_proj.weight",
    "layers.{}.feed_forward.down": "model.layers.{}.mlp.down_proj.weight",
    "layers.{}.feed_forward.router.weight": "model.layers.{}.block_sparse_moe.gate.weight",
    "layers.{}.feed_forward.experts.{}.gate": "model.layers.{}.block_sparse_moe.experts.{}.w1.weight",
    "layers.{}.feed_forward.experts.{}.up": "model.layers.{}.block_sparse_moe.experts.{}.w3.weight",
    "layers.{}.feed_forward.experts.{}.down": "model.layers.{}.block_sparse_moe.experts.{}.w2.weight",
    "norm": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def checkpoint_name(name: str) -> str:
    """The name that a parameter of `Transformer` has in a checkpoint.

    >>> checkpoint_name("layers.3.attention.wq")
    'model.layers.3.self_attn.q_proj.weight'
    """
    return CHECKPOINT_NAMES[re.sub(r"\d+", "{}", name)].format(*re.findall(r"\d+", name))


def read_weights(
    path, shapes: Mapping[str, tuple[int, ...]], *, optional: Collection[str], dtype: torch.dtype | None, device
) -> dict[str, torch.Tensor]:
    """Map the weight files of a checkpoint, and convert the tensors that are not of the wanted dtype and device.

    Args:
        path: a bundled name, a folder, or a hub id.
        shapes: the shape of every parameter that the model needs, by its name here.
        optional: names among them that may be absent.
        dtype: None is that of the checkpoint's embedding.
        device: None is the CPU.

    Returns:
        the tensors by their names here. A tensor that needed no conversion is a view of its file, not yet read.

    Raises:
        FileNotFoundError: no such folder, or a weight file is missing.
        OSError: a weight file is damaged, or tensors are missing, surplus or of another shape; all are named.
        ValueError: a dtype or device that PyTorch cannot compute with here.
    """
    tensors = dict(_stored(locate(path).folder()))
    stored_as = {checkpoint_name(name): name for name in shapes}
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(shapes[ours])}"
        for name, ours in stored_as.items()
        if name in tensors and tensors[name].shape != shapes[ours]
    ]
    faults = {
        "missing": [name for name, ours in stored_as.items() if name not in tensors and ours not in optional],
        "surplus": [name for name in tensors if name not in stored_as],
        "of another shape": misshapen,
    }
    found = "; ".join(f"{len(names)} {fault}: {', '.join(names)}" for fault, names in faults.items() if names)
    if found:
        raise OSError(f"{path} has not the tensors that its config.json asks for ({found}): copy or download it again")
    dtype = dtype or tensors[checkpoint_name("embedding.weight")].dtype
    dtype, device = _check_target(dtype, "cpu" if device is None else device)
    return {stored_as[name]: tensor.to(device, dtype) for name, tensor in tensors.items()}


def _stored(folder) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a checkpoint with its name there, and the experts of a layer one by one."""
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as stored:
            names = stored.keys()
            for name in names:
                if not name.endswith(".rotary_emb.inv_freq"):  # in old Llama checkpoints; the config implies it
                    yield from _one_by_one(name, stored.get_tensor(name))


def _one_by_one(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the experts of a layer as views where they share a tensor, as in transformers 5; other tensors as they are.

    Published Mixtral checkpoints have one tensor per expert and projection. `save_pretrained` writes that form too,
    unless it is called with `save_original_format=False`.
    """
    layer, _, fused = name.partition(".mlp.experts.")
    layer += ".block_sparse_moe.experts"
    if fused == "gate_up_proj" and tensor.ndim == 3:
        for number, expert in enumerate(tensor):
            rows = expert.shape[0] // 2
            yield f"{layer}.{number}.w1.weight", expert[:rows]
            yield f"{layer}.{number}.w3.weight", expert[rows:]
    elif fused == "down_proj" and tensor.ndim == 3:
        for number, expert in enumerate(tensor):
            yield f"{layer}.{number}.w2.weight", expert
    else:
        yield name.replace(".mlp.gate.", ".block_sparse_moe.gate."), tensor


def _check_target(dtype, device) -> tuple[torch.dtype, torch.device]:
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: expected one of {', '.join(map(str, DTYPES))}")
    # Missing CUDA raises an AssertionError, missing MPS a NotImplementedError, an unknown name a RuntimeError.
    try:
        device = torch.device(device)
        (torch.ones(2, 2, device=device) @ torch.ones(2, 2, device=device)).softmax(dim=-1)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):
        raise ValueError(f"device is {str(device)!r}: PyTorch cannot compute there; expected 'cpu', say") from None
    try:
        (torch.ones(2, 2, dtype=dtype, device=device) @ torch.ones(2, 2, dtype=dtype, device=device)).softmax(dim=-1)
    except (RuntimeError, NotImplementedError, TypeError):
        raise ValueError(f"dtype is {dtype}, which {device} cannot compute with: expected torch.float32, say") from None
    return dtype, device
