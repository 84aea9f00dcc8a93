"""What the benchmarks of one mixture-of-experts layer share: its sizes, and a table for each number of tokens."""

import argparse
import json
from collections.abc import Callable

import torch

from mistral_lab.measure import measure_bandwidth


def size_arguments(description: str, *, repeats: int) -> argparse.ArgumentParser:
    """Make a parser for the sizes of one run; the defaults are one layer of Mixtral 8x7B."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 256], help="N, one table each")
    parser.add_argument("--dim", type=int, default=4096, help="d, width of the residual stream")
    parser.add_argument("--hidden", type=int, default=14_336, help="h, width inside an expert")
    parser.add_argument("--experts", type=int, default=8, help="E")
    parser.add_argument("--experts-per-tok", type=int, default=2, help="A")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=repeats)
    return parser


@torch.no_grad()
def run_benchmark(
    name: str,
    options: argparse.Namespace,
    build: Callable[[], Callable[[int, float], dict]],
    show: Callable[[dict, float], None],
    *,
    dtype: str = "bfloat16",
) -> None:
    """Measure a layer, and print a table for each number of tokens and one line of JSON.

    Args:
        name: of the benchmark.
        options: what `size_arguments` parsed.
        build: makes the layer, and returns a function that measures it on N tokens, given the bytes per second that
            this machine reads.
        show: prints the table of one such measurement, given the same speed.
        dtype: of the tokens.
    """
    torch.set_num_threads(options.threads)
    bandwidth = measure_bandwidth()
    print(
        f"torch {torch.__version__}, {options.threads} threads, {dtype}, d={options.dim}, h={options.hidden}, "
        f"E={options.experts}, A={options.experts_per_tok}; {options.repeats} rounds and a warm-up; "
        f"this machine reads {bandwidth / 1e9:.1f} GB/s"
    )
    measure = build()
    results = []
    for N in options.tokens:
        results.append(measure(N, bandwidth))
        show(results[-1], bandwidth)
    print(json.dumps({"benchmark": name, **vars(options), "read_bytes_per_s": bandwidth, "results": results}))
