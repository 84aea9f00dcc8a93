"""`windowed_attention` beside `scaled_dot_product_attention`, with the window's dense mask and with `is_causal`.

Every round times each function once: `windowed_attention` at all sizes, its peers at the first. Ratios and growth are
taken round by round, so that what slows down a whole round cancels. Memory is measured in a process of its own for each
size. Run it on a quiet machine: `python benchmarks/attention.py`. With `--flex`, which needs a C++ compiler,
FlexAttention is compiled and joins the peers. For a quick look:
`python benchmarks/attention.py --tokens 1024 2048 --window 128 --heads 8 --kv-heads 2`.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable
from functools import partial

import psutil
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from mistral_lab.attention import QUERY_CHUNK, windowed_attention
from mistral_lab.masks import sliding_window_mask
from mistral_lab.measure import compare, peak_bytes, time_in_turns

MIB = 2**20
CAUSAL = "SDPA, is_causal"  # the one that computes something else


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
    parser.add_argument("--flex", action="store_true", help="compile FlexAttention, some 20 s, and time it too")
    return parser.parse_args()


def inputs(T: int, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Seeded q (1, T, H, D) and k, v (1, T, K, D)."""
    random = torch.Generator().manual_seed(0)
    dtype = getattr(torch, options.dtype)
    heads = (options.heads, options.kv_heads, options.kv_heads)
    return tuple(torch.randn(1, T, n, options.head_dim, generator=random).to(dtype) for n in heads)


def pairs_computed(T: int, window: int) -> int:
    """Count the pairs of query and key per head whose score `windowed_attention` computes, hidden ones included."""
    blocks_back = -(-(min(window, T) - 1) // QUERY_CHUNK)
    total = 0
    for start in range(0, T, QUERY_CHUNK):
        end = min(start + QUERY_CHUNK, T)
        total += (end - start) * (end - max(0, start - blocks_back * QUERY_CHUNK))
    return total


def peers(T: int, options: argparse.Namespace) -> dict[str, tuple[Callable[[], torch.Tensor], int]]:
    """What people use for a window: functions that return (1, H, T, D), and the pairs per head that each computes."""
    W = options.window
    q, k, v = (x.transpose(1, 2) for x in inputs(T, options))
    mask = sliding_window_mask(T, W)
    found = {
        "SDPA, window's mask": (
            lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True),
            T * T,
        ),
        CAUSAL: (
            lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
            T * (T + 1) // 2,
        ),
    }
    if options.flex:
        blocks = create_block_mask(lambda b, h, i, j: (i >= j) & (i - j < W), None, None, T, T, device="cpu")
        compiled = torch.compile(flex_attention, dynamic=False)
        side = blocks.BLOCK_SIZE[0] * blocks.BLOCK_SIZE[1]
        visited = int(blocks.kv_num_blocks.sum() + blocks.full_kv_num_blocks.sum()) * side
        found["FlexAttention, compiled"] = (
            lambda: compiled(q, k, v, block_mask=blocks, enable_gqa=True),
            visited,
        )
    return found


@torch.no_grad()
def extra_bytes(T: int, options: argparse.Namespace) -> int:
    """Measure the peak memory of one call beyond what the process held before it; to be called in a fresh process."""
    torch.set_num_threads(options.threads)
    q, k, v = inputs(T, options)
    few = min(T, QUERY_CHUNK)
    windowed_attention(q[:, :few], k[:, :few], v[:, :few], window=options.window)  # loads what the first call loads
    before = psutil.Process().memory_info().rss
    return peak_bytes(lambda: windowed_attention(q, k, v, window=options.window)) - before


@torch.no_grad()
def main() -> None:
    """Measure, then print a table, the growth, and one line of JSON."""
    options = arguments()
    torch.set_num_threads(options.threads)
    W, first = options.window, options.tokens[0]
    print(
        f"torch {torch.__version__}, {options.threads} threads, {options.dtype}, B=1, H={options.heads}, "
        f"K={options.kv_heads}, D={options.head_dim}, W={W}, chunks of {QUERY_CHUNK}; {options.repeats} rounds and a "
        "warm-up"
    )
    functions = {T: partial(windowed_attention, *inputs(T, options), window=W) for T in options.tokens}
    pairs = {T: pairs_computed(T, W) for T in options.tokens}
    expected = functions[first]()
    for name, (function, computed) in peers(first, options).items():
        if name != CAUSAL:
            difference = (function().transpose(1, 2) - expected).abs().max()
            print(f"T={first}: largest difference from {name}: {difference:.1e}")
        functions[name], pairs[name] = function, computed
    timings = time_in_turns(functions, repeats=options.repeats)

    columns = f"{'median s':>9}{'spread s':>9}{'ratio':>7}{'(range)':>15}{'pairs':>14}{'predicted':>10}"
    print(f"\n{f'at T={first}':26}{columns}")
    rows = [
        {
            "name": "windowed_attention" if name == first else name,
            "median_s": timings[name].median_s,
            "spread_s": timings[name].spread_s,
            **compare(timings[name], timings[first]),
            "pairs": pairs[name],
            "predicted_ratio": pairs[name] / pairs[first],
        }
        for name in functions
        if name == first or isinstance(name, str)
    ]
    for row in rows:
        spread = f"{row['least']:.2f} to {row['largest']:.2f}"
        print(
            f"{row['name']:26}{row['median_s']:9.3f}{row['spread_s']:9.3f}{row['ratio']:7.2f}{spread:>15}"
            f"{row['pairs']:14,}{row['predicted_ratio']:10.2f}"
        )

    value_bytes = torch.finfo(getattr(torch, options.dtype)).bits // 8
    growth = []
    print(
        f"\n{'windowed_attention':20}{'median s':>9}{'time x':>8}{'(range)':>15}{'predicted':>10}"
        f"{'extra MiB':>11}{'predicted':>10}{'memory x':>9}"
    )
    for T in options.tokens:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            extra = pool.apply(extra_bytes, (T, options))
        row = {
            "tokens": T,
            "median_s": timings[T].median_s,
            "spread_s": timings[T].spread_s,
            **compare(timings[T], timings[first]),
            "pairs": pairs[T],
            "predicted_ratio": pairs[T] / pairs[first],
            "extra_bytes": extra,
            "predicted_extra_bytes": T * options.heads * options.head_dim * value_bytes,  # what it returns
            "memory_ratio": extra / (growth[0]["extra_bytes"] if growth else extra),
        }
        growth.append(row)
        spread = f"{row['least']:.2f} to {row['largest']:.2f}"
        print(
            f"{f'T={T}':20}{row['median_s']:9.3f}{row['ratio']:8.2f}{spread:>15}{row['predicted_ratio']:10.2f}"
            f"{extra / MIB:11.0f}{row['predicted_extra_bytes'] / MIB:10.0f}{row['memory_ratio']:9.2f}"
        )
    print(json.dumps({"benchmark": "attention", **vars(options), "timings": rows, "growth": growth}))


if __name__ == "__main__":
    main()
