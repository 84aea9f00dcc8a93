"""The bytes that training an adapter takes: predicted from shapes, and measured on the tensors themselves."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..arguments import check_count
from ..config import ModelConfig
from ..loading.loaded import Loaded
from ..memory.weights import attention_shapes, feed_forward_shapes
from .adapters import ATTENTION, DENSE, EXPERTS, target_names
from .compat import TorchDispatchMode, storage_key, tensors_in
from .tuning import training_mode

# Bytes per value: float32 for what is trained, 16 bits for the model's own arithmetic, 64 bits for indices.
WIDE, NARROW, INDEX = 4, 2, 8


@dataclass(frozen=True)
class TuningBytes:
    """What training holds beside the frozen weights, in bytes.

    Args:
        adapter: A and B in float32.
        gradients: one float32 for each parameter of the adapter.
        optimiser: AdamW's two float32 for each parameter, and a count of steps for each A and each B.
        activations: what the forward pass keeps for the gradients, at the moment when the loss is known.
    """

    adapter: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        """The bytes of all four."""
        return self.adapter + self.gradients + self.optimiser + self.activations


def trainable_parameters(config: ModelConfig, *, rank: int, targets: str | Sequence[str] = "attention") -> int:
    """Count the parameters of an adapter.

    Equation: the sum of rank · (in + out) over the matrices that have an adapter

    Source: arXiv:2106.09685, section 4.2.

    Args:
        config: the shape of the model.
        rank, targets: as in `add_adapter`.

    >>> from mistral_lab.config import PRESETS
    >>> mistral = PRESETS["mistral-7b-v0.1"]
    >>> trainable_parameters(mistral, rank=8), trainable_parameters(mistral, rank=8, targets="all")
    (6815744, 20971520)
    """
    check_count("rank", rank)
    return sum(rank * (rows + columns) * count for rows, columns, count in _matrices(config, targets))


def tuning_bytes(
    config: ModelConfig,
    *,
    rank: int,
    targets: str | Sequence[str] = "attention",
    batch: int,
    tokens: int,
    checkpointing: bool = False,
) -> TuningBytes:
    """Predict what training an adapter holds beside the weights.

    The P parameters of the adapter take 4·P bytes and their gradients 4·P. AdamW takes 8·P, and 4 more for
    each A and each B. Where the model computes in 16 bits (b = 2 bytes), the activations of one token are

        norms         2·L · (4·dim + 4)                   input in float32; 1 / root mean square
        attention     L · ((2·H·D + 2·K·D)·b + 4·H)       queries, keys, values, output; softmax sums
        feed-forward  L · 3·f·b                           gate, up, silu(gate); in a mixture A times
        routing       L · (A·(2·dim·b + 32) + 4·E + 4)    in a mixture: outputs, places, weights
        adapters      4 · (in + rank) for each matrix     its input in float32, and A x
        loss          4·V + 8                             log of the softmax, and the label

    Sequences of T tokens add 2·T·D·b for the angles of rotary positions, once per batch. Of the 2·L + 1 norms
    the first needs no gradient, so 2·L are counted. With checkpointing a token keeps only what enters each layer,
    L · dim · b, and the last norm and the loss; the angles and the positions come on top, once. The layer whose
    gradients are being computed holds its activations again; that is not counted.

    Source: arXiv:2305.14314 (activations outweigh the adapter); arXiv:1604.06174, section 3 (checkpointing); the
    forward passes of transformers 5.23.0 and PEFT 0.21.2.

    Args:
        config: the shape of the model.
        rank, targets: as in `add_adapter`.
        batch: sequences per step.
        tokens: tokens of each sequence, without padding.
        checkpointing: as in `tune`.

    Returns:
        bytes. They are exact where the model computes in 16 bits and attention needs no mask of its own, that is,
        without padding and with every text shorter than the window. Otherwise training takes somewhat more.
    """
    check_count("batch", batch)
    check_count("tokens", tokens)
    parameters = trainable_parameters(config, rank=rank, targets=targets)
    matrices = _matrices(config, targets)
    L, H, K, D = config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim
    norm, loss = WIDE * config.dim + WIDE, WIDE * config.vocab_size + INDEX
    once = tokens * 2 * D * NARROW + INDEX  # the angles; how many labels count
    once += INDEX if batch == 1 else 0  # the labels of a single sequence are shifted without a copy, so the first stays
    if checkpointing:
        per_token = L * config.dim * NARROW + norm + loss
        once += tokens * INDEX  # the positions, which a layer that is computed again needs
    else:
        attention = (2 * H * D + 2 * K * D) * NARROW + WIDE * H
        network = (config.num_experts_per_tok or 1) * 3 * config.hidden_dim * NARROW
        per_token = L * (2 * norm + attention + network) + loss
        per_token += sum(WIDE * (columns + rank) * seen for _, columns, seen in _matrices(config, targets, active=True))
        if config.num_experts:
            per_token += L * _routing_bytes(config)
    return TuningBytes(
        adapter=WIDE * parameters,
        gradients=WIDE * parameters,
        optimiser=2 * WIDE * parameters + 2 * WIDE * sum(number for *_, number in matrices),
        activations=batch * tokens * per_token + once,
    )


def _routing_bytes(config: ModelConfig) -> int:
    """The bytes that the routing of one layer keeps for one token.

    For each chosen expert: its output twice (before and after weighting), its place in two index tensors and in the
    router's choice, and its weight twice. For the router: its probabilities and their sum.
    """
    chosen = 2 * config.dim * NARROW + 3 * INDEX + 2 * WIDE
    return config.num_experts_per_tok * chosen + WIDE * config.num_experts + WIDE


def _matrices(config: ModelConfig, targets: str | Sequence[str], *, active: bool = False) -> list[tuple[int, int, int]]:
    """Rows, columns and number of the adapted matrices; `active` counts only those that a token goes through."""
    experts = (config.num_experts_per_tok if active else config.num_experts) or 1
    feed_forward = EXPERTS if config.num_experts else DENSE
    gate, up, down = feed_forward_shapes(config)
    shapes = dict(zip(ATTENTION, attention_shapes(config), strict=True))
    shapes |= dict(zip(feed_forward, (gate, down, up) if config.num_experts else (gate, up, down), strict=True))
    return [
        (*shapes[name], config.n_layers * (experts if name in feed_forward else 1))
        for name in target_names(config, targets)
    ]


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations have made and that still exist; views count once."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {storage_key(tensor.untyped_storage()) for tensor in tensors_in((args, kwargs))}
        for tensor in tensors_in(out):
            storage = tensor.untyped_storage()
            key = storage_key(storage)
            if key not in given and key not in self.live:
                self.live[key] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, key, None)
        return out

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that exist now."""
        return sum(self.live.values())


def measured_activation_bytes(loaded: Loaded, *, batch: int, tokens: int, checkpointing: bool = False) -> int:
    """Run one forward pass in training mode and add up the tensors that it keeps for the gradients.

    Args:
        loaded: what `add_adapter` returned.
        batch, tokens: the number of sequences and their length. The tokens are drawn evenly from the vocabulary, with a
            fixed seed.
        checkpointing: as in `tune`.

    Returns:
        bytes, the same on every machine with the same kernels.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(loaded.config.vocab_size, (batch, tokens), generator=generator).to(loaded.model.device)
    with training_mode(loaded.model, checkpointing=checkpointing):
        with LiveTensors() as made:
            loss = loaded.model(input_ids=drawn, labels=drawn).loss
            kept = made.nbytes
        loss.backward()  # releases what checkpointing holds
        loaded.model.zero_grad()
    return kept
