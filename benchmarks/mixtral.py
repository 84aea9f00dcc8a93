"""Mixtral 8x7B and Mistral 7B at full size with random weights: memory and latency where nothing can be downloaded.

The weights are made layer by layer, and every matrix has its real shape; only the number of layers may be smaller.
Where the free memory and the free disk can each hold the 16-bit weights twice, these are written to disk and read by

    lab         from_pretrained(..., quantization_config=nf4_config()): NF4 with double quantisation, experts included
    plain       from_pretrained(..., quantization_config=BitsAndBytesConfig(load_in_4bit=True)), as it is often written

Otherwise each matrix is quantised as soon as it is made, and only `lab` is read. Measured are the bytes by group, the
memory that loading takes beyond the loaded model (on a CPU the anonymous resident memory, because the system can take
back mapped files), the time to the first token and the time per token, in alternating rounds. Numbers for the missing
layers are computed, and labelled so.

The prediction: a token takes at least the bytes that it reads (all matrices of attention, A of E experts, the output
layer) divided by the speed at which the device reads its memory. Loading needs at most two experts in 16 bits beyond
the finished model.

Records go to benchmarks/results/, one file per device.

    python benchmarks/mixtral.py                 # on a GPU: all layers; on a CPU: as many as fit in a quarter of memory
    python benchmarks/mixtral.py --layers 1
"""

import argparse
import gc
import json
import os
import re
import shutil
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see benchmarks/moe.py
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from mistral_lab.config import PRESETS, ModelConfig
from mistral_lab.files import write_index, write_json
from mistral_lab.four_bit import Audit, audit, nf4_config, quantized_tensors
from mistral_lab.loading import Loaded
from mistral_lab.measure import (
    Machine,
    Measurement,
    Timing,
    measure_bandwidth,
    measure_generation,
    peak_memory,
    time_callable,
)
from mistral_lab.memory import free_bytes, weight_bytes
from mistral_lab.transformer.shapes import checkpoint_shapes

RESULTS = Path(__file__).parent / "results"
MODELS = ("mixtral-8x7b-v0.1", "mistral-7b-v0.1")
CONFIGS = {"lab": nf4_config, "plain": lambda: BitsAndBytesConfig(load_in_4bit=True)}


def arguments() -> argparse.Namespace:
    """The sizes of one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--layers", type=int, help="how many of the model's 32 (default: as many as the device holds)")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def layers_that_fit(config: ModelConfig, device: torch.device) -> int:
    """How many layers fit: in four bits on a card, or in 16 bits in a quarter of the computer's free memory."""
    one = replace(config, n_layers=1)
    if device.type == "cuda":
        free, precision = free_bytes(device), "nf4-double"
    else:
        free, precision = free_bytes(device) // 4, "bfloat16"
    layer = weight_bytes(replace(config, n_layers=2), precision) - weight_bytes(one, precision)
    rest = weight_bytes(one, precision) - layer
    return max(1, min(config.n_layers, (free - rest) // layer))


def write_checkpoint(folder: Path, config: ModelConfig, device: torch.device, *, quantised: bool) -> None:
    """Write a checkpoint with seeded random weights, one file per layer, in 16 bits or already in four."""
    folder.mkdir()
    random = torch.Generator(device).manual_seed(0)
    files: dict[str, dict[str, tuple[int, ...]]] = {}  # of the layers one each, and one for all else
    for name, shape in checkpoint_shapes(config).items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        files.setdefault(f"layer-{layer[1] if layer else 'rest'}.safetensors", {})[name] = shape
    for file, shapes in files.items():
        shard = {}
        for name, shape in shapes.items():
            weight = torch.ones(shape, dtype=torch.bfloat16, device=device)
            if len(shape) == 2:  # values with which the activations keep their magnitude
                weight.uniform_(-1, 1, generator=random).mul_((3 / shape[1]) ** 0.5)
            is_matrix = "_proj." in name or ".experts." in name
            shard |= quantized_tensors(name, weight) if quantised and is_matrix else {name: weight.cpu()}
        save_file(shard, folder / file, metadata={"format": "pt"})
    write_index(folder, list(files))
    described = config.to_transformers()
    described.architectures = ["MixtralForCausalLM" if config.num_experts else "MistralForCausalLM"]
    described.dtype = torch.bfloat16
    if quantised:
        described.quantization_config = nf4_config().to_dict()
    described.save_pretrained(folder)


def load_measured(
    folder: Path, name: str, config: ModelConfig, how: str, device: torch.device, *, quantised: bool
) -> tuple[Loaded, dict]:
    """Load a model in four bits, and return it with what loading took."""
    held = []

    def load() -> None:
        settings = {} if quantised else {"quantization_config": CONFIGS[how]()}
        held.append(
            AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16, device_map=device, **settings)
        )

    start = time.perf_counter()
    peak = peak_memory(load, device, anonymous=True)
    seconds = time.perf_counter() - start
    gc.collect()
    finished = peak_memory(lambda: None, device, anonymous=True)
    loading = {
        "seconds": seconds,
        "from_bits": 4 if quantised else 16,
        "peak_bytes": peak.bytes,
        "finished_bytes": finished.bytes,
        "above_bytes": peak.bytes - finished.bytes,
        "of": peak.of,
    }
    return Loaded(held.pop().eval(), None, f"{name}, {how}", config), loading


def bytes_per_token(report: Audit, config: ModelConfig) -> int:
    """The bytes that one token reads: everything but the embedding, and of the experts those that it goes through."""
    share = config.num_experts_per_tok / config.num_experts if config.num_experts else 1
    read = {row: row.nbytes * (share if row.name == "experts" else 1) for row in report.rows if row.name != "embedding"}
    return int(sum(read.values()))


def around_the_layers(loaded: Loaded) -> Timing:
    """Time one token outside the layers, in the last norm and the output layer."""
    model = loaded.model
    x = torch.zeros(1, 1, loaded.config.dim, dtype=torch.bfloat16, device=model.device)
    return time_callable(lambda: model.lm_head(model.model.norm(x)), repeats=21, device=model.device)


@torch.no_grad()
def measure(name: str, options: argparse.Namespace, device: torch.device, bandwidth: float) -> list[dict]:
    """Measure one model, and return a record for each way of loading it."""
    full = PRESETS[name]
    layers = min(options.layers or layers_that_fit(full, device), full.n_layers)
    config = replace(full, n_layers=layers)
    sixteen_bits = weight_bytes(config, "bfloat16")
    quantised = 2 * sixteen_bits > min(free_bytes(device), shutil.disk_usage(tempfile.gettempdir()).free)
    loaded, records = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name
        write_checkpoint(folder, config, device, quantised=quantised)
        for how in ("lab",) if quantised else CONFIGS:
            loaded[how], loading = load_measured(folder, name, config, how, device, quantised=quantised)
            report = audit(loaded[how].model)
            records[how] = {
                "model": name,
                "how": how,
                "layers": layers,
                "of_layers": full.n_layers,
                "loading": loading,
                "two_experts_bytes": 2 * 3 * 2 * config.dim * config.hidden_dim,
                "audit": {
                    "passed": report.passed,
                    "verdict": report.verdict,
                    "rows": [asdict(row) for row in report.rows],
                },
                "read_bytes_per_s": bandwidth,
                "bytes_a_token": bytes_per_token(report, config),
            }
    rounds = {how: [] for how in loaded}
    for _ in range(options.rounds):
        for how, model in loaded.items():
            rounds[how].append(
                measure_generation(model, prompt_tokens=options.prompt_tokens, new_tokens=options.new_tokens, repeats=1)
            )
    for how, record in records.items():
        found = replace(
            rounds[how][0],
            samples_s=tuple(run for one in rounds[how] for run in one.samples_s),
            peak_bytes=max(one.peak_bytes for one in rounds[how]),
        )
        record["generation"] = asdict(found)
        record["computed"] = extrapolate(found, around_the_layers(loaded[how]), config, full)
    return list(records.values())


def extrapolate(found: Measurement, rest: Timing, config: ModelConfig, full: ModelConfig) -> dict | None:
    """Compute what all layers would take if each took what it takes here; None where no layer was missing."""
    if config.n_layers == full.n_layers:
        return None

    def scaled(seconds: float) -> float:
        return rest.median_s + (seconds - rest.median_s) * full.n_layers / config.n_layers

    return {"first_token_s": scaled(found.first_token_s), "per_token_s": scaled(found.per_token_s)}


def show(records: list[dict], precisions: dict[str, int]) -> None:
    """Print the table of one model."""
    first = records[0]
    generation = Measurement.from_json(json.dumps(first["generation"]))
    print(
        f"\n{first['model']}: {first['layers']} of {first['of_layers']} layers of full size, random weights; prompt of "
        f"{generation.prompt_tokens} tokens, {generation.new_tokens} new"
    )
    print(f"{'GiB':>14}{'loading above':>15}{'first token':>13}{'per token':>10}{'spread':>9}{'floor':>9}{'4 bits':>8}")
    print(f"{'':7}{'':>7}{'GiB':>15}{'s':>13}{'ms':>10}{'ms':>9}{'ms':>9}")
    for record in records:
        found = Measurement.from_json(json.dumps(record["generation"]))
        size = sum(row["nbytes"] for row in record["audit"]["rows"])
        floor = record["bytes_a_token"] / record["read_bytes_per_s"]
        print(
            f"{record['how']:7}{size / 2**30:7.2f}{record['loading']['above_bytes'] / 2**30:15.2f}"
            f"{found.first_token_s:13.2f}{found.per_token_s * 1e3:10.1f}{found.per_token.spread_s * 1e3:9.1f}"
            f"{floor * 1e3:9.1f}{'yes' if record['audit']['passed'] else 'NO':>8}"
        )
    above, allowed = first["loading"]["above_bytes"], first["two_experts_bytes"]
    if first["loading"]["from_bits"] == 16:
        print(
            f"loading from 16 bits: {above / 2**20:,.0f} MiB above the finished model; two experts in 16 bits have "
            f"{allowed / 2**20:,.0f} MiB"
        )
    for record in records:
        print(f"{record['how']}: {record['audit']['verdict']}")
        if computed := record["computed"]:
            print(
                f"{record['how']}: computed, not measured, for {record['of_layers']} layers: first token "
                f"{computed['first_token_s']:.1f} s, then {computed['per_token_s'] * 1e3:,.0f} ms per token"
            )
    print(
        "weights of all layers, computed: "
        + ", ".join(f"{key} {size / 2**30:.2f} GiB" for key, size in precisions.items())
    )


def keep(records: list[dict], folder: Path) -> Path:
    """Put records into the device's file, where they replace earlier ones of the same work."""
    machine = records[0]["generation"]["machine"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    path = folder / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json")
    folder.mkdir(exist_ok=True)
    key = ("model", "how", "layers")
    fresh = [tuple(record[part] for part in key) for record in records]
    known = json.loads(path.read_text())["records"] if path.exists() else []
    kept = [record for record in known if tuple(record[part] for part in key) not in fresh]
    write_json(path, {"device": device, "records": kept + records})
    return path


def main() -> None:
    """Measure each model, print its table, keep the records, and print one line of JSON."""
    options = arguments()
    torch.set_num_threads(options.threads)
    transformers_logging.disable_progress_bar()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    bandwidth = measure_bandwidth(device)
    results = []
    for name in options.models:
        records = measure(name, options, device, bandwidth)
        if not results:
            print(f"{Machine(**records[0]['generation']['machine'])}; reads {bandwidth / 1e9:.1f} GB/s")
        show(records, {key: weight_bytes(PRESETS[name], key) for key in ("bfloat16", "nf4", "nf4-double")})
        kept = keep(records, options.results)
        results += records
        gc.collect()
    print(f"\nkept in {kept.name}")
    summary = [{key: record[key] for key in ("model", "how", "layers", "computed")} for record in results]
    print(json.dumps({"benchmark": "mixtral", "rounds": options.rounds, "results": summary}))


if __name__ == "__main__":
    main()
