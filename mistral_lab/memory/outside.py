"""A mixture in 4 bits whose experts stay outside the device: where they lie, what moves per token, how fast at most.

The third outcome beside "fits" and "does not fit". A token needs few of the experts, so a device may hold a few of each
layer in slots, and bring a missing one from the computer's memory, or from the disk, when a token needs it. What that
costs is arithmetic: missing experts, their bytes, and the speed of the link.
"""

from dataclasses import dataclass

from ..arguments import check_count
from ..config import ModelConfig
from .fit import plan
from .speeds import Speeds
from .weights import check_precision, weight_parts

# From and to: of the experts that Mixtral 8x7B needed, the share that arXiv:2312.17238 found among the few in a layer
# that had been used last. `uniform_hit_rate` is the baseline to hold beside it.
PUBLISHED_HIT_RATES = (0.4, 0.6)


def expert_bytes(config: ModelConfig, precision: str) -> int:
    """Count the bytes of one expert of one layer, as they are moved: payload, absmax, nested absmax, tables.

    PyTorch rounds a pinned allocation up to a power of two: with codes and scales of each matrix pinned by themselves,
    an expert of Mixtral 8x7B takes 99 MiB of the computer's memory. That is not counted here.

    Args:
        config: the shape of a mixture.
        precision: one of `PRECISIONS`.

    Raises:
        ValueError: the model is dense, or the precision unknown.

    >>> from mistral_lab.config import PRESETS
    >>> round(expert_bytes(PRESETS["mixtral-8x7b-v0.1"], "nf4-double") / 2**20, 1)
    86.7
    """
    _check_mixture(config)
    experts = weight_parts(config, precision)["feed_forward"]
    return (experts.total + experts.tables) // (config.n_layers * config.num_experts)


def uniform_hit_rate(config: ModelConfig, slots: int) -> float:
    """Return the share of needed experts that are in their layer's slots if the router chose uniformly at random.

    Equation: slots / E

    Which experts the slots hold does not matter then, and so neither does the rule by which they are replaced. It is
    the baseline beside any measured rate: a router that repeats itself hits more often.

    Args:
        config: the shape of a mixture.
        slots: experts of each layer that the device holds at a time.

    Raises:
        ValueError: the model is dense, or has fewer experts than slots.

    >>> from mistral_lab.config import PRESETS
    >>> [uniform_hit_rate(PRESETS["mixtral-8x7b-v0.1"], slots) for slots in (2, 4)]
    [0.25, 0.5]
    """
    _check_mixture(config)
    if not 0 <= slots <= config.num_experts:
        raise ValueError(f"slots is {slots}: expected 0 to {config.num_experts}, the experts of a layer")
    return slots / config.num_experts


def experts_touched(config: ModelConfig, tokens: int) -> float:
    """Return how many experts of a layer a batch of tokens needs on average, if each token chose uniformly.

    Equation: E · (1 - (1 - A/E)^tokens)

    Args:
        config: the shape of a mixture.
        tokens: that pass through the layer together.

    >>> from mistral_lab.config import PRESETS
    >>> [round(experts_touched(PRESETS["mixtral-8x7b-v0.1"], tokens), 1) for tokens in (1, 4, 16)]
    [2.0, 5.5, 7.9]
    """
    _check_mixture(config)
    check_count("tokens", tokens)
    E, A = config.num_experts, config.num_experts_per_tok
    return E * (1 - (1 - A / E) ** tokens)


@dataclass(frozen=True)
class OutsidePlan:
    """Where the experts of a mixture lie, and what a decoded token costs; `str()` is one line that says it.

    Bytes that lie somewhere are exact but for the overhead, as in `Plan`. Bytes per token are expectations. Times are
    floors: the bytes at the speeds given, and nothing else. In a batch, "a token" is one token of every sequence.

    Args:
        precision, context, batch, device_bytes: as in `plan`.
        host_bytes: what the computer's memory has for experts; None on a CPU, whose memory is the device's.
        n_layers, num_experts: L and E.
        least_slots: experts per layer that the device must hold: A, those that one token needs.
        beside_bytes: everything but the experts: other weights, cache, overhead; on a card the spare places too.
        mapped_bytes: of those, the weights that a CPU maps from files as it does the experts; 0 on a card.
        expert_bytes: of one expert.
        slots: experts of each layer that a card holds at a time; 0 on a CPU, where the system keeps what was used last.
        in_memory_bytes: experts in the computer's memory, those among them of which a card's slots hold copies.
        on_disk_bytes: experts that lie on the disk alone, or on the disk and in a slot.
        hit_rate: the share of needed experts that are where they are needed, in a slot or, on a CPU, in memory.
        read_bytes: that the device reads from its memory per token.
        moved_bytes: that cross the link per token.
        disk_bytes: of those, or on a CPU, that come from the disk per token.
        speeds: with which times are computed.
    """

    precision: str
    context: int
    batch: int
    device_bytes: int
    host_bytes: int | None
    n_layers: int
    num_experts: int
    least_slots: int
    beside_bytes: int
    mapped_bytes: int
    expert_bytes: int
    slots: int
    in_memory_bytes: int
    on_disk_bytes: int
    hit_rate: float
    read_bytes: float
    moved_bytes: float
    disk_bytes: float
    speeds: Speeds

    @property
    def outcome(self) -> str:
        """Return "fits" where the device holds everything, otherwise "runs" or "does not run"."""
        on_cpu = self.host_bytes is None
        if (on_cpu and self.on_disk_bytes == 0) or self.slots == self.num_experts:
            return "fits"
        enough = self.own_bytes <= self.device_bytes if on_cpu else self.slots >= self.least_slots
        return "runs" if enough else "does not run"

    @property
    def own_bytes(self) -> int:
        """What no file holds and the disk cannot stand in for: everything but the experts, less what is mapped."""
        return self.beside_bytes - self.mapped_bytes

    @property
    def runs(self) -> bool:
        """Whether the model answers at all on this device."""
        return self.outcome != "does not run"

    @property
    def outside(self) -> int:
        """The experts of each layer that no slot holds; on a CPU all of them, because the system decides."""
        return self.num_experts - self.slots

    @property
    def times_s(self) -> dict[str, float]:
        """The least seconds per token that the device's memory, the link and the disk are busy."""
        link_s = self.moved_bytes / self.speeds.link_bytes_per_s if self.speeds.link_bytes_per_s else 0.0
        return {
            "memory": self.read_bytes / self.speeds.memory_bytes_per_s,
            "link": link_s,
            "disk": self.disk_bytes / self.speeds.disk_bytes_per_s,
        }

    @property
    def floor_s(self) -> float:
        """At least so many seconds per token, at this hit rate: the longest of the three times.

        While one expert is computed with, the next can be moved, and one more read from the disk. The most that this
        can gain is that only the longest of the three is felt.
        """
        return max(self.times_s.values())

    @property
    def in_turn_s(self) -> float:
        """The sum of the three times: what a token takes at these speeds if nothing is fetched ahead."""
        return sum(self.times_s.values())

    @property
    def tokens_per_s(self) -> float:
        """At most so many tokens per second, in each sequence; 0 where it does not run."""
        return 1 / self.floor_s if self.runs else 0.0

    def __str__(self) -> str:
        on_cpu, many = self.host_bytes is None, self.batch > 1
        start = f"{self.precision}, {self.context:,} tokens" + (f" in each of {self.batch} sequences" if many else "")
        device = f"{self.device_bytes / 2**30:.2f} GiB"
        rate = f"at most {rate_text(self.tokens_per_s)} tokens per second" + (" in each" if many else "")
        if self.outcome == "fits":
            return f"{start}: fits {device}, {rate}"
        if not self.runs:
            why = f"cache and overhead take {self.own_bytes / 2**30:.2f} GiB"
            if not on_cpu:
                why = f"everything but the experts takes {self.beside_bytes / 2**30:.2f} GiB"
                why += f", which leaves slots for {self.slots} of {self.num_experts} experts per layer"
                why += f": expected at least {self.least_slots}"
            return f"{start}: does not run on {device}, because {why}"
        where = f"{self.in_memory_bytes / 2**30:.1f} GiB in memory, {self.on_disk_bytes / 2**30:.1f} on disk"
        which = f"all experts mapped ({where})"
        if not on_cpu:
            which = f"{self.outside} of {self.num_experts} experts per layer outside (of all experts {where})"
        return f"{start}: runs on {device} with {which}, {rate} at {self.hit_rate:.0%} hits"


def plan_outside(
    config: ModelConfig,
    *,
    precision: str,
    context: int,
    batch: int = 1,
    device_bytes: int,
    host_bytes: int | None,
    speeds: Speeds,
    hit_rate: float | None = None,
) -> OutsidePlan:
    """Say whether a mixture runs on a device that cannot hold its experts, what lies where, and how fast at most.

    On a card, what is not an expert comes first: the other weights, cache and overhead as `plan` counts them, and
    max(2, A) spare places into which experts are brought while others are in use. What is left is divided into slots,
    as many for each layer. They hold copies: all experts lie in the computer's memory, or on disk where that is full.

    On a CPU all weights are mapped files, and the system keeps in memory what was used last. There are no slots; what
    is left of the memory holds a share of the experts, and that share is the hit rate. Where not even the rest fits,
    what is missing of it comes from the disk at every token.

    A decoded token reads the output layer, attention, routers, norms, its experts and the cache at this context from
    the device's memory; the missing experts cross the link, and those on disk come from there first. Reading a prompt
    is not planned here: each expert is then brought once per chunk.

    Args:
        config: the shape of a mixture.
        precision: "nf4" or "nf4-double".
        context, batch: as in `plan`.
        device_bytes: of the card; on a CPU, the memory that is free.
        host_bytes: of the computer's memory, what a card's experts may take; None on a CPU.
        speeds: of the machine, such as `SPEEDS["T4"]` or `LAPTOP`; without a link on a CPU.
        hit_rate: the share of needed experts found in their slots, as measured; None takes `uniform_hit_rate`.

    Raises:
        TypeError, ValueError: a dense model, a precision that is not in 4 bits, a count below 1, a share that is none,
            or a link without computer's memory beside the card and the other way round.

    >>> from mistral_lab.config import PRESETS
    >>> from mistral_lab.memory import DEVICES, LAPTOP, SPEEDS
    >>> mixtral, asked = PRESETS["mixtral-8x7b-v0.1"], {"precision": "nf4-double", "context": 512}
    >>> colab = {"device_bytes": DEVICES["T4"], "host_bytes": 10 * 2**30, "speeds": SPEEDS["T4"]}
    >>> print(plan_outside(mixtral, **asked, **colab))
    nf4-double, 512 tokens: runs on 15.00 GiB with 4 of 8 experts per layer outside
    (of all experts 10.0 GiB in memory, 11.7 on disk), at most 2.2 tokens per second at 50% hits
    >>> print(plan_outside(mixtral, **asked, device_bytes=16 * 2**30, host_bytes=None, speeds=LAPTOP))
    nf4-double, 512 tokens: runs on 16.00 GiB with all experts mapped (14.1 GiB in memory, 7.5 on disk),
    at most 1.7 tokens per second at 65% hits
    """
    _check_mixture(config)
    check_precision(precision)
    if not precision.startswith("nf4"):
        raise ValueError(f"precision is {precision!r}: expected nf4 or nf4-double, in which experts can stay outside")
    on_cpu = host_bytes is None
    if on_cpu != (speeds.link_bytes_per_s is None):
        raise ValueError(
            f"host_bytes is {host_bytes} and link_bytes_per_s {speeds.link_bytes_per_s}: expected both for a card, "
            "and None for both on a CPU"
        )
    if not on_cpu and host_bytes < 0:
        raise ValueError(f"host_bytes is {host_bytes}: expected 0 or more")
    if hit_rate is not None and not 0 <= hit_rate <= 1:
        raise ValueError(f"hit_rate is {hit_rate}: expected a share from 0 to 1")
    L, E, A = config.n_layers, config.num_experts, config.num_experts_per_tok
    whole = plan(config, precision=precision, context=context, batch=batch, device_bytes=device_bytes)
    one = expert_bytes(config, precision)
    every = L * E * one
    beside = whole.total_bytes - every
    if on_cpu:
        slots, in_memory = 0, min(max(device_bytes - beside, 0), every)
        on_disk = every - in_memory
        hits, from_disk = in_memory / every, 1.0
        others = [part for name, part in weight_parts(config, precision).items() if name != "feed_forward"]
        mapped = sum(part.total + part.tables for part in others)
    else:
        mapped, beside = 0, beside + (0 if whole.fits else max(2, A) * one)
        slots = E if whole.fits else min(max(device_bytes - beside, 0) // (L * one), E - 1)
        in_memory = 0 if whole.fits else min(every, host_bytes // one * one)
        on_disk = 0 if whole.fits else every - in_memory
        hits, from_disk = uniform_hit_rate(config, slots), on_disk / every
    if hit_rate is not None and not whole.fits:  # where everything is in its place, nothing is missing
        hits = hit_rate
    needed = L * experts_touched(config, batch) * one
    missing = (1 - hits) * needed
    return OutsidePlan(
        precision=precision,
        context=context,
        batch=batch,
        device_bytes=device_bytes,
        host_bytes=host_bytes,
        n_layers=L,
        num_experts=E,
        least_slots=A,
        beside_bytes=beside,
        mapped_bytes=mapped,
        expert_bytes=one,
        slots=slots,
        in_memory_bytes=in_memory,
        on_disk_bytes=on_disk,
        hit_rate=hits,
        read_bytes=_always_read(config, precision, batch) + whole.cache_bytes + needed,
        moved_bytes=0.0 if on_cpu else missing,
        disk_bytes=missing * from_disk + (max(0, beside - device_bytes) if on_cpu else 0),
        speeds=speeds,
    )


def bytes_for_slots(config: ModelConfig, slots: int, *, precision: str, context: int, batch: int = 1) -> int:
    """Return the least `device_bytes` with which `plan_outside` finds room for so many experts of each layer.

    Args:
        config: the shape of a mixture.
        slots: from A, the experts of one token, to E - 1: one more is the whole model.
        precision, context, batch: as in `plan_outside`.

    Raises:
        ValueError: a number of slots out of this range, or what `plan_outside` refuses.

    >>> from mistral_lab.config import PRESETS
    >>> least = bytes_for_slots(PRESETS["mixtral-8x7b-v0.1"], 2, precision="nf4-double", context=512)
    >>> round(least / 2**30, 1)
    7.5
    """
    _check_mixture(config)
    if not config.num_experts_per_tok <= slots < config.num_experts:
        raise ValueError(
            f"slots is {slots}: expected {config.num_experts_per_tok}, the experts of a token, to "
            f"{config.num_experts - 1}, one less than a layer has"
        )
    one = Speeds(1.0, 1.0, 1.0)
    asked = {"precision": precision, "context": context, "batch": batch}
    empty = plan_outside(config, **asked, device_bytes=1, host_bytes=0, speeds=one)
    return empty.beside_bytes + config.n_layers * slots * empty.expert_bytes


def rate_text(tokens_per_s: float) -> str:
    """Return a number of tokens per second with two digits, or with all in front of the point.

    >>> [rate_text(rate) for rate in (0.347, 1.42, 149.3)]
    ['0.35', '1.4', '149']
    """
    return f"{tokens_per_s:.0f}" if tokens_per_s >= 10 else f"{tokens_per_s:.2g}"


def _always_read(config: ModelConfig, precision: str, batch: int) -> int:
    """The bytes of all weights that every token reads: all but the experts, and of the embedding one row a sequence."""
    parts = weight_parts(config, precision)
    read = sum(part.total for name, part in parts.items() if name not in ("embedding", "feed_forward"))
    rows = parts["embedding"].total
    return read + (rows if config.tied_embeddings else 0) + batch * rows // config.vocab_size


def _check_mixture(config: ModelConfig) -> None:
    """Raise ValueError for a dense model."""
    if config.num_experts is None:
        raise ValueError("the model is dense: it has no experts that could stay outside; expected a mixture")
