"""Where the time of one token goes: a dense model in 4 bits on a CPU, against the number of tokens before it.

For each context: the whole token, its 4-bit products, its output layer, its attention, and the rest, which is norms,
rotary positions, the cache and Python; beside it the floor, the bytes that one token reads at the speed at which this
machine read just then. The tokens before it are random keys and values, so that no context has to be computed.

    python benchmarks/one_token.py
    python benchmarks/one_token.py --model path/to/mistral-7b --contexts 32 512 2048
    python benchmarks/one_token.py --attention sdpa    # as transformers attends by itself
"""

import argparse
import json
import statistics
import time
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

from mistral_lab.four_bit import ExactLinear4bit
from mistral_lab.loading import load
from mistral_lab.loading.loaded import new_cache
from mistral_lab.measure import filled, measure_bandwidth


def arguments() -> argparse.Namespace:
    """What one run measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny-mistral", help="a bundled name or a folder")
    parser.add_argument("--contexts", type=int, nargs="+", default=[32, 512, 2048], help="tokens before the one timed")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--attention", help="the name of another attention, such as sdpa")
    return parser.parse_args()


def time_modules(model, seconds: Counter) -> None:
    """Have each 4-bit layer and the output layer add the seconds of its calls to `seconds`."""
    output = model.get_output_embeddings()
    parts = [(part, "products") for part in model.modules() if isinstance(part, ExactLinear4bit)]
    for module, name in [*parts, (output, "output")]:
        module.register_forward_pre_hook(lambda *_, name=name: seconds.subtract({name: time.perf_counter()}))
        module.register_forward_hook(lambda *_, name=name: seconds.update({name: time.perf_counter()}))


def bytes_read(model, tokens: int) -> int:
    """Bytes of the weights, packed codes and scales among them, and of the keys and values that one token reads."""
    layers = [part for part in model.modules() if isinstance(part, ExactLinear4bit)]
    four_bit = sum(part.weight.nbytes + part.weight.quant_state.absmax.nbytes for part in layers)
    config = model.config
    seen = min(tokens, config.sliding_window or tokens)
    cache = 2 * 2 * seen * config.num_key_value_heads * config.head_dim * config.num_hidden_layers
    return four_bit + model.get_output_embeddings().weight.nbytes + cache


def attention_s(step) -> float:
    """Seconds of PyTorch's attention kernels in one call of `step`; the profiler's own time is not in them."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    found = [event for event in profiler.key_averages() if event.key == "aten::scaled_dot_product_attention"]
    return sum(event.cpu_time_total for event in found) / 1e6


@torch.inference_mode()
def main() -> None:
    """Measure, then print one line per context and one line of JSON."""
    options = arguments()
    torch.set_num_threads(options.threads)
    loaded = load(options.model, bits=4, device="cpu")
    if loaded.config.num_experts:
        raise SystemExit(f"{options.model} is a mixture, of which a token reads some experts: expected a dense model")
    model = loaded.model
    if options.attention:
        model.set_attn_implementation(options.attention)
    token, seconds = torch.tensor([[5]]), Counter()
    model(token)  # packs the weights
    time_modules(model, seconds)
    record = {"benchmark": "one_token", **vars(options), "torch": torch.__version__, "results": []}
    print(f"{'context':>7}{'ms/token':>10}{'products':>10}{'output':>8}{'attention':>11}{'rest':>7}{'floor':>8}{'GB/s':>7}")
    for context in options.contexts:
        cache = filled(new_cache(model), model, context)
        step = lambda cache=cache: model(token, past_key_values=cache)  # noqa: E731
        step()
        bandwidth, rows = measure_bandwidth(), []
        for _ in range(options.repeats):
            seconds.clear()
            start = time.perf_counter()
            step()
            rows.append({"token": time.perf_counter() - start, **seconds})
        row = {name: statistics.median(each[name] for each in rows) for name in rows[0]}
        row["attention"] = statistics.median(attention_s(step) for _ in range(3))
        row["rest"] = row["token"] - row["products"] - row["output"] - row["attention"]
        row["floor"] = bytes_read(model, context) / bandwidth
        ms = {name: value * 1e3 for name, value in row.items()}
        print(
            f"{context:7}{ms['token']:10.1f}{ms['products']:10.1f}{ms['output']:8.1f}{ms['attention']:11.1f}"
            f"{ms['rest']:7.1f}{ms['floor']:8.1f}{bandwidth / 1e9:7.1f}"
        )
        record["results"].append({"context": context, "bandwidth": bandwidth, **{f"{k}_s": v for k, v in row.items()}})
    print(json.dumps(record))


if __name__ == "__main__":
    main()
