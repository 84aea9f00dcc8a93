"""Lessons 1 to 3: what a token of a large model took on a machine where the repository has it recorded."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from ..measure import read_full_size

RECORDS = Path(__file__).parents[2] / "benchmarks" / "full_size"  # only in the repository


@dataclass(frozen=True)
class RecordedTimes:
    """What a token of a large model took on a machine where it was recorded, and what reading takes at least.

    Args:
        model: its name among the presets; the weights were random numbers of its shape, in four bits.
        device: whose processor read the weights.
        threads: that it computed with.
        contexts: tokens before the new one, one count per entry.
        runs_s: of each context the seconds of its runs.
        speeds: of each context the bytes per second that memory delivered when it was measured.
        bytes_per_s: the fastest of such speeds that this processor has on record. Where others share its memory, the
            speed changes from minute to minute.
        least_s: of each context the seconds to read weights, keys and values once at that speed.
        prompts_s: median seconds of a whole prompt, by its tokens.
    """

    model: str
    device: str
    threads: int
    contexts: tuple[int, ...]
    runs_s: tuple[tuple[float, ...], ...]
    speeds: tuple[float, ...]
    bytes_per_s: float
    least_s: tuple[float, ...]
    prompts_s: dict[int, float]

    @property
    def median_s(self) -> list[float]:
        """Of each context the median over its runs."""
        return [statistics.median(runs) for runs in self.runs_s]

    @property
    def sentence(self) -> str:
        """What was found, for the caption of a picture."""
        pairs = zip(self.median_s, self.least_s, strict=True)
        over = ", ".join(f"{took / least:.1f}" for took, least in pairs)
        tokens = next((tokens for tokens in self.prompts_s if tokens >= 128), None)
        prompt = (
            f"; each token of a prompt of {tokens} took {self.prompts_s[tokens] / tokens * 1e3:.0f} ms, as computing "
            "takes over"
            if tokens
            else ""
        )
        return (
            f"The shape of {self.model}, random weights in four bits, {self.threads} threads ({self.device}): "
            f"{over} times what reading alone takes at {self.bytes_per_s / 1e9:.0f} GB/s, the fastest in the record "
            f"(thin bars: fastest to slowest run){prompt}."
        )


def conditions(*found: RecordedTimes) -> str:
    """Say for a caption on which machine records were made, and how steady it was; the picture has bars for runs."""
    speeds = [speed / 1e9 for one in found for speed in one.speeds]
    return (
        f"{found[0].device}, {found[0].threads} threads; bars: fastest to slowest of {len(found[0].runs_s[0])} runs; "
        f"meanwhile memory delivered {min(speeds):.0f} to {max(speeds):.0f} GB/s, "
        f"“at least” takes {found[0].bytes_per_s / 1e9:.0f}, the fastest on record"
    )


def recorded_times(model: str) -> RecordedTimes | None:
    """Look up a whole dense model in the records of the repository, in those of the first processor that has it.

    Args:
        model: its name among the presets, such as "mistral-7b-v0.1".

    Returns:
        None where no processor has it, or where the records are missing: they are no part of the package.
    """
    records = read_full_size(RECORDS)
    for record in records:
        entries = record.of("context")
        if record.model != model or record.layers != record.of_layers or not entries:
            continue
        machine = next(iter(entries.values()))["machine"]
        if machine["device"] != "cpu":
            continue
        fastest = max(
            entry.get("read_bytes_per_s", 0)
            for other in records
            if other.device == record.device
            for measured in other.measurements.values()
            for entry in measured.values()
        )
        return RecordedTimes(
            model=model,
            device=record.device,
            threads=machine["threads"],
            contexts=tuple(entries),
            runs_s=tuple(tuple(entry["seconds"]) for entry in entries.values()),
            speeds=tuple(entry["read_bytes_per_s"] for entry in entries.values() if "read_bytes_per_s" in entry),
            bytes_per_s=fastest,
            least_s=tuple(sum(entry["token_bytes"].values()) / fastest for entry in entries.values()),
            prompts_s=record.seconds("prefill")[0],
        )
    return None
