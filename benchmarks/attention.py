"""`windowed_attention` beside `scaled_dot_product_attention`, with the window's dense mask and with `is_causal`.

The first size is timed in turns with both peers, the other sizes alone, to see how time and memory grow. Memory is
taken in a process of its own for each size. Run it on a quiet machine: `python benchmarks/attention.py`.
For a look: `python benchmarks/attention.py --tokens 1024 2048 --window 128 --heads 8 --kv-heads 2`.
"""

import argparse
import json
import multiprocessing
import statistics
import time

import psutil
import torch
from torch.nn.functional import scaled_dot_product_attention

from mistral_lab.attention import CHUNK, windowed_attention
from mistral_lab.masks import causal_mask, sliding_window_mask
from mistral_lab.measure import Timing, peak_bytes

MIB = 2**20


def arguments() -> argparse.Namespace:
    """The sizes of one run; the defaults have Mistral 7B's heads and a quarter of its window."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32_768], help="T; peers run at the first alone")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def inputs(T: int, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Seeded q (1, T, H, D) and k, v (1, T, K, D)."""
    random = torch.Generator().manual_seed(0)
    dtype = getattr(torch, options.dtype)
    heads = (options.heads, options.kv_heads, options.kv_heads)
    return tuple(torch.randn(1, T, n, options.head_dim, generator=random).to(dtype) for n in heads)


def pairs_computed(T: int, window: int) -> int:
    """Query and key pairs a head whose score `windowed_attention` computes, hidden ones included."""
    blocks_back = -(-(min(window, T) - 1) // CHUNK)
    total = 0
    for start in range(0, T, CHUNK):
        end = min(start + CHUNK, T)
        total += (end - start) * (end - max(0, start - blocks_back * CHUNK))
    return total


def in_turns(functions: dict, repeats: int) -> dict[str, Timing]:
    """Time each once a round, after one round of warm-up, so that a slow minute meets all of them."""
    runs_s = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            runs_s[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(runs[1:])) for name, runs in runs_s.items()}


@torch.no_grad()
def extra_bytes(T: int, options: argparse.Namespace) -> int:
    """Peak resident memory of one call beyond what the process held with its inputs; for a fresh process."""
    torch.set_num_threads(options.threads)
    q, k, v = inputs(T, options)
    few = min(T, CHUNK)
    windowed_attention(q[:, :few], k[:, :few], v[:, :few], window=options.window)  # loads what the first call loads
    before = psutil.Process().memory_info().rss
    return peak_bytes(lambda: windowed_attention(q, k, v, window=options.window)) - before


@torch.no_grad()
def main() -> None:
    """Measure, and print a table, the growth, and one line of JSON."""
    options = arguments()
    torch.set_num_threads(options.threads)
    W, results = options.window, []
    print(
        f"torch {torch.__version__}, {options.threads} threads, {options.dtype}, B=1, H={options.heads}, "
        f"K={options.kv_heads}, D={options.head_dim}, W={W}, chunks of {CHUNK}; {options.repeats} runs after a warm-up"
    )
    for T in options.tokens:
        q, k, v = inputs(T, options)
        functions = {"windowed_attention": lambda q=q, k=k, v=v: windowed_attention(q, k, v, window=W)}
        pairs = {"windowed_attention": pairs_computed(T, W)}
        if not results:
            mask = sliding_window_mask(T, W)
            heads_first = [x.transpose(1, 2) for x in (q, k, v)]
            functions["SDPA, window's mask"] = lambda x=heads_first, mask=mask: scaled_dot_product_attention(
                *x, attn_mask=mask, enable_gqa=True
            )
            functions["SDPA, is_causal"] = lambda x=heads_first: scaled_dot_product_attention(
                *x, is_causal=True, enable_gqa=True
            )
            pairs |= {"SDPA, window's mask": T * T, "SDPA, is_causal": int(causal_mask(T).sum())}
            difference = (functions["windowed_attention"]() - functions["SDPA, window's mask"]().transpose(1, 2)).abs()
            print(f"T={T}: largest difference from SDPA with the window's mask {difference.max():.1e}")
            del mask, difference
        timings = in_turns(functions, options.repeats)
        ours = timings["windowed_attention"]
        columns = f"{'median s':>10}{'spread s':>10}{'ratio':>8}{'(range)':>15}{'pairs':>15}{'predicted':>11}"
        print(f"\n{'T=' + str(T):22}{columns}")
        for name, timing in timings.items():
            # Each round has its own ratio, so what slowed a whole round falls out of it.
            ratios = [theirs / mine for theirs, mine in zip(timing.runs_s, ours.runs_s, strict=True)]
            row = {
                "tokens": T,
                "name": name,
                "median_s": timing.median_s,
                "spread_s": timing.spread_s,
                "ratio": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
                "pairs": pairs[name],
                "predicted_ratio": pairs[name] / pairs["windowed_attention"],
            }
            results.append(row)
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(
                f"{name:22}{timing.median_s:10.3f}{timing.spread_s:10.3f}{row['ratio']:8.2f}{spread:>15}"
                f"{pairs[name]:15,}{row['predicted_ratio']:11.2f}"
            )
        del q, k, v, functions

    value_bytes = torch.finfo(getattr(torch, options.dtype)).bits // 8
    own = {row["tokens"]: row for row in results if row["name"] == "windowed_attention"}
    growth = []
    print(
        f"\n{'windowed_attention':22}{'time x':>10}{'predicted':>11}{'extra MiB':>11}{'predicted':>11}{'memory x':>10}"
    )
    for T in options.tokens:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory = pool.apply(extra_bytes, (T, options))
        predicted = 2 * T * options.heads * options.head_dim * value_bytes  # the chunks, and their join
        first = (
            growth[0] if growth else {"median_s": own[T]["median_s"], "pairs": own[T]["pairs"], "extra_bytes": memory}
        )
        growth.append(
            {
                "tokens": T,
                "median_s": own[T]["median_s"],
                "pairs": own[T]["pairs"],
                "time_growth": own[T]["median_s"] / first["median_s"],
                "predicted_time_growth": own[T]["pairs"] / first["pairs"],
                "extra_bytes": memory,
                "predicted_extra_bytes": predicted,
                "memory_growth": memory / first["extra_bytes"],
            }
        )
        row = growth[-1]
        print(
            f"{'T=' + str(T):22}{row['time_growth']:10.2f}{row['predicted_time_growth']:11.2f}{memory / MIB:11.0f}"
            f"{predicted / MIB:11.0f}{row['memory_growth']:10.2f}"
        )
    print(json.dumps({"benchmark": "attention", **vars(options), "timings": results, "growth": growth}))


if __name__ == "__main__":
    main()
