"""One mixture-of-experts layer: `route_top_k` and `sparse_experts` beside the experts implementations of transformers.

Unless told otherwise, the layer is Mixtral's in bfloat16: router and experts, with the same weights (2.8 GB, held once)
and the same tokens for all. For each number of tokens, every round times each function once, so that a slow minute
slows down all of them, and ratios are taken round by round. An implementation that does not run here, that needs over
half of the free memory, or that is far behind is listed with the reason and takes part in no round.

The prediction: n tokens that choose A of E experts at random touch E·(1 - (1 - A/E)^n) of them. One token computes
little, so the layer takes at least as long as this machine needs to read the bytes of A experts from memory. Where it
takes twice as long in bfloat16, for all alike, the cause is oneDNN (torch 2.13, AVX512_BF16): before it multiplies, it
copies every block of weights into another order. For one row, a profile shows ten times as much time in
`jit_brgemm_matmul_copy_b_transposed` as in the product itself.

Threads that wait for each other sleep (OMP_WAIT_POLICY=PASSIVE, unless it is set). If they spin, and another process
wants the core, every product can wait for the scheduler for 4 ms or more. On a busy machine the run would then count
products rather than time them.

    python benchmarks/moe.py
    python benchmarks/moe.py --dim 256 --hidden 896 --tokens 1 16
"""

import argparse
import os
import time
from collections.abc import Callable

# Both are read at import. Torch reads the first. With the second, transformers refuses kernels on the hub instead of
# downloading them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from compat import choose_experts
from experts import run_benchmark, size_arguments
from torch.nn import functional
from transformers import MixtralConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from mistral_lab.measure import compare, time_in_turns
from mistral_lab.memory import free_bytes
from mistral_lab.moe import Expert, route_top_k, sparse_experts, split_experts

LAB = "mistral_lab"
FAR_BEHIND = 5  # times the fastest


def build_block(options: argparse.Namespace) -> MixtralSparseMoeBlock:
    """transformers' block, with seeded weights that leave values of the size of the tokens."""
    config = MixtralConfig(
        hidden_size=options.dim,
        intermediate_size=options.hidden,
        num_local_experts=options.experts,
        num_experts_per_tok=options.experts_per_tok,
    )
    with torch.device("meta"):
        block = MixtralSparseMoeBlock(config)
    block.to(getattr(torch, options.dtype)).to_empty(device="cpu").requires_grad_(False)
    torch.manual_seed(0)
    for weight in block.parameters():
        weight.uniform_(-1, 1).mul_((3 / weight.shape[-1]) ** 0.5)
    return block.eval()


def peers(block: MixtralSparseMoeBlock, x: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """Every experts implementation that transformers lists, as a function that runs the block with it."""

    def run(name: str) -> torch.Tensor:
        choose_experts(block.experts.config, name)
        return block(x[None])[0]

    names = ["eager", *sorted(ALL_EXPERTS_FUNCTIONS.valid_keys())]
    return {name: lambda name=name: run(name) for name in names}


def sort_out(functions: dict, expected: torch.Tensor, gathered_bytes: int) -> tuple[list[str], dict[str, str]]:
    """Call each function twice and compare its result; return the names to time, and why the others are left out."""
    second_s, absent = {}, {}
    for name, function in functions.items():
        if name == "batched_mm" and gathered_bytes > free_bytes() / 2:
            absent[name] = (
                f"copies the experts of every choice, {gathered_bytes / 1e9:.0f} GB: too much for this machine"
            )
            continue
        try:
            result = function()
        except Exception as error:  # whatever a kernel that is not there raises
            absent[name] = f"does not run here: {str(error).splitlines()[0].split('. ')[0]}"
            continue
        difference = (result.float() - expected.float()).abs().max() / expected.float().abs().max()
        if not difference < 0.02:  # bfloat16 keeps 8 bits, and rounds three times on the way
            raise RuntimeError(f"{name} differs by {difference:.1e} of the largest value: nothing to compare")
        start = time.perf_counter()
        function()
        second_s[name] = time.perf_counter() - start
    for name in [name for name in second_s if second_s[name] > FAR_BEHIND * min(second_s.values())]:
        absent[name] = f"{second_s.pop(name) * 1e3:,.0f} ms at its second call, over {FAR_BEHIND} times the fastest"
    return list(second_s), absent


def measure(block: MixtralSparseMoeBlock, experts: list[Expert], N: int, options: argparse.Namespace) -> dict:
    """Time the layer on N tokens in every way that runs, and count the experts that they touch."""
    x = torch.randn(N, options.dim, generator=torch.Generator().manual_seed(N)).to(block.gate.weight.dtype)
    A = options.experts_per_tok

    def lab() -> torch.Tensor:
        logits = functional.linear(x, block.gate.weight)
        return sparse_experts(x, route_top_k(logits, num_experts_per_tok=A), experts)

    chosen = route_top_k(functional.linear(x, block.gate.weight), num_experts_per_tok=A).indices
    expert_bytes = sum(weight.nbytes for weight in experts[0])
    functions = {LAB: lab} | peers(block, x)
    names, absent = sort_out(functions, lab(), chosen.numel() * expert_bytes)
    timings = time_in_turns({name: functions[name] for name in names}, repeats=options.repeats)
    rows = [
        {
            "name": name,
            "median_s": timing.median_s,
            "spread_s": timing.spread_s,
            **compare(timings[LAB], timing),  # the lab over it
        }
        for name, timing in timings.items()
    ]
    fastest = min((row for row in rows if row["name"] != LAB), key=lambda row: row["median_s"])
    return {
        "tokens": N,
        "rows": rows,
        "absent": absent,
        "fastest_peer": fastest["name"],
        "lab_ratio": fastest["ratio"],
        "experts_touched": len(chosen.unique()),
        "predicted_experts": options.experts * (1 - (1 - A / options.experts) ** N),
        "expert_bytes": expert_bytes,
    }


def show(result: dict, bandwidth: float) -> None:
    """Print the table of one number of tokens."""
    N, touched, size = result["tokens"], result["experts_touched"], result["expert_bytes"]
    predicted, read_s = result["predicted_experts"], touched * size / bandwidth
    print(
        f"\nN={N}: touches {touched} experts, {touched * size / 1e9:.2f} GB (predicted {predicted:.2f}, "
        f"{predicted * size / 1e9:.2f} GB); predicted {read_s * 1e3:.1f} ms to read them" + ("" if N == 1 else " alone")
    )
    print(f"{'':13}{'median ms':>11}{'spread ms':>11}{'/ predicted':>13}{'lab / it':>10}{'(range)':>15}")
    for row in result["rows"]:
        spread = f"{row['least']:.2f} to {row['largest']:.2f}"
        print(
            f"{row['name']:13}{row['median_s'] * 1e3:11.1f}{row['spread_s'] * 1e3:11.1f}"
            f"{row['median_s'] / read_s:13.2f}{row['ratio']:10.2f}{spread:>15}"
        )
    for name, reason in result["absent"].items():
        print(f"{name:13}{reason}")
    print(f"mistral_lab takes {result['lab_ratio']:.2f} times as long as {result['fastest_peer']}, the fastest other")


def main() -> None:
    """Measure, then print a table for each number of tokens and one line of JSON."""
    parser = size_arguments(__doc__, repeats=21)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args()

    def measured() -> Callable[[int, float], dict]:
        block = build_block(options)
        experts = split_experts(block.experts.gate_up_proj, block.experts.down_proj)
        return lambda N, bandwidth: measure(block, experts, N, options)

    run_benchmark("moe", options, measured, show, dtype=options.dtype)


if __name__ == "__main__":
    main()
