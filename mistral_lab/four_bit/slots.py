"""Room on the device for some of the experts of a model: slots, what they hold, and how an expert gets into one."""

import copy
from dataclasses import dataclass, field

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Params4bit

from .experts import FourBitExpert
from .kernel_layout import pack_codes, packed_scales, packed_state, unpack_codes
from .linear import ExactLinear4bit

Key = tuple[int, int]  # layer, expert


class Slot:
    """Room for one expert on the device, in the form that computes there.

    Args:
        like: an expert; all that are brought here have its shapes.
        device: where the slot lies.
    """

    def __init__(self, like: FourBitExpert, device: torch.device) -> None:
        first = like.w1
        with torch.device("meta"):
            self.module = FourBitExpert(
                first.in_features, first.out_features, like.activation, compute_dtype=first.compute_dtype,
                double=first.weight.compress_statistics,
            ).eval()  # fmt: skip
        self.device = device
        self.filled = self.used = None  # CUDA events: the copy into the slot, the last computation from it
        with torch.inference_mode(False):  # slots outlive a call under inference_mode
            for target, source in zip(matrices_of(self.module), matrices_of(like), strict=True):
                codes, state = _as_needed(source, device)
                room = _map_tensors(state, lambda tensor: torch.empty_like(tensor, device=device))
                target.fused_kernel = source.fused_kernel
                target.quant_state = room
                target.weight = Params4bit(
                    torch.empty_like(codes, device=device), requires_grad=False, quant_state=room,
                    quant_type=source.weight.quant_type, blocksize=room.blocksize, compress_statistics=room.nested,
                    bnb_quantized=True,
                )  # fmt: skip

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Codes and scales of all matrices."""
        return [
            tensor
            for matrix in matrices_of(self.module)
            for tensor in (matrix.weight.data, *_tensors(matrix.weight.quant_state))
        ]

    @property
    def nbytes(self) -> int:
        """Bytes that the slot takes; bringing an expert moves as many."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @torch.no_grad()
    def take(self, expert: FourBitExpert) -> None:
        """Copy an expert into the slot. Whatever stops this, the slot then holds no expert."""
        for target, source in zip(matrices_of(self.module), matrices_of(expert), strict=True):
            codes, state = _as_needed(source, self.device)
            # As bytes: copying between dtypes would convert, and other shapes must fail.
            target.weight.data.view(torch.uint8).view(-1).copy_(codes.view(torch.uint8).view(-1), non_blocking=True)
            for room, tensor in zip(_tensors(target.weight.quant_state), _tensors(state), strict=True):
                room.copy_(tensor, non_blocking=True)


def matrices_of(expert: FourBitExpert) -> list[ExactLinear4bit]:
    """List the 4-bit matrices of an expert, in one order for all experts."""
    return [module for module in expert.modules() if isinstance(module, ExactLinear4bit)]


def _as_needed(source: ExactLinear4bit, device: torch.device) -> tuple[torch.Tensor, QuantState]:
    """Return codes and state of a matrix in the form that `device` computes from; `source` stays as it is.

    That form is packed where the fused CPU kernel computes, and plain everywhere else. Codes that lie packed and are
    needed plain are moved first and unpacked there, where that is faster.
    """
    weight, state = source.weight.data, source.weight.quant_state
    if device.type == "cpu" and source.fused_kernel:
        if source.packed:
            return weight, state
        return pack_codes(weight.view(torch.uint8), state.shape), packed_state(state, packed_scales(state))
    if not source.packed:
        return weight, state
    dtype, shape = source.stored_as
    codes = unpack_codes(weight.to(device, non_blocking=True)).view(dtype).view(shape)
    return codes, source.scales_before_packing


def _tensors(state: QuantState) -> list[torch.Tensor]:
    nested = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return [state.absmax, state.code, *nested]


def _map_tensors(state: QuantState, change) -> QuantState:
    """Copy a state with other tensors."""
    made = copy.copy(state)
    made.absmax, made.code = change(state.absmax), change(state.code)
    if state.nested:
        made.offset, made.state2 = change(state.offset), copy.copy(state.state2)
        made.state2.absmax, made.state2.code = change(state.state2.absmax), change(state.state2.code)
    return made


class Copies:
    """Copies into slots, each done when `fill` returns."""

    def add(self, slot: Slot) -> None:
        """Prepare a new slot."""

    def fill(self, slot: Slot, expert: FourBitExpert) -> None:
        """Bring an expert into a slot."""
        slot.take(expert)

    def wait(self, slot: Slot) -> None:
        """Have what is computed from now on see what `fill` brought."""

    def done(self, slot: Slot) -> None:
        """Note that all computation from a slot has been started: it may be filled again after that."""


class StreamCopies(Copies):
    """Copies on a second CUDA stream, beside the computation.

    Two waits keep them apart: the computation waits until the slot that it reads is filled, and a copy waits until the
    last computation from its slot is through. Copies follow one another in the order of `fill`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def add(self, slot: Slot) -> None:
        """Let the memory of a slot be reused only after the copies into it, and fill it only after it was allocated."""
        for tensor in slot.tensors:
            tensor.record_stream(self.stream)
        self.done(slot)

    def fill(self, slot: Slot, expert: FourBitExpert) -> None:
        """Start to bring an expert into a slot."""
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(slot.used)
            slot.take(expert)
            slot.filled = self.stream.record_event()

    def wait(self, slot: Slot) -> None:
        """Have the computation wait for the copy; Python does not wait."""
        torch.cuda.current_stream(self.device).wait_event(slot.filled)

    def done(self, slot: Slot) -> None:
        """Note the place in the computation after which the slot is free."""
        slot.used = torch.cuda.current_stream(self.device).record_event()


@dataclass(frozen=True)
class Table:
    """Which slot holds which expert.

    It is replaced as a whole and never changed, so that an interruption finds the old table or the new one.
    """

    held: dict[Key, Slot] = field(default_factory=dict)  # in their layer's cache
    spare: tuple[tuple[Slot, Key | None], ...] = ()  # in no layer's cache, with what they hold; the oldest first

    def find(self, key: Key) -> Slot | None:
        """Return the slot that holds an expert."""
        return self.held.get(key) or next((slot for slot, content in self.spare if content == key), None)


class Slots:
    """The slots of a model: each layer's cache of the experts that were used last, and spare ones for all layers.

    An expert is brought into a spare slot. When it is used, that slot joins the cache of its layer, and the slot of the
    expert that leaves the cache becomes spare. At first all slots are spare.

    Args:
        like: an expert.
        layers: number of layers with experts.
        per_layer: experts that each layer's cache holds.
        spare: slots beside the caches.
        device: where the slots lie.
    """

    def __init__(self, like: FourBitExpert, *, layers: int, per_layer: int, spare: int, device: torch.device) -> None:
        self.per_layer, self.device = per_layer, device
        self.copies = StreamCopies(device) if device.type == "cuda" else Copies()
        slots = [Slot(like, device) for _ in range(layers * per_layer + spare)]
        for slot in slots:
            self.copies.add(slot)
        self.expert_bytes = slots[0].nbytes
        self.nbytes = self.expert_bytes * len(slots)
        self.table = Table(spare=tuple((slot, None) for slot in slots))
        self.recency: list[list[int]] = [[] for _ in range(layers)]  # experts of each layer, the last used first

    def full(self, layer: int) -> bool:
        """Whether the cache of a layer is full."""
        return sum(place == layer for place, _ in self.table.held) == self.per_layer

    def touch(self, layer: int, order: list[int]) -> None:
        """Note which experts of a layer are used now, the one that is used last first."""
        self.recency[layer] = order + [expert for expert in self.recency[layer] if expert not in order]

    def bring(self, key: Key, expert: FourBitExpert, *, keep: set[Key]) -> Slot:
        """Copy an expert into a spare slot: an empty one, or else the oldest, of another expert than those to `keep`.

        Where each spare slot holds an expert to keep, the oldest is taken all the same.
        """
        spare = self.table.spare
        slot = min(range(len(spare)), key=lambda place: (spare[place][1] is not None, spare[place][1] in keep, place))
        slot, others = spare[slot][0], spare[:slot] + spare[slot + 1 :]
        self.table = Table(self.table.held, (*others, (slot, None)))  # while it is filled, it holds nothing
        self.copies.fill(slot, expert)
        self.table = Table(self.table.held, (*others, (slot, key)))
        return slot

    def settle(self, key: Key, needed: set[int]) -> None:
        """Give the slot of an expert that was brought its place in the cache of its layer, unless it has it already.

        Where the cache is full, the expert that was used least recently leaves it, but none that is still `needed`. If
        that leaves nobody who was used less recently than the expert that was brought, its slot stays spare and empty.
        """
        layer, number = key
        held, spare = self.table.held, self.table.spare
        if key in held:
            return
        slot = self.table.find(key)
        others = tuple(entry for entry in spare if entry[0] is not slot)
        cached = [expert for expert in self.recency[layer] if (layer, expert) in held]  # the last used first
        if len(cached) < self.per_layer:
            self.table = Table(held | {key: slot}, others)
            return
        older = self.recency[layer][self.recency[layer].index(number) + 1 :]
        leaving = next((expert for expert in reversed(cached) if expert in older and expert not in needed), None)
        if leaving is None:
            self.table = Table(held, (*others, (slot, None)))
            return
        rest = {place: other for place, other in held.items() if place != (layer, leaving)}
        self.table = Table(rest | {key: slot}, (*others, (held[layer, leaving], None)))
