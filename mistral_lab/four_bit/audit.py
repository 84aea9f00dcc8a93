"""How many bits the parts of a model are held in: parameters and bytes, and whether four bits are four bits."""

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Params4bit

from .compat import quant_state

# Part of the model -> what the names of its parameters contain. The first that fits counts.
PARTS = {
    "experts": ".experts.",
    "router": ".mlp.gate.",
    "feed-forward": ".mlp.",
    "attention": ".self_attn.",
    "embedding": "embed_tokens.",
    "output": "lm_head.",
    "norms": "norm.",
}
SHOULD_BE_4_BIT = ("attention", "feed-forward", "experts")


@dataclass(frozen=True)
class AuditRow:
    """One part of a model in one precision.

    `parameters` counts weights, not bytes or packed values. `nbytes` holds the values and, where they are quantised,
    their scales (absmax, and the scales of the scales).
    """

    name: str
    parameters: int
    bits: int
    nbytes: int


@dataclass(frozen=True)
class Audit:
    """The parts of a model by precision; `str()` is the table with its verdict."""

    rows: tuple[AuditRow, ...]
    table_bytes: int  # code tables and offsets of quantised weights, each counted once
    rounded_bytes: int  # scales rounded for a CPU's kernel, which packed weights have beside the exact ones

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return sum(row.parameters for row in self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters with their scales as they were quantised, without tables and rounded scales."""
        return sum(row.nbytes for row in self.rows)

    @property
    def four_bit_share(self) -> float:
        """Share of the parameters that is in four bits."""
        return self._share(lambda row: row.bits == 4)

    @property
    def passed(self) -> bool:
        """Whether every weight matrix of attention, feed-forward networks and experts is in four bits."""
        return self.four_bit_share > 0 and not self._wide()

    @property
    def verdict(self) -> str:
        """Whether the audit is passed, and why, in one sentence."""
        wide = self._wide()
        if not wide and self.four_bit_share:
            return f"passed: {self.four_bit_share:.1%} of the parameters are in 4 bits, and all that should be"
        bits = max(row.bits for row in (wide.values() or self.rows))
        left = self._share(lambda row: row.bits == bits)
        parts = " and ".join(f"{row.name} ({row.parameters / self.parameters:.1%})" for row in wide.values())
        return f"failed: {left:.1%} of the parameters are still in {bits} bits; should be in 4: {parts}"

    def _wide(self) -> dict[str, AuditRow]:
        return {row.name: row for row in self.rows if row.name in SHOULD_BE_4_BIT and row.bits != 4}

    def _share(self, chosen) -> float:
        return sum(row.parameters for row in self.rows if chosen(row)) / max(self.parameters, 1)

    def __str__(self) -> str:
        lines = [f"{'part':<14}{'bits':>5}{'parameters':>17}{'share':>8}{'MiB':>12}"]
        for row in self.rows:
            share = row.parameters / max(self.parameters, 1)
            lines.append(f"{row.name:<14}{row.bits:>5}{row.parameters:>17,}{share:>8.1%}{row.nbytes / 2**20:>12,.2f}")
        lines.append(f"{'total':<14}{'':>5}{self.parameters:>17,}{1:>8.0%}{self.nbytes / 2**20:>12,.2f}")
        return "\n".join([*lines, self.verdict])


def audit(model: torch.nn.Module) -> Audit:
    """Count how many bits each part of a model is in, from the tensors that it holds and not from its config.

    Args:
        model: a Mistral, Mixtral or Llama model of transformers, on any device. On the meta device nothing is quantised
            yet; there the weight of a 4-bit layer counts as what it will be.

    Returns:
        a row for each part and precision, the largest first.

    >>> from mistral_lab import load
    >>> print(audit(load("tiny-mixtral").model).verdict)
    failed: 100.0% of the parameters are still in 32 bits; should be in 4: experts (69.1%) and attention (11.5%)
    """
    parameters, nbytes = defaultdict(int), defaultdict(int)
    tables: dict[int, int] = {}
    rounded = 0
    for name, parameter in model.named_parameters():
        state, stand_in = _states(model, name, parameter)
        key = _part(name), _bits(parameter, state)
        parameters[key] += parameter.numel() if state is None else math.prod(state.shape)
        nbytes[key] += _bytes_of(parameter, state, tables)
        rounded += 0 if stand_in is None else stand_in.absmax.nbytes
    rows = [AuditRow(part, parameters[part, bits], bits, nbytes[part, bits]) for part, bits in parameters]
    return Audit(tuple(sorted(rows, key=lambda row: -row.parameters)), sum(tables.values()), rounded)


def _part(name: str) -> str:
    dotted = f".{name}".replace(".block_sparse_moe.", ".mlp.")
    return next((part for part, piece in PARTS.items() if piece in dotted), "other")


def _states(model, name: str, parameter) -> tuple[QuantState | None, QuantState | None]:
    """bitsandbytes' state of a tensor as it was quantised, and, of a packed one, that with rounded scales."""
    state = quant_state(model, name, parameter)
    exact = getattr(model.get_submodule(name.rpartition(".")[0]), "scales_before_packing", None)
    return (state, None) if exact is None else (exact, state)


def _bits(parameter, state: QuantState | None) -> int:
    return 4 if state is not None or isinstance(parameter, Params4bit) else 8 * parameter.element_size()


def _bytes_of(parameter, state: QuantState | None, tables: dict[int, int]) -> int:
    """Count the bytes of one parameter with its scales, and add its tables to `tables`."""
    if state is None:
        if isinstance(parameter, Params4bit):
            return _four_bit_bytes(parameter)
        scales = getattr(parameter, "SCB", None)
        return parameter.nbytes + (0 if scales is None else scales.nbytes)
    nested = state.state2
    for table in (state.code, state.offset, None if nested is None else nested.code):
        if isinstance(table, torch.Tensor):
            tables[table.data_ptr()] = table.nbytes
    return parameter.nbytes + state.absmax.nbytes + (0 if nested is None else nested.absmax.nbytes)


def _four_bit_bytes(parameter: Params4bit) -> int:
    """Count what a weight that is not quantised yet will take: codes, scales, scales of the scales."""
    blocks = math.ceil(parameter.numel() / parameter.blocksize)
    scales = blocks + 4 * math.ceil(blocks / 256) if parameter.compress_statistics else 4 * blocks
    return math.ceil(parameter.numel() / 2) + scales
