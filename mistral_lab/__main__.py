"""`python -m mistral_lab`: this machine, which models fit it or run all the same, and what is slow here."""

import argparse
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

import psutil
import torch

from .checkpoints import BUNDLED
from .config import PRESETS, ModelConfig
from .measure import instructions, measure_bandwidth, processor
from .memory import (
    DEVICES,
    LAPTOP,
    PRECISIONS,
    SPEEDS,
    OutsidePlan,
    Speeds,
    free_bytes,
    largest_context,
    plan,
    plan_outside,
    rate_text,
    speeds_of,
    total_bytes,
)

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """A place for a model, the bytes that it has, and what is known of experts that stay outside it.

    Args:
        name: for the headings.
        memory_bytes: its own.
        speeds: None where they are not known, and nothing can be said of experts outside.
        host_bytes: of the computer's memory, what a card's experts may take; None for a CPU.
    """

    name: str
    memory_bytes: int
    speeds: Speeds | None
    host_bytes: int | None


class _Parser(argparse.ArgumentParser):
    """argparse prints its usage before an error; here an error is one sentence."""

    def error(self, message: str) -> None:
        self.exit(2, f"error: {message}; --help lists the options\n")


def gpus() -> dict[Device, tuple[int, int]]:
    """Return every CUDA card with its compute capability."""
    found = {}
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        size = total_bytes(torch.device("cuda", index))
        device = Device(f"{card.name} (cuda:{index})", size, speeds_of(card.name), free_bytes())
        found[device] = (card.major, card.minor)
    return found


def machine_lines() -> list[str]:
    """Say in four lines which processor, memory, cards and versions this machine has."""
    cards = [f"{card.name}, {card.memory_bytes / GIB:.1f} GiB" for card in gpus()]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "bitsandbytes"))
    return [
        f"  CPU       {processor()}, {psutil.cpu_count(logical=False) or psutil.cpu_count()} cores, {instructions()}",
        f"  memory    {total_bytes() / GIB:.1f} GiB, {free_bytes() / GIB:.1f} GiB of it free",
        f"  GPU       {'; '.join(cards) or 'none that PyTorch sees'}",
        f"  versions  Python {platform.python_version()}, {versions}",
    ]


def slow_lines(capabilities: Sequence[tuple[int, int]], vectors: str, *, x86: bool) -> list[str]:
    """Say what is slow on a machine, and why.

    Args:
        capabilities: the compute capability of every CUDA card.
        vectors: what `instructions()` says.
        x86: whether the CPU is of that family; others have neither AVX2 nor AVX512_BF16.
    """
    lines = []
    if any(capability < (8, 0) for capability in capabilities):
        lines.append("bfloat16 on a card below compute capability 8.0: it is emulated. load() takes float16 there.")
    if capabilities:
        return lines
    lines.append(
        "Every token: there is no GPU, so the weights are read from the CPU's memory, far slower than a card's."
    )
    lines.append("A long prompt: reading it is arithmetic, and a CPU has few cores for it.")
    if x86 and "AVX" not in vectors:
        lines.append("int8, nf4 and nf4-double: bitsandbytes needs AVX2 on a CPU, and this one has none.")
    elif "AVX512_BF16" in vectors:
        lines.append(
            "A long prompt in nf4 more so: bitsandbytes multiplies by 4-bit weights as they are (AVX512_BF16), which "
            "is fast for a few tokens at once, and slower than bfloat16 for many."
        )
    else:
        lines.append(
            "nf4 and nf4-double: without AVX512_BF16, bitsandbytes writes every matrix out in 16 bits at every token."
        )
    return lines


def table(head: str, configs: dict[str, ModelConfig], cell: Callable[[ModelConfig, str], str]) -> list[str]:
    """Lay out a table with one line per model and one column per precision."""
    width = max(map(len, configs))
    lines = [f"  {'':{width}}" + "".join(f"{precision:>14}" for precision in PRECISIONS)]
    lines += [
        f"  {name:{width}}" + "".join(f"{cell(config, precision):>14}" for precision in PRECISIONS)
        for name, config in configs.items()
    ]
    return [head, *map(str.rstrip, lines), ""]


def device_lines(device: Device, configs: dict[str, ModelConfig], *, context: int, batch: int) -> list[str]:
    """Lay out two tables: what each model takes at the context asked for, and the longest context that fits.

    Between them stands, a line each, what runs with its experts outside although it does not fit.
    """
    size = device.memory_bytes
    sequences = "one sequence" if batch == 1 else f"{batch} sequences"
    outside = plans_outside(device, configs, context=context, batch=batch)

    def total(config: ModelConfig, precision: str) -> str:
        made = plan(config, precision=precision, context=context, batch=batch, device_bytes=size)
        runs = outside.get((config, precision))
        verdict = "yes" if made.fits else f"{rate_text(runs.tokens_per_s)}/s" if runs else "no "
        return f"{made.total_bytes / GIB:.2f} {verdict}"

    def longest(config: ModelConfig, precision: str) -> str:
        tokens = largest_context(config, precision=precision, batch=batch, device_bytes=size)
        return f"{tokens:,}" if tokens else "-"

    lines = table(
        f"GiB for {context:,} tokens in {sequences}: weights, cache and overhead. Do they fit in {device.name}, "
        f"{size / GIB:.2f} GiB?",
        configs,
        total,
    )
    if outside:
        lines += outside_lines(device, configs, outside)
    lines += table(f"Tokens of context that fit there at most, in {sequences}", configs, longest)
    short = [f"{name} ({config.max_positions:,})" for name, config in configs.items() if config.max_positions < context]
    return lines + ([f"Made for fewer tokens than {context:,}: {', '.join(short)}.", ""] if short else [])


def plans_outside(
    device: Device, configs: dict[str, ModelConfig], *, context: int, batch: int
) -> dict[tuple[ModelConfig, str], OutsidePlan]:
    """Return the plans of the mixtures in 4 bits that do not fit a device, and run with their experts outside."""
    if device.speeds is None:
        return {}
    machine = {"device_bytes": device.memory_bytes, "host_bytes": device.host_bytes, "speeds": device.speeds}
    made = {
        (config, precision): plan_outside(config, precision=precision, context=context, batch=batch, **machine)
        for config in configs.values()
        if config.num_experts
        for precision in PRECISIONS
        if precision.startswith("nf4")
    }
    return {key: planned for key, planned in made.items() if planned.outcome == "runs"}


def outside_lines(
    device: Device, configs: dict[str, ModelConfig], outside: dict[tuple[ModelConfig, str], OutsidePlan]
) -> list[str]:
    """Explain the speeds that stand in the table instead of "no"."""
    speeds = {"memory": device.speeds.memory_bytes_per_s, "link": device.speeds.link_bytes_per_s}
    speeds["disk"] = device.speeds.disk_bytes_per_s
    rates = ", ".join(f"{name} {speed / 1e9:.3g}" for name, speed in speeds.items() if speed)
    names = {config: name for name, config in configs.items()}
    return [
        "n/s: does not fit, but runs with its experts outside, at most n tokens per second. That is what reading and",
        f"moving the bytes of a token would allow ({rates} GB/s) if experts were chosen uniformly:",
        *(f"  {names[config]}, {planned}" for (config, _), planned in outside.items()),
        "",
    ]


def main(arguments: list[str] | None = None) -> None:
    """Print what the options ask for."""
    parser = _Parser(prog="python -m mistral_lab", description=__doc__.partition(": ")[2], allow_abbrev=False)
    parser.add_argument("--context", type=_count, default=4096, help="tokens, prompt and answer (default: 4096)")
    parser.add_argument("--batch", type=_count, default=1, help="sequences at once (default: 1)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--gib", type=_gib, help="plan for a device with this much memory instead of this machine")
    instead.add_argument("--card", choices=DEVICES, help="plan for this card instead")
    parser.add_argument(
        "--host-gib", type=_gib, help="with --card: its computer's memory for experts (default: what is free here)"
    )
    options = parser.parse_args(arguments)
    if options.host_gib is not None and not options.card:
        parser.error("argument --host-gib: expected --card beside it, because it says what a card's computer has")

    cards = gpus()
    if options.gib is not None:
        devices = [Device("such a device", int(options.gib * GIB), LAPTOP, None)]
    elif options.card:
        host_bytes = free_bytes() if options.host_gib is None else int(options.host_gib * GIB)
        devices = [Device(options.card, DEVICES[options.card], SPEEDS[options.card], host_bytes)]
    else:
        here = Speeds(measure_bandwidth("cpu", repeats=3), None, LAPTOP.disk_bytes_per_s)
        devices = [*cards, Device("the CPU's free memory", free_bytes(), here, None)]
    configs = {name: ModelConfig.from_pretrained(name) for name in BUNDLED} | PRESETS

    lines = ["This machine", *machine_lines(), ""]
    for device in devices:
        lines += device_lines(device, configs, context=options.context, batch=options.batch)
    lines.append("What is slow on this machine, and why")
    slow = slow_lines(list(cards.values()), instructions(), x86=platform.machine().lower() in ("x86_64", "amd64"))
    lines += [f"  - {line}" for line in slow or ["Nothing that this program knows of."]]
    print("\n".join(lines))


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def _gib(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 2**20:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of GiB above 0")
    return value


if __name__ == "__main__":
    main()
