"""`make bench`: the lab beside its peers on a model of full size, in the same run and in turns, and the floor.

    lab                load(folder, bits=4), then `generate`
    transformers       stock bitsandbytes: NF4 with double quantisation, arithmetic in bfloat16
    llama.cpp          Q4_0 as it comes: its weights are copied into an order that its products like better
    llama.cpp mapped   Q4_0 left in its file, which the system maps: for a mixture, or where `--only` names it

Every contender holds its model in a process of its own and waits. In each round each of them reads the prompts and
decodes at the contexts once, beginning with another, and this machine's reading speed is measured once. Ratios are
taken round by round, so that what slows down a whole round cancels out.

The floor of a decoded token is the bytes that it has to read (every weight but the embedding and the idle experts, and
the keys and values of its context) divided by the speed at which this machine read in that round. A share of the floor
of 100 % means that nothing could be faster. With more than one token the floor means little, and is left out.

Where the models do not fit into memory side by side, or with `--budgets`, which holds each process to so many GiB by a
memory cgroup, they are loaded one after the other, in every round again, and the page cache is emptied of them before.
The floor still counts memory alone: what was read from the disk stands beside it.

The weights are random and of the real shape. They are written into build/bench, and removed in the end unless `--keep`
is given; what is there already is used, and stays. Records go to benchmarks/bench/, one file per device.

    python benchmarks/bench.py
    python benchmarks/bench.py --layers 2 --rounds 2 --contexts 32 512 --prompts 32
    python benchmarks/bench.py --models mixtral-8x7b-v0.1 --budgets 24 16 12 --contexts 32 512 --prompts 128
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import torch
from contenders import KINDS, Turn, Work, Worker, in_turns

from mistral_lab.config import PRESETS, ModelConfig
from mistral_lab.files import Need, check_disk, decimal_size, lab_cache, weight_files, write_json
from mistral_lab.measure import Machine, Timing, compare, instructions, measure_bandwidth
from mistral_lab.measure.limits import memory_limit
from mistral_lab.measure.paging import evict, read_through
from mistral_lab.memory import kv_cache_bytes, parameter_counts, weight_bytes, weight_parts

ROOT = Path(__file__).parent.parent
MODELS = ("mistral-7b-v0.1", "mixtral-8x7b-v0.1")
LAB = "lab"
BESIDE_BYTES = 2**30  # of a contender beside its weights and caches: the libraries and their workspace
INSTALL = "not installed: python -m pip install '.[bench]' --constraint constraints.txt (it needs a C++ compiler)"


def arguments() -> argparse.Namespace:
    """The sizes of one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS[:1])
    parser.add_argument("--layers", type=int, help="how many of the model's 32, for a quick run (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contexts", type=int, nargs="+", default=[32, 512, 4096], help="tokens before those decoded")
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 128, 512], help="tokens of the prompts read")
    parser.add_argument("--new-tokens", type=int, default=8, help="tokens decoded in one turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budgets", type=float, nargs="+", metavar="GIB", help="memory of each process")
    parser.add_argument("--only", nargs="+", choices=KINDS, help="who takes part (default: three of the four)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench", help="where the models are written")
    parser.add_argument("--keep", action="store_true", help="keep the models for the next run")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "bench")
    options = parser.parse_args()
    for name in ("layers", "rounds", "new_tokens", "threads"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}: expected at least 1")
    if min(*options.contexts, *options.prompts, *(options.budgets or [1])) <= 0:
        parser.error("--contexts, --prompts and --budgets: expected positive numbers")
    return options


@dataclass(frozen=True)
class Model:
    """A model of the run: its shape, and where its files are.

    Args:
        name: the preset.
        config: with as many layers as are measured.
        folder: for all models.
        rows: whether the codes of the checkpoint lie in rows, which stock bitsandbytes reads. The lab then makes its
            own copy for this CPU, as it does for a reader.
    """

    name: str
    config: ModelConfig
    folder: Path
    rows: bool

    def path(self, kind: str) -> Path:
        """The file or folder that a contender reads."""
        stem = f"{self.name}-{self.config.n_layers}"
        suffix = {"lab": "nf4-rows" if self.rows else "nf4", "transformers": "stock"}.get(kind, "q4_0.gguf")
        return self.folder / (f"{stem}.{suffix}" if suffix.endswith("gguf") else f"{stem}-{suffix}")

    def files(self, kind: str) -> list[Path]:
        """The files that hold the weights which a contender reads, the lab's copy for this CPU included."""
        path = self.path(kind)
        if path.suffix == ".gguf":
            return [path]
        return weight_files(path) + (list(lab_cache().glob(f"{path.name}-nf4-*/*.safetensors")) if kind == LAB else [])

    def held_bytes(self, kind: str, options: argparse.Namespace) -> int:
        """Estimate the memory that a contender needs to work undisturbed: weights once, and each context twice."""
        path = self.path(kind)
        weights = sum(file.stat().st_size for file in ([path] if path.suffix == ".gguf" else weight_files(path)))
        caches = sum(kv_cache_bytes(self.config, context) for context in options.contexts)
        return weights + 2 * caches + BESIDE_BYTES

    def bytes_per_token(self, kind: str, context: int) -> int:
        """The bytes that one decoded token has to read."""
        if kind.startswith("llama"):
            import gguf_writer

            weights = gguf_writer.bytes_per_token(self.config)
        else:
            weights = bytes_per_token(self.config)
        return weights + kv_cache_bytes(self.config, context)


def bytes_per_token(config: ModelConfig) -> int:
    """Count the bytes of weights that a token reads in NF4 with double quantisation.

    They are those of the checkpoint; the fused kernel of a CPU reads scales in bfloat16, which adds 3 %.

    >>> bytes_per_token(PRESETS["mistral-7b-v0.1"])
    3863093248
    """
    parts = {part: size.total for part, size in weight_parts(config, "nf4-double").items()}
    counts = parameter_counts(config)
    busy = 1 - counts.idle / counts.feed_forward
    read = {part: size for part, size in parts.items() if part != "embedding" or config.tied_embeddings}
    return int(sum(size * (busy if part == "feed_forward" else 1) for part, size in read.items()))


def contenders_for(config: ModelConfig) -> list[str]:
    """Choose who takes part: of llama.cpp's two forms the one for which a mixture need not fit into memory twice."""
    return [LAB, "transformers", "llama.cpp mapped" if config.num_experts else "llama.cpp"]


def absent(kinds: list[str], config: ModelConfig) -> dict[str, str]:
    """Say of each contender that cannot run here why."""
    found = {}
    missing = [name for name in ("llama_cpp", "gguf") if importlib.util.find_spec(name) is None]
    for kind in kinds:
        if kind.startswith("llama") and missing:
            found[kind] = INSTALL
        elif kind == "transformers" and config.num_experts:
            size = 2 * parameter_counts(config).feed_forward
            found[kind] = f"leaves the experts in 16 bits, {size / 2**30:.1f} GiB: the lab's four_bit is for that"
        elif kind == "llama.cpp" and repacked_bytes(config) > psutil.virtual_memory().total:
            size = repacked_bytes(config) / 2**30
            found[kind] = f"copies all weights into memory of its own, {size:.1f} GiB: more than this machine has"
    return found


def repacked_bytes(config: ModelConfig) -> int:
    """Estimate the memory that llama.cpp takes where it copies the weights."""
    return weight_bytes(config, "nf4")  # 4.5 bits per weight, as in Q4_0


@contextmanager
def files_of(model: Model, kinds: list[str], *, keep: bool) -> Iterator[None]:
    """Write what the contenders read, where it is not there already, and remove it afterwards unless `keep`.

    The lab keeps a copy in the order that this CPU's kernel wants. It goes beside the checkpoint, unless the reader's
    MISTRAL_LAB_CACHE says where.

    Raises:
        OSError: the disk is too small, which is said before anything is written.
    """
    needs, nf4 = [], weight_bytes(model.config, "nf4-double")
    cache = model.folder / "cache"
    os.environ.setdefault("MISTRAL_LAB_CACHE", str(cache.absolute()))
    ours = lab_cache() == cache.absolute() and not cache.exists()
    if LAB in kinds and ours and model.rows and "AVX512_BF16" in instructions():
        needs.append(Need(model.folder, nf4, "for the lab's copy of it for this CPU"))
    if any(not kind.startswith("llama") for kind in kinds) and not model.path("lab").exists():
        needs.append(Need(model.folder, nf4, "for the checkpoint in NF4"))
    if any(kind.startswith("llama") for kind in kinds) and not model.path("llama.cpp").exists():
        needs.append(Need(model.folder, weight_bytes(model.config, "nf4"), "for the GGUF file"))
    if needs:
        total = sum(need.nbytes for need in needs)
        print(f"writes {decimal_size(total)} into {model.folder}{'' if keep else ', and removes them in the end'}")
    check_disk(*needs)
    made = [model.path(kind) for kind in kinds if not model.path(kind).exists()] + [cache] * ours
    model.folder.mkdir(parents=True, exist_ok=True)
    try:
        write_files(model, kinds)
        yield
    finally:
        for path in {path for path in made if not keep}:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if os.environ["MISTRAL_LAB_CACHE"] == str(cache.absolute()):
            del os.environ["MISTRAL_LAB_CACHE"]


def write_files(model: Model, kinds: list[str]) -> None:
    """Write checkpoint and file of random weights, where they are not there, and the config of the stock quantiser."""
    checkpoint = model.path("lab")
    if {"lab", "transformers"} & set(kinds) and not checkpoint.exists():
        tool("full_size").write(model.config, checkpoint, bits=4, packed=False if model.rows else None)
    if "transformers" in kinds and not model.path("transformers").exists():
        write_stock(checkpoint, model.path("transformers"))
    if any(kind.startswith("llama") for kind in kinds) and not model.path("llama.cpp").exists():
        import gguf_writer

        gguf_writer.write(model.config, model.path("llama.cpp"))


def tool(name: str):
    """Import a file of tools/, which may have the name of a benchmark."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_stock(checkpoint: Path, folder: Path) -> None:
    """Make a folder with the same weights, linked, and a config that has transformers' own quantiser read them."""
    from transformers import BitsAndBytesConfig

    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    (folder / "config.json").unlink()
    fields = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    write_json(folder / "config.json", fields | {"quantization_config": quantisation.to_dict()})


class Rounds:
    """What was measured, by the work and who did it: a value for each round.

    Args:
        works: ("prefill" or "decode", tokens) in the order of the table.
    """

    def __init__(self, works: list[tuple[str, int]]) -> None:
        self.turns: dict[tuple[str, int], dict[str, list[Turn]]] = {work: {} for work in works}
        self.read_bytes_per_s: list[float] = []
        self.about: dict[str, dict] = {}
        self.failed: dict[str, str] = {}
        self.waited = 0.0

    def add(self, work: tuple[str, int], turns: Mapping[str, Turn | None]) -> None:
        """Note the turns of one round, but not the None of one that failed."""
        for kind, turn in turns.items():
            if turn is not None:
                self.turns[work].setdefault(kind, []).append(turn)

    def asked(self, worker: Worker, work: tuple[str, int]) -> Turn | None:
        """Have a contender work; where it cannot, note why, and return None: the others go on."""
        try:
            return worker.ask(*work)
        except RuntimeError as error:
            self.failed[worker.kind] = str(error)
            return None

    def rows(self, model: Model) -> list[dict]:
        """Make a row for each contender and work that was done in every round."""
        rows = []
        for (work, tokens), by_kind in self.turns.items():
            whole = {kind: turns for kind, turns in by_kind.items() if len(turns) == len(self.read_bytes_per_s)}
            for kind, turns in whole.items():
                on_the_device = device().type == "cpu" or not kind.startswith("llama")
                size = model.bytes_per_token(kind, tokens) if work == "decode" and on_the_device else None
                lab = whole.get(LAB)
                rows.append(row(work, tokens, kind, turns, lab, size, self.read_bytes_per_s))
        return rows


def row(
    work: str,
    tokens: int,
    kind: str,
    turns: list[Turn],
    lab: list[Turn] | None,
    size: int | None,
    read_bytes_per_s: list[float],
) -> dict:
    """Compute one row of the table and of the record.

    Args:
        work, tokens: "prefill" and the length of the prompt, or "decode" and the tokens of context.
        kind: who did it.
        turns: one per round.
        lab: the lab's, of the same rounds; None where the lab did not take part.
        size: the bytes that the work has to read; None where no floor is drawn.
        read_bytes_per_s: how fast this machine read its memory, one per round.

    Returns:
        seconds with their spread, how many times as long it took as the lab (`ratio`, `least`, `largest`), the floor,
        and the share of it that was reached.

    >>> made = row("decode", 32, "peer", [Turn(2.0, None)], [Turn(1.0, None)], 10, [20.0])
    >>> made["ratio"], made["floor_s"], made["share"]
    (2.0, 0.5, 0.25)
    """
    timing = Timing(tuple(turn.seconds for turn in turns))
    found = {
        "work": work,
        "tokens": tokens,
        "who": kind,
        "runs_s": list(timing.runs_s),
        "median_s": timing.median_s,
        "spread_s": timing.spread_s,
        "disk_bytes": [turn.disk_bytes for turn in turns],
        "bytes": size,
    }
    found |= compare(timing, Timing(tuple(turn.seconds for turn in lab))) if lab else {}
    if size is not None:
        floor = Timing(tuple(size / speed for speed in read_bytes_per_s))
        found |= {"floor_s": floor.median_s, "share": compare(floor, timing)["ratio"]}
    return found


def device() -> torch.device:
    """Choose where the lab and transformers run, and whose reading speed is measured; llama.cpp runs on the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def works_of(options: argparse.Namespace) -> list[tuple[str, int]]:
    """List the works of one round, in the order of the table."""
    return [("prefill", tokens) for tokens in options.prompts] + [("decode", tokens) for tokens in options.contexts]


def side_by_side(model: Model, kinds: list[str], options: argparse.Namespace) -> Rounds:
    """Load all contenders, then have them work in turns."""
    rounds = Rounds(works_of(options))
    with ExitStack() as stack:
        workers = []
        for kind in kinds:
            worker = Worker(kind)
            stack.callback(worker.close)
            if opened(worker, model, options, rounds):
                workers.append(worker)
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", flush=True)
            rounds.read_bytes_per_s.append(measure_bandwidth(device()))
            for work in rounds.turns:
                workers = [worker for worker in workers if worker.kind not in rounds.failed]
                turns, waited = in_turns(workers, lambda worker, work=work: rounds.asked(worker, work), number)
                rounds.add(work, turns)
                rounds.waited = max(rounds.waited, waited)
    return rounds


def one_after_the_other(
    model: Model, kinds: list[str], options: argparse.Namespace, budget_bytes: int | None
) -> tuple[Rounds, bool]:
    """Load, measure and close one contender after the other in every round, each within a budget of memory.

    Returns:
        what was measured, and whether the system held the processes to the budget.
    """
    rounds, held = Rounds(works_of(options)), True
    for number in range(options.rounds):
        rounds.read_bytes_per_s.append(measure_bandwidth(device()))
        first = number % len(kinds)
        for kind in kinds[first:] + kinds[:first]:
            if kind in rounds.failed:
                continue
            print(f"round {number + 1} of {options.rounds}: {kind}", flush=True)
            for each in kinds:
                evict(model.files(each))
            worker = Worker(kind)
            with ExitStack() as stack:
                stack.callback(worker.close)
                held &= stack.enter_context(memory_limit(worker.pid, budget_bytes))
                if budget_bytes is None:
                    read_through(model.files(kind))
                if not opened(worker, model, options, rounds):
                    continue
                rounds.asked(worker, ("decode", options.contexts[0]))  # brings in what every token needs
                for work in rounds.turns:
                    if kind not in rounds.failed:
                        rounds.add(work, {kind: rounds.asked(worker, work)})
    return rounds, held


def opened(worker: Worker, model: Model, options: argparse.Namespace, rounds: Rounds) -> bool:
    """Have a contender load its model; where it cannot, note why."""
    work = Work(
        model.path(worker.kind), options.threads, tuple(options.contexts), tuple(options.prompts), options.new_tokens
    )
    try:
        rounds.about[worker.kind] = worker.ask("open", work)
    except RuntimeError as error:
        rounds.failed[worker.kind] = str(error)
        return False
    about = rounds.about[worker.kind]
    print(f"{worker.kind}: {about['version']}; loaded in {about['load_s']:.1f} s; {about['settings']}", flush=True)
    return True


def record_of(
    model: Model, options: argparse.Namespace, rounds: Rounds, budget_bytes: int | None, held: bool, missing: dict
) -> dict:
    """Make the record of one run."""
    return {
        "model": model.name,
        "layers": model.config.n_layers,
        "of_layers": PRESETS[model.name].n_layers,
        "budget_bytes": budget_bytes,
        "held": held,
        "threads": options.threads,
        "prompts": options.prompts,
        "contexts": options.contexts,
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "machine": asdict(Machine.here(device())),
        "memory_bytes": psutil.virtual_memory().total,
        "read_bytes_per_s": rounds.read_bytes_per_s,
        "waiting_share": rounds.waited,
        "contenders": rounds.about,
        "absent": missing | rounds.failed,
        "rows": rounds.rows(model),
    }


def table(record: dict) -> str:
    """Write the table of one record.

    Args:
        record: as `record_of` makes it.
    """
    speeds = [speed / 1e9 for speed in record["read_bytes_per_s"]]
    budget = record["budget_bytes"]
    kept = f"; each process {'held' if record['held'] else 'NOT held'} to {budget / 2**30:g} GiB" if budget else ""
    lines = [
        f"{record['model']}: {record['layers']} of {record['of_layers']} layers, random weights; "
        f"{record['rounds']} round{'' if record['rounds'] == 1 else 's'}{kept}",
        f"{Machine(**record['machine'])}; reads {Timing(tuple(speeds)).median_s:.1f} GB/s "
        f"({min(speeds):.1f} to {max(speeds):.1f}); who waits takes {record['waiting_share']:.1%} of a core",
        "",
        f"{'':25}{'median':>10}{'spread':>9}{'it / lab':>10}{'(range)':>16}{'floor':>9}{'share':>7}{'disk':>9}",
        f"{'':25}{'ms':>10}{'ms':>9}{'':>10}{'':>16}{'ms':>9}{'%':>7}{'MB':>9}",
    ]
    last = None
    for each in record["rows"]:
        if (work := (each["work"], each["tokens"])) != last:
            last = work
            lines.append(
                f"read {each['tokens']:,} tokens"
                if each["work"] == "prefill"
                else f"one token after {each['tokens']:,}"
            )
        lines.append(_line(each))
    lines += [f"{kind}: not run: {why}" for kind, why in record["absent"].items()]
    return "\n".join(lines)


def _line(each: dict) -> str:
    """One row of the table."""
    ratio = f"{each['ratio']:10.2f}" if "ratio" in each else f"{'':10}"
    span = f"{each['least']:.2f} to {each['largest']:.2f}" if "ratio" in each else ""
    floor = f"{each['floor_s'] * 1e3:9.0f}{each['share'] * 100:7.0f}" if "share" in each else f"{'':16}"
    known = [size for size in each["disk_bytes"] if size is not None]
    disk = f"{sum(known) / len(known) / 1e6:9.0f}" if known else ""
    times = f"{each['median_s'] * 1e3:10,.0f}{each['spread_s'] * 1e3:9,.0f}"
    return f"  {each['who']:23}{times}{ratio}{span:>16}{floor}{disk}".rstrip()


def keep(record: dict, folder: Path) -> Path:
    """Put a record into the device's file, where it replaces an earlier one of the same work.

    Returns:
        the file.
    """
    machine = record["machine"]
    named = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    path = folder / (re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-") + ".json")
    folder.mkdir(parents=True, exist_ok=True)

    def key(each: dict) -> tuple:
        of_run = ("model", "layers", "budget_bytes", "threads", "prompts", "contexts", "new_tokens")
        return tuple(str(each[name]) for name in of_run)

    known = json.loads(path.read_text(encoding="utf-8"))["records"] if path.exists() else []
    kept = [each for each in known if key(each) != key(record)]
    write_json(path, {"device": named, "records": sorted([*kept, record], key=lambda each: str(key(each)))})
    return path


def measure(name: str, config: ModelConfig, options: argparse.Namespace) -> Iterator[dict]:
    """Measure one model, once for each budget."""
    chosen = options.only or contenders_for(config)
    missing = absent(chosen, config)
    kinds = [kind for kind in chosen if kind not in missing]
    model = Model(name, config, options.folder, rows="transformers" in kinds)
    if not kinds:
        raise SystemExit("\n".join(f"{kind}: {why}" for kind, why in missing.items()))
    with files_of(model, kinds, keep=options.keep):
        if options.budgets:
            for gib in options.budgets:
                budget = int(gib * 2**30)
                rounds, held = one_after_the_other(model, kinds, options, budget)
                yield record_of(model, options, rounds, budget, held, missing)
        elif sum(model.held_bytes(kind, options) for kind in kinds) > psutil.virtual_memory().available:
            rounds, held = one_after_the_other(model, kinds, options, None)
            yield record_of(model, options, rounds, None, held, missing)
        else:
            yield record_of(model, options, side_by_side(model, kinds, options), None, False, missing)


def main() -> None:
    """Measure each model, print its tables, and keep the records."""
    options = arguments()
    torch.set_num_threads(options.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"  # for the contenders: nothing is looked up on the hub
    for name in options.models:
        full = PRESETS[name]
        config = replace(full, n_layers=min(options.layers or full.n_layers, full.n_layers))
        for record in measure(name, config, options):
            path = keep(record, options.results)
            print(f"\n{table(record)}\n\nkept in {path.name}\n", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the records of finished models are kept")
    except OSError as error:
        sys.exit(str(error))
