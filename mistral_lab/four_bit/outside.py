"""Mixtral on a device that is too small for its experts: they stay outside, and each is brought when it is needed.

Everything else lies on the device, and beside it slots for some experts: of each layer those that were used last.

    outside (pinned or mapped)      device
    layer 0:  0 1 2 3 4 5 6 7       attention, norms, routers, embedding, output
    layer 1:  0 1 2 3 4 5 6 7       layer 0:  [3] [5]      the cache, least recently used out
    ...                             layer 1:  [0] [4]
                                    ...
                                    spare:    [ ] [2]      being filled; holding a guess for the next layer

What an expert computes does not depend on where it was before, so the answers are those of the same device with all
experts on it, bit for bit.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from .experts import ExpertUse, FourBitExpert, FourBitExperts, experts_by_name
from .guess import guess_experts
from .linear import ExactLinear4bit
from .slots import Key, Slots, matrices_of

DECODING_TOKENS = 8  # a forward of so few tokens is taken for decoding: the next layer's experts are guessed
REPEATS = 5  # of each measured cost
WAYS = ("held", "guessed", "brought", "computed_outside")  # to an expert, as in `ExpertUse`


@dataclass(frozen=True)
class Costs:
    """Two ways to a missing expert, in seconds, measured with the expert in memory."""

    bring_s: float  # to bring it to the device
    compute_s: float  # to compute one token with it where it lies


class Outside:
    """What the layers of one model share: where experts are brought to, how many, and what that costs.

    Attributes:
        device: where the rest of the model lies.
        slots_per_layer, spare_slots: experts that each layer's cache holds, and slots beside all caches.
        costs: measured where `missing_on_cpu` was asked for, otherwise None.
        pinned: (layer, expert) of those that lie in pinned memory.
        pinned_bytes: what they take there, as PyTorch rounds it.
    """

    def __init__(self, device: torch.device, *, layers: int, slots_per_layer: int, num_experts_per_tok: int) -> None:
        self.device, self.layers, self.slots_per_layer = device, layers, slots_per_layer
        self.spare_slots = max(2, num_experts_per_tok)  # two at least: one is filled while the other computes
        self.costs: Costs | None = None
        self.pinned: tuple[Key, ...] = ()
        self.pinned_bytes = 0
        self._slots: Slots | None = None

    def __getstate__(self) -> dict:
        """Leave the slots out of a copy or a pickle: all that they hold is outside as well."""
        return self.__dict__ | {"_slots": None}

    def slots(self, like: FourBitExpert) -> Slots:
        """Return the slots, which a copy of a model makes at its first forward."""
        if self._slots is None:
            self._slots = Slots(
                like, layers=self.layers, per_layer=self.slots_per_layer, spare=self.spare_slots, device=self.device
            )
        return self._slots

    def drop_slots(self) -> None:
        """Free the slots."""
        self._slots = None

    @property
    def slot_bytes(self) -> int:
        """Bytes of all slots on the device; 0 in a copy that has not answered yet."""
        return 0 if self._slots is None else self._slots.nbytes

    @property
    def expert_bytes(self) -> int:
        """Bytes that bringing one expert moves, codes and scales; 0 in a copy that has not answered yet."""
        return 0 if self._slots is None else self._slots.expert_bytes

    def cheaper_outside(self, tokens: int) -> bool:
        """Whether computing so many tokens with an expert where it lies costs less than bringing it, as measured."""
        return self.costs is not None and tokens * self.costs.compute_s < self.costs.bring_s


class OutsideExperts(FourBitExperts):
    """The experts of a layer where they lie; those that are needed compute on the device, from a slot.

    Args:
        experts: of the layer.
        outside: what all layers share.
        layer: its number.
        next_layer: the next layer's router and experts; None for the last layer.
    """

    stays = True

    def __init__(
        self,
        experts: list[FourBitExpert],
        outside: Outside,
        layer: int,
        next_layer: tuple[torch.nn.Module, "OutsideExperts"] | None,
    ) -> None:
        super().__init__(experts)
        self.outside, self.layer = outside, layer
        self.next_layer = next_layer

    def in_turn(self, x: torch.Tensor, indices: torch.Tensor) -> Iterator[tuple[int, Callable]]:
        """Hand out the experts that are needed in ascending order, each from a slot, brought before if need be.

        At the end those that the next layer will need are guessed and brought, while a GPU still computes.
        """
        self._check(x)
        slots = self.outside.slots(self[0])
        rows, guess = self._choices(x, indices)
        # The last token's experts are the most recent ones, its first choice ahead of the others.
        order = list(dict.fromkeys(expert for row in reversed(rows) for expert in row))
        slots.touch(self.layer, order)
        needed = sorted(order)
        ways: dict[str, list[int]] = {way: [] for way in WAYS}
        for place, number in enumerate(needed):
            key, left = (self.layer, number), set(needed[place:])
            way = self._way(number, rows, slots)
            ways[way].append(number)
            if way == "computed_outside":
                yield number, partial(_where_it_lies, self[number])
                continue
            if way == "brought":
                slots.bring(key, self[number], keep={(self.layer, other) for other in left})
            slot = slots.table.find(key)
            slots.settle(key, left)
            slots.copies.wait(slot)
            yield number, slot.module
            slots.copies.done(slot)
        ahead = self._bring_ahead(guess, slots)
        if self.watched is not None:
            layer, uses = self.watched
            moved = (len(ways["brought"]) + len(ahead)) * slots.expert_bytes
            noted = {way: tuple(numbers) for way, numbers in ways.items()}
            uses.append(ExpertUse(layer, len(x), tuple(needed), **noted, ahead=ahead, moved_bytes=moved))

    def _check(self, x: torch.Tensor) -> None:
        if self.training or (torch.is_grad_enabled() and x.requires_grad):
            raise RuntimeError(
                "a model whose experts are outside cannot be trained: expected model.eval() and no gradients, "
                "or a device that holds all of the model"
            )
        if x.device != self.outside.device:
            raise ValueError(
                f"the model computes on {x.device}, its experts are brought to {self.outside.device}: "
                f"call keep_experts_outside(model, {str(x.device)!r}, slots_per_layer=...) after moving it"
            )

    def _choices(self, x: torch.Tensor, indices: torch.Tensor) -> tuple[list[list[int]], list[int]]:
        """Return each token's experts, and while decoding those guessed for the next layer, the likeliest first."""
        if self.next_layer is None or len(x) > DECODING_TOKENS or self.outside.cheaper_outside(1):
            return indices.tolist(), []
        A = indices.shape[1]
        both = torch.cat([indices, guess_experts(x, self.next_layer[0], A)], dim=1).tolist()  # Python waits once
        return [row[:A] for row in both], list(dict.fromkeys(row[A + choice] for choice in range(A) for row in both))

    def _way(self, number: int, rows: list[list[int]], slots: Slots) -> str:
        """Say how a needed expert is come by."""
        if (self.layer, number) in slots.table.held:
            return "held"
        if slots.table.find((self.layer, number)):
            return "guessed"
        tokens = sum(number in row for row in rows)
        if len(rows) <= DECODING_TOKENS and slots.full(self.layer) and self.outside.cheaper_outside(tokens):
            return "computed_outside"
        return "brought"

    def _bring_ahead(self, guess: list[int], slots: Slots) -> tuple[int, ...]:
        """Bring the guessed experts of the next layer that its cache lacks, as many as there are spare slots."""
        wanted = [expert for expert in guess if (self.layer + 1, expert) not in slots.table.held]
        wanted = wanted[: self.outside.spare_slots]
        keep = {(self.layer + 1, expert) for expert in wanted}
        missing = [expert for expert in wanted if slots.table.find((self.layer + 1, expert)) is None]
        for expert in missing:
            slots.bring((self.layer + 1, expert), self.next_layer[1][expert], keep=keep)
        return tuple(sorted(missing))


def keep_experts_outside(
    model: PreTrainedModel,
    device: torch.device | str,
    *,
    slots_per_layer: int,
    pinned_bytes: int = 0,
    missing_on_cpu: bool = False,
) -> Outside:
    """Have a 4-bit Mixtral on the CPU compute on a device that holds only some of its experts.

    The model is changed in place. All but its experts moves to the device. The experts stay parameters of the model
    where they lie, so what is saved is whole, and no later `to` moves them. The model can no longer be trained. Calling
    this again changes the device or the number of slots.

    The answers are bit for bit those of the same device with all experts on it, but where `missing_on_cpu` computes
    elsewhere. One forward runs at a time.

    Source: Eliseev and Mazur, arXiv:2312.17238, section 3; `missing_on_cpu`: Kamahori et al., arXiv:2402.07033.

    Args:
        model: with experts in 4 bits, all of it on the CPU; mapped from files or not.
        device: where it computes. On the CPU slots are copies in memory.
        slots_per_layer: experts of each layer that the device holds, from A (experts per token) on. Beside these it
            holds max(2, A) experts for all layers together.
        pinned_bytes: memory of the computer for pinned copies of experts, from which CUDA copies faster and without
            waiting. They take the place of the mapped ones. Other devices have no use for it.
        missing_on_cpu: while decoding, compute a missing expert on the CPU where that costs less than bringing it. Both
            costs are measured here, with the first expert. What the caches hold then changes only in prefill.

    Returns:
        what the layers share: bytes, pinned experts, measured costs.

    Raises:
        TypeError: a number of slots that is not a whole number.
        ValueError: too few slots, a model without experts in 4 bits, or experts that do not lie on the CPU.
        MemoryError, torch.OutOfMemoryError: from PyTorch, where the slots do not fit on the device; before anything is
            changed.
    """
    names, A = list(experts_by_name(model)), model.config.num_experts_per_tok
    _check_arguments(model, names, A, slots_per_layer)
    device = torch.empty(0, device=device).device  # with its index
    if (earlier := experts_outside(model)) is not None:
        earlier.drop_slots()  # their room is needed; should the new ones not fit, a forward makes them again
    outside = Outside(device, layers=len(names), slots_per_layer=slots_per_layer, num_experts_per_tok=A)
    first = model.get_submodule(names[0])[0]
    slots, following = outside.slots(first), None
    for layer, name in reversed(list(enumerate(names))):
        experts = OutsideExperts(list(model.get_submodule(name)), outside, layer, following)
        model.set_submodule(name, experts.train(model.training))
        following = model.get_submodule(f"{name.rpartition('.')[0]}.gate"), experts
    model.requires_grad_(False)
    if device.type != "cpu":
        model.waits_to_be_packed = False  # by the first forward, for a kernel of the CPU
        model.to(device)
    if device.type == "cuda":
        _pin(outside, [model.get_submodule(name) for name in names], pinned_bytes)
    if missing_on_cpu:
        outside.costs = _measure_costs(first, slots)
    return outside


def experts_outside(model: torch.nn.Module) -> Outside | None:
    """Return what `keep_experts_outside` returned for this model, or None where all experts lie on the device."""
    return next((module.outside for module in model.modules() if isinstance(module, OutsideExperts)), None)


def _check_arguments(model: PreTrainedModel, names: list[str], A: int, slots_per_layer: int) -> None:
    if not isinstance(slots_per_layer, int) or isinstance(slots_per_layer, bool):
        raise TypeError(f"slots_per_layer is {slots_per_layer!r}: expected a whole number")
    if slots_per_layer < A:
        raise ValueError(
            f"slots_per_layer is {slots_per_layer}: expected at least {A}, the experts that a token uses in each layer"
        )
    places = {str(weight.device) for name in names for weight in model.get_submodule(name).parameters()}
    if places != {"cpu"}:
        raise ValueError(f"the experts lie on {', '.join(sorted(places))}: expected all of them on cpu, to stay there")


def _where_it_lies(expert: FourBitExpert, x: torch.Tensor) -> torch.Tensor:
    return expert(x.to("cpu")).to(x.device)


def _measure_costs(expert: FourBitExpert, slots: Slots) -> Costs:
    """Time both ways to an expert; the first round, which may read it from disk or pack it, does not count."""
    slot, device = slots.table.spare[0][0], slots.device
    first = matrices_of(expert)[0]
    x = torch.zeros(1, first.in_features, dtype=first.compute_dtype, device=device)

    def bring() -> None:
        slots.copies.fill(slot, expert)
        slots.copies.wait(slot)
        slot.tensors[0].flatten()[0].item()  # which waits for all of it

    @torch.no_grad()
    def compute() -> None:
        _where_it_lies(expert, x)[0, 0].item()

    return Costs(_median_s(bring), _median_s(compute))


def _median_s(call: Callable[[], None]) -> float:
    times = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def choose_pinned(expert_bytes: list[int], *, layers: int, experts: int, budget: int) -> tuple[tuple[Key, ...], int]:
    """Choose which experts are copied to pinned memory: expert 0 of all layers, then expert 1, as long as they fit.

    PyTorch rounds each pinned allocation up to a power of two.

    Args:
        expert_bytes: of each tensor of an expert that is pinned.
        layers, experts: how many there are, and in each layer.
        budget: bytes.

    Returns:
        (layer, expert) of those chosen, and the bytes that they take.

    >>> choose_pinned([3, 5], layers=2, experts=2, budget=40)  # 4 + 8 bytes each
    (((0, 0), (1, 0), (0, 1)), 36)
    """
    each = sum(1 << (size - 1).bit_length() for size in expert_bytes)
    keys = [(layer, expert) for expert in range(experts) for layer in range(layers)]
    chosen = tuple(keys[: budget // each])
    return chosen, len(chosen) * each


def _pin(outside: Outside, layers: list[OutsideExperts], budget: int) -> None:
    """Move experts to pinned memory: codes and scales, not the tables, which are small."""
    sizes = [tensor.nbytes for matrix in matrices_of(layers[0][0]) for tensor in large_tensors(matrix)]
    chosen, wanted = choose_pinned(sizes, layers=len(layers), experts=len(layers[0]), budget=budget)
    done = 0
    for layer, expert in chosen:
        parts = matrices_of(layers[layer][expert])
        try:
            held = [[tensor.pin_memory() for tensor in large_tensors(part)] for part in parts]
        except RuntimeError:  # the system pins no more: the rest stays where it is, from where copies are slower
            break
        for matrix, (codes, absmax) in zip(parts, held, strict=True):
            exact = matrix.scales_before_packing or matrix.weight.quant_state
            matrix.weight.data, exact.absmax = codes, absmax
        done += 1
    outside.pinned, outside.pinned_bytes = chosen[:done], wanted // max(len(chosen), 1) * done


def large_tensors(matrix: ExactLinear4bit) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes of a matrix and its exact scales."""
    return matrix.weight.data, (matrix.scales_before_packing or matrix.weight.quant_state).absmax
