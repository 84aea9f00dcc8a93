"""The cache's work for one decoded token: the mirrored ring beside transformers' dynamic sliding cache.

Both caches are filled with W tokens. Then they take one token at a time, in turns, so that whatever else the machine
does slows down both. No model runs. The prediction, with one token of one layer being 2·B·K·D values:

    ring           reads the token once and writes it twice: 3 tokens, whatever W is
    DynamicCache   concatenates: reads W tokens and writes W, so 2·W tokens

    python benchmarks/cache.py
    python benchmarks/cache.py --window 256 --layers 4 --steps 20
"""

import argparse
import json
import statistics
import time

import torch
from transformers import DynamicCache, MistralConfig

from mistral_lab.cache import RollingCache

WARM_UP = 3  # steps of each cache before the timed ones


def arguments() -> argparse.Namespace:
    """The sizes of Mistral 7B unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--window", type=int, default=4096, help="W, keys that a query sees (default 4096)")
    parser.add_argument("--layers", type=int, default=32, help="decoder layers (default 32)")
    parser.add_argument("--kv-heads", type=int, default=8, help="K (default 8)")
    parser.add_argument("--head-dim", type=int, default=128, help="D (default 128)")
    parser.add_argument("--batch", type=int, default=1, help="B, sequences (default 1)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--steps", type=int, default=50, help="timed steps of each cache (default 50)")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's threads (default 2)")
    chosen = parser.parse_args()
    for name, value in vars(chosen).items():
        least = 2 if name == "window" else 1  # at W = 1 the dynamic cache keeps every token
        if name != "dtype" and value < least:
            parser.error(f"--{name.replace('_', '-')} is {value}: expected at least {least}")
    return chosen


@torch.no_grad()  # as in generate
def step(cache, token, layers: int) -> float:
    """Add one chunk to every layer, and return the seconds that it took; in the timed steps it is one token."""
    start = time.perf_counter()
    for layer in range(layers):
        cache.update(token, token, layer)
    return time.perf_counter() - start


def held_bytes(cache: DynamicCache) -> int:
    """Bytes of the storage behind a dynamic cache, what its views pin included."""
    return sum(states.untyped_storage().nbytes() for layer in cache.layers for states in (layer.keys, layer.values))


def row(name: str, times: list[float], moved: int) -> str:
    """A line of the table: median, fastest and slowest step, predicted bytes, and the speed that they imply."""
    median, gb_s = statistics.median(times), moved / statistics.median(times) / 1e9
    spread = f"{min(times) * 1e3:.3f} to {max(times) * 1e3:.3f}"
    return f"{name:<14}{median * 1e3:>12.3f}{spread:>24}{moved / 1e6:>16.3f}{gb_s:>12.2f}"


def main() -> None:
    """Fill, alternate, print."""
    sizes = arguments()
    torch.set_num_threads(sizes.threads)
    config = MistralConfig(
        hidden_size=sizes.kv_heads * sizes.head_dim,
        num_attention_heads=sizes.kv_heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        num_hidden_layers=sizes.layers,
        sliding_window=sizes.window,
    )
    dtype = getattr(torch, sizes.dtype)
    torch.manual_seed(0)
    prompt = torch.randn(sizes.batch, sizes.kv_heads, sizes.window, sizes.head_dim).to(dtype)
    token = prompt[:, :, :1].clone()

    layer_token_bytes = 2 * token.numel() * token.element_size()  # keys and values
    token_bytes = sizes.layers * layer_token_bytes
    moved = {"ring": 3 * token_bytes, "DynamicCache": 2 * sizes.window * token_bytes}
    print(
        f"W = {sizes.window}, {sizes.layers} layers, K = {sizes.kv_heads}, D = {sizes.head_dim}, B = {sizes.batch}, "
        f"{sizes.dtype}, {sizes.threads} threads, torch {torch.__version__}"
    )
    print(
        f"predicted: the ring moves {moved['ring']:,} bytes per token, the dynamic cache {moved['DynamicCache']:,}: "
        f"{moved['DynamicCache'] / moved['ring']:,.0f} times as many"
    )

    caches = {"ring": RollingCache(config), "DynamicCache": DynamicCache(config=config)}
    for cache in caches.values():
        step(cache, prompt, sizes.layers)
    ring_at_w = caches["ring"].nbytes
    times = {name: [] for name in caches}
    for round_number in range(WARM_UP + sizes.steps):
        for name, cache in caches.items():
            seconds = step(cache, token, sizes.layers)
            if round_number >= WARM_UP:
                times[name].append(seconds)
    dynamic_bytes = held_bytes(caches["DynamicCache"])

    while (left := 8 * sizes.window - caches["ring"].get_seq_length()) > 0:
        step(caches["ring"], prompt[:, :, :left], sizes.layers)
    ring_at_8w = caches["ring"].nbytes

    print(f"\n{'per token':<14}{'median ms':>12}{'fastest to slowest ms':>24}{'predicted MB':>16}{'GB/s':>12}")
    for name in caches:
        print(row(name, times[name], moved[name]))
    medians = {name: statistics.median(run) for name, run in times.items()}
    ratio = medians["DynamicCache"] / medians["ring"]
    print(
        f"\nthe ring is {ratio:.1f} times cheaper; it moves so little that calls into PyTorch set its time: "
        f"{medians['ring'] / sizes.layers * 1e6:.1f} µs per layer"
    )

    window_bytes = sizes.window * token_bytes
    ended = sizes.window + WARM_UP + sizes.steps
    print(
        f"storage: W tokens are {window_bytes:,} bytes; the ring holds {ring_at_w:,} at token W "
        f"({ring_at_w / window_bytes:.3f} W) and {ring_at_8w:,} at token 8·W; "
        f"the dynamic cache {dynamic_bytes:,} at token {ended:,}"
    )
    result = {
        "benchmark": "cache",
        **vars(sizes),
        "torch": torch.__version__,
        "ring_ms": medians["ring"] * 1e3,
        "ring_fastest_ms": min(times["ring"]) * 1e3,
        "ring_slowest_ms": max(times["ring"]) * 1e3,
        "dynamic_ms": medians["DynamicCache"] * 1e3,
        "dynamic_fastest_ms": min(times["DynamicCache"]) * 1e3,
        "dynamic_slowest_ms": max(times["DynamicCache"]) * 1e3,
        "ratio": ratio,
        "predicted_ring_bytes": moved["ring"],
        "predicted_dynamic_bytes": moved["DynamicCache"],
        "window_bytes": window_bytes,
        "ring_bytes_at_w": ring_at_w,
        "ring_bytes_at_8w": ring_at_8w,
        "dynamic_bytes": dynamic_bytes,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
