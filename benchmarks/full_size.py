"""Mistral 7B and Mixtral 8x7B at full size, all layers in four bits, from loading to decoding, with random weights.

The checkpoints are those that tools/full_size.py writes: one layer of seeded random numbers under the names of all
layers. Sizes and work are those of the real models. What they answer means nothing, and their routing is close to
uniform, so a cache of experts hits less often than with trained weights. Each measurement has a process of its own, or
shares one with others that leave it as it was:

    load       in a new process, files in the page cache (warm) or on the disk alone (cold): seconds, peaks of memory,
               the first token of a short prompt, memory layer by layer
    context    seconds per token after 128 to 4,096 tokens; the cache is filled with random keys and values
    layers     one token, layer by layer
    prefill    seconds to read a prompt
    budget     seconds per token, bytes from the disk and major faults where anonymous memory and page cache together
               are limited: on a CPU by a memory cgroup (Linux, with the right to make one), on a card by
               `load(device_bytes=...)`

Beside each stands what was predicted. A token takes at least the bytes that it reads (the matrices of attention, A of E
experts, output layer, cache) over the speed at which the same process read memory. Under a budget it also takes at
least the bytes that have no room over the speed of the disk; the two may overlap, so the larger one is the floor.

Records go to benchmarks/full_size/, one file per device, each measurement as soon as it is finished. One that was made
before, with the same model, number of layers, kind and setting, is replaced; all others stay.

    python benchmarks/full_size.py                                   # both models: 31 GB of disk
    python benchmarks/full_size.py --models mistral-7b-v0.1 --layers 2 --budgets 1 2 --contexts 128 512
    python benchmarks/full_size.py --budgets --contexts --prompts    # loading alone
    python benchmarks/full_size.py --models mistral-7b-v0.1 mistral-7b-v0.3 --loads --prompts --budgets \
        --contexts 128 512 2048 4096 8192 16384                      # with a window and without, beyond its length
"""

import argparse
import datetime
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import signal
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
from full_size_worker import TOUCHED, Job, work
from tqdm.auto import tqdm

from mistral_lab import PRESETS, ModelConfig, memory
from mistral_lab.files import weight_files, write_json
from mistral_lab.measure import LimitedMemory, cached_bytes, evict, read_through
from mistral_lab.measure.full_size import FORMAT

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "full_size"
MODELS = ("mistral-7b-v0.1", "mixtral-8x7b-v0.1")
UNWINDOWED = "mistral-7b-v0.3"  # what the window of v0.1 saves is seen beside it
PRECISION = "nf4-double"
GIB = 2**30
MOST_STAYS = 0.02  # share of a checkpoint that may stay in the page cache when it is evicted
DISK_SAMPLE = 2**30  # bytes read to measure the disk
WEIGHTS = "seeded random numbers, one layer under the names of all; routing close to uniform"
KEY = ("model", "layers", "what", "setting")


def arguments() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--models", nargs="+", choices=(*MODELS, UNWINDOWED), default=MODELS)
    parser.add_argument("--layers", type=int, help="of a shorter model, to try the script (default: all)")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "full-size", help="of the checkpoints; written where missing"
    )
    parser.add_argument("--delete", action="store_true", help="remove in the end what this run wrote into --folder")
    parser.add_argument("--loads", nargs="*", choices=("warm", "cold"), default=("warm", "cold"))
    parser.add_argument("--contexts", nargs="*", type=int, default=(128, 512, 2048, 4096), metavar="TOKENS")
    parser.add_argument("--prompts", nargs="*", type=int, default=(32, 128, 512), metavar="TOKENS")
    parser.add_argument("--budgets", nargs="*", type=float, default=(20, 16, 12, 8, 6), metavar="GIB")
    parser.add_argument("--tokens", type=int, default=16, help="measured at each context and budget")
    parser.add_argument("--warm-up", type=int, default=16, help="tokens before them")
    parser.add_argument("--device", default="cpu", help="as load takes it: cpu, cuda, cuda:1")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU (default: its own choice)")
    parser.add_argument("--note", default="", help="kept with each measurement, such as 'other programs ran beside it'")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    for name, least in (("layers", 1), ("tokens", 1), ("warm_up", 1), ("threads", 1)):
        if (value := getattr(options, name)) is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} is {value}: expected at least {least}")
    for name, least in (("contexts", 2), ("prompts", 1), ("budgets", 0.001)):
        if any(value < least for value in getattr(options, name)):
            parser.error(f"--{name} has {min(getattr(options, name))}: expected at least {least}")
    return options


def write_checkpoint(config: ModelConfig, folder: Path) -> None:
    """Write a checkpoint as tools/full_size.py does; that file has the name of this one, so it is found by its path."""
    spec = importlib.util.spec_from_file_location("checkpoints_of_real_shape", ROOT / "tools" / "full_size.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.write(config, folder, bits=4)


def token_bytes(config: ModelConfig, context: int) -> dict[str, int]:
    """The bytes that one token reads, part by part: of the embedding one row, of the experts those that it goes to."""
    read = {part: size.total for part, size in memory.weight_parts(config, PRECISION).items()}
    read["embedding"] //= config.vocab_size
    read["feed_forward"] = read["feed_forward"] * (config.num_experts_per_tok or 1) // (config.num_experts or 1)
    return read | {"cache": memory.kv_cache_bytes(config, context)}


def touched_by_layer(config: ModelConfig, tokens: int) -> list[int]:
    """The bytes of weights that a prompt has read at the beginning, after each layer, and after the output layer.

    n tokens go to E (1 - (1 - A/E)^n) of E experts, where routing is uniform.
    """
    parts = {part: size.total for part, size in memory.weight_parts(config, PRECISION).items()}
    share = 1 - (1 - (config.num_experts_per_tok or 1) / (config.num_experts or 1)) ** tokens
    layer = (parts["attention"] + parts["router"] + parts["norms"] + share * parts["feed_forward"]) / config.n_layers
    found = [round(layer * number) for number in range(config.n_layers + 1)]
    return [*found, found[-1] + parts["lm_head"]]


def floor_by_layer(config: ModelConfig, context: int) -> list[int]:
    """The bytes that one token has read at the beginning, after each layer, and after the output layer."""
    read = token_bytes(config, context)
    layer = sum(size for part, size in read.items() if part not in ("embedding", "lm_head")) / config.n_layers
    found = [round(layer * number) for number in range(config.n_layers + 1)]
    return [*found, found[-1] + read["lm_head"]]


def missed_bytes(config: ModelConfig, budget_bytes: int) -> int:
    """The bytes of feed-forward matrices that one token finds outside a budget, on average, where routing is uniform.

    All else is assumed to stay inside. Nobody who does not know the coming tokens can miss fewer.
    """
    parts = {part: size.total for part, size in memory.weight_parts(config, PRECISION).items()}
    networks, read = parts.pop("feed_forward"), token_bytes(config, TOUCHED)["feed_forward"]
    parts["embedding"] = 0  # a few rows
    room = budget_bytes - memory.RUNTIME_BYTES - sum(parts.values())
    return round(read * (1 - min(max(room / networks, 0), 1)))


class Runner:
    """Starts the processes that measure one model, adds what is predicted, and keeps what they find."""

    def __init__(self, name: str, folder: Path, config: ModelConfig, options: argparse.Namespace) -> None:
        self.name, self.folder, self.config, self.options = name, folder, config, options
        self.failures: list[str] = []

    def job(self, task: str, *, device_bytes: int | None = None) -> Job:
        """What one process is to do."""
        chosen = self.options
        return Job(
            task=task,
            folder=str(self.folder),
            device=chosen.device,
            device_bytes=device_bytes,
            threads=chosen.threads,
            contexts=tuple(chosen.contexts),
            prompts=tuple(chosen.prompts),
            warm_up=chosen.warm_up,
            tokens=chosen.tokens,
        )

    def run(self, job: Job, label: str, limit_bytes: int | None = None) -> Iterator[dict]:
        """Run one process; yield each finished measurement, with the peaks of memory, and last what stopped it."""
        watched = LimitedMemory(limit_bytes)
        peaks: dict[str, dict[str, int]] = {}
        with process_of(job) as (process, connection), watched(process.pid):
            connection.send("go")
            with tqdm(desc=f"{self.name}, {label}", unit=" tokens", leave=False) as bar:
                for message in messages(connection):
                    if mark := message.get("mark"):
                        peaks[mark] = {
                            "anonymous_bytes": watched.anonymous_bytes,
                            "mapped_bytes": watched.mapped_bytes,
                            "resident_bytes": watched.resident_bytes,
                        }
                    elif "token" in message:
                        bar.update()
                    elif sentence := message.get("failed"):
                        yield {"outcome": "refused", "sentence": sentence}
                        return
                    else:
                        found = message["kept"]
                        yield found | {"outcome": "measured", "peaks": peaks, "held_to_limit": watched.held}
            process.join()
        if process.exitcode:
            yield {
                "outcome": "killed" if watched.held and process.exitcode == -signal.SIGKILL else "failed",
                "sentence": f"the process ended with {process.exitcode}",
                "held_to_limit": watched.held,
            }

    def measure(self) -> None:
        """Measure everything that was asked for."""
        ready = [*self.run(self.job("ready"), "making ready"), {"outcome": "failed"}][0]
        if ready["outcome"] != "measured":
            self.failures.append(f"{self.name}: {ready.get('sentence', 'no answer')}")
            return
        self.machine = ready["machine"]
        self.files = weight_files(Path(ready["reads"]))
        self.audit = ready["audit"]
        self.disk = None
        if self.options.budgets or "cold" in self.options.loads:
            evict(self.files)
            self.disk = read_through(self.files, most=DISK_SAMPLE)
        for how in self.options.loads:
            self.measure_load(how)
        if self.options.contexts or self.options.prompts:
            self.warm()
            for found in self.run(self.job("decode"), "decoding"):
                self.keep(found.pop("what", "decode"), found.pop("setting", None), found)
        dense_on_a_card = not self.config.num_experts and not self.options.device.startswith("cpu")
        for budget in () if dense_on_a_card else self.options.budgets:  # of a dense model nothing can stay outside
            self.measure_budget(int(budget) if budget == int(budget) else budget)

    def warm(self) -> None:
        """Bring the files into the page cache, as far as there is room; what is there already stays."""
        size = sum(file.stat().st_size for file in self.files)
        if (cached := cached_bytes(self.files)) is None or cached < 0.99 * size:
            read_through(self.files)

    def still_cached(self, label: str) -> bool:
        """Evict the files, and say whether they stayed in memory all the same: then nothing could be measured."""
        evict(self.files)
        cached, size = cached_bytes(self.files), sum(file.stat().st_size for file in self.files)
        if cached is None or cached <= MOST_STAYS * size:
            return False
        self.failures.append(
            f"{self.name}, {label}: {cached / GIB:.1f} GiB of {size / GIB:.1f} GiB stay in the page cache, where no "
            "limit would count them: end the other processes that use the checkpoint, or put it on a disk"
        )
        return True

    def measure_load(self, how: str) -> None:
        """Measure loading with the files in the page cache, or out of it."""
        if how == "warm":
            self.warm()
        elif self.still_cached(f"load {how}"):
            return
        cached = cached_bytes(self.files)
        for found in self.run(self.job("load"), f"loading, {how}"):
            plan = memory.plan(self.config, precision=PRECISION, context=TOUCHED, device_bytes=1)
            found |= {
                "cached_before_bytes": cached,
                "file_bytes": sum(file.stat().st_size for file in self.files),
                "audit": self.audit,
                "predicted": {
                    "weights_bytes": plan.weights_bytes,
                    "total_bytes": plan.total_bytes,
                    "runtime_bytes": plan.runtime_bytes,
                    "touched_by_layer_bytes": touched_by_layer(self.config, TOUCHED),
                },
            }
            self.keep("load", how, found)

    def measure_budget(self, budget: float) -> None:
        """Measure tokens under a budget, with files that lie on the disk alone when the process begins."""
        limit = int(budget * GIB)
        on_a_card = not self.options.device.startswith("cpu")
        if self.still_cached(f"budget {budget:g}"):
            return
        job = self.job("budget", device_bytes=limit if on_a_card else None)
        for found in self.run(job, f"{budget:g} GiB", None if on_a_card else limit):
            if found["outcome"] == "measured" and not on_a_card and not found["held_to_limit"]:
                found = {"outcome": "failed", "sentence": "no memory cgroup can be made here, so no budget was held"}
            if not on_a_card:
                missed = missed_bytes(self.config, limit)
                found["predicted_disk_bytes"] = missed
            # The steps themselves may have read faster than the sample did.
            read = zip(found.get("disk_bytes", ()), found.get("seconds", ()), strict=True)
            fastest = max([self.disk or 1, *(size / seconds for size, seconds in read if size)])
            self.keep("budget", budget, found, least_s=0 if on_a_card else missed / fastest)

    def keep(self, what: str, setting: str | float | None, found: dict, *, least_s: float = 0) -> None:
        """Add what is predicted and where it was measured, write it to the device's file, and print a line."""
        if found["outcome"] == "failed" or (found["outcome"] == "refused" and what != "budget"):
            self.failures.append(f"{self.name}, {what} {setting}: {found['sentence']}")
            return
        entry = {
            "model": self.name,
            "layers": self.config.n_layers,
            "of_layers": PRESETS[self.name].n_layers,
            "what": what,
            "setting": setting,
            "date": datetime.date.today().isoformat(),
            "machine": self.machine,
            "memory_bytes": memory.total_bytes(self.options.device),
            "computer_bytes": psutil.virtual_memory().total,
            "weights": WEIGHTS,
            "disk_bytes_per_s": self.disk,
            **({"note": self.options.note} if self.options.note else {}),
            **found,
        }
        if (speed := found.get("read_bytes_per_s")) and what in ("context", "layers", "budget"):
            context = setting if what != "budget" else TOUCHED + self.options.warm_up
            read = token_bytes(self.config, context)
            entry |= {"token_bytes": read, "at_least_s": max(sum(read.values()) / speed, least_s)}
            if what == "layers":
                entry["at_least_by_layer_s"] = [size / speed for size in floor_by_layer(self.config, context)]
        keep(entry, self.options.results)
        tqdm.write(line(entry))


@contextmanager
def process_of(job: Job) -> Iterator[tuple[multiprocessing.Process, multiprocessing.connection.Connection]]:
    """Start a new Python for a job, which waits until it is sent something, and end it with the context.

    Ctrl-C reaches this process alone, which then ends the other.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, job), daemon=True)
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, heard)
    there.close()  # so that the end of the process ends the messages
    try:
        yield process, here
    finally:
        process.kill()
        process.join()
        here.close()


def messages(connection: multiprocessing.connection.Connection) -> Iterator[dict]:
    """What a process sends, until it ends."""
    try:
        while True:
            yield connection.recv()
    except (EOFError, ConnectionResetError):
        return


def line(entry: dict) -> str:
    """One measurement in a line."""
    about = f"{entry['model']}, {entry['layers']} of {entry['of_layers']} layers, {entry['what']} {entry['setting']}: "
    if entry["outcome"] != "measured":
        return f"{about}{entry['outcome']} ({entry['sentence']})"
    if entry["what"] == "load":
        held = entry["held_after_first_token"]
        return (
            f"{about}{entry['load_s']:.1f} s, first token after another {entry['first_token_s']:.1f} s; "
            f"{held['anonymous_bytes'] / GIB:.2f} GiB anonymous, {held['mapped_bytes'] / GIB:.2f} GiB mapped"
        )
    if entry["what"] == "layers":
        return f"{about}{entry['seconds_by_layer'][-1]:.3f} s to the end (at least {entry['at_least_s']:.3f})"
    text = f"{about}{statistics.median(entry['seconds']):.3f} s"
    text += f" (at least {entry['at_least_s']:.3f})" if "at_least_s" in entry else ""
    if entry["what"] == "budget" and None not in entry["disk_bytes"]:
        text += f", {statistics.mean(entry['disk_bytes']) / GIB:.2f} GiB from the disk per token"
    return text


def keep(entry: dict, folder: Path) -> None:
    """Put a measurement into the device's file, where it replaces an earlier one of the same work."""
    machine = entry["machine"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    path = folder / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json")
    folder.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text(encoding="utf-8"))["measurements"] if path.exists() else []
    kept = [one for one in known if any(one[part] != entry[part] for part in KEY)]
    measurements = sorted([*kept, entry], key=lambda one: [str(one[part]).rjust(20) for part in KEY])
    write_json(path, {"format": FORMAT, "device": device, "measurements": measurements})


def run_model(name: str, options: argparse.Namespace) -> list[str]:
    """Measure one model, and return a sentence for each measurement that failed."""
    short = "" if options.layers is None else f"-{options.layers}-layers"
    folder = options.folder / f"{name}-nf4{short}"
    ready = Path(os.environ.setdefault("MISTRAL_LAB_CACHE", str(options.folder / "ready")))
    written = [path for path in (folder, ready) if not path.exists()]
    try:
        if not (folder / "config.json").is_file():  # written last
            config = replace(PRESETS[name], n_layers=options.layers or PRESETS[name].n_layers)
            options.folder.mkdir(parents=True, exist_ok=True)
            needed, free = int(1.1 * memory.weight_bytes(config, PRECISION)), shutil.disk_usage(options.folder).free
            if free < needed:
                return [f"{name}: the disk has {free / 1e9:.0f} GB free, and {needed / 1e9:.0f} GB are needed: give "
                        "another --folder"]  # fmt: skip
            write_checkpoint(config, folder)
        runner = Runner(name, folder, ModelConfig.from_pretrained(folder), options)
        runner.measure()
        return runner.failures
    finally:
        if options.delete:
            for path in written:
                shutil.rmtree(path, ignore_errors=True)


def main() -> None:
    """Measure each model, and exit with 1 where something failed."""
    options = arguments()
    os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes that measure: nothing is looked up on the hub
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("ended: finished measurements are kept"))  # tidily
    failures = [failure for name in options.models for failure in run_model(name, options)]
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: finished measurements are kept")
