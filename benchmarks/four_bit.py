"""The experts of one Mixtral layer in four bits: the lab's separate matrices, bitsandbytes' fused ones, and bfloat16.

All hold the same random weights, and get the same tokens and the same choices of experts. Every round times each
function once, and ratios are taken round by round. What is compared:

    lab         one ExactLinear4bit per expert and matrix; only the chosen experts are read
    bf16        transformers' experts, not quantised; only the chosen ones are read
    fused       bitsandbytes' replace_parameter_4bit on transformers' experts: every call dequantises all of them

The prediction for one token: a layer takes at least the bytes that it moves divided by the speed at which this machine
reads memory. `lab` reads A of E experts at 0.52 bytes per weight, `bf16` reads the same experts at 2 bytes per weight.
`fused` reads all E at 0.52 bytes per weight, writes them at 2, and reads the chosen ones.

    python benchmarks/four_bit.py
    python benchmarks/four_bit.py --dim 256 --hidden 896 --tokens 1 16
"""

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see benchmarks/moe.py
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from bitsandbytes.nn import Params4bit
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from experts import run_benchmark, size_arguments
from torch.nn import functional
from transformers import MixtralConfig
from transformers.activations import ACT2FN
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from mistral_lab.four_bit import FourBitExpert, FourBitExperts
from mistral_lab.measure import compare, time_in_turns


def build(options: argparse.Namespace) -> dict[str, torch.nn.Module]:
    """Make the same experts three times."""
    config = MixtralConfig(
        hidden_size=options.dim,
        intermediate_size=options.hidden,
        num_local_experts=options.experts,
        num_experts_per_tok=options.experts_per_tok,
        experts_implementation="eager",
    )

    def fused() -> MixtralExperts:
        with torch.device("meta"):
            experts = MixtralExperts(config)
        experts.to(torch.bfloat16).to_empty(device="cpu").requires_grad_(False)
        torch.manual_seed(0)
        for weight in experts.parameters():
            weight.uniform_(-1, 1).mul_((3 / weight.shape[-1]) ** 0.5)
        return experts.eval()

    plain, quantised = fused(), fused()
    for name in ("gate_up_proj", "down_proj"):
        replace_parameter_4bit(quantised, name, compress_statistics=True)
    return {"lab": separate(plain, options), "bf16": plain, "fused": quantised}


def separate(plain: MixtralExperts, options: argparse.Namespace) -> FourBitExperts:
    """Make the lab's experts with the weights of those of transformers."""
    kind = {"compute_dtype": torch.bfloat16, "double": True}
    with torch.device("meta"):
        experts = [FourBitExpert(options.dim, options.hidden, ACT2FN["silu"], **kind) for _ in range(options.experts)]
    for expert, gate_up, down in zip(experts, plain.gate_up_proj, plain.down_proj, strict=True):
        gate, up = gate_up.chunk(2)
        for linear, weight in ((expert.w1, gate), (expert.w3, up), (expert.w2, down)):
            fresh = Params4bit(
                weight.contiguous(), requires_grad=False, quant_type="nf4", compress_statistics=True, module=linear
            )
            linear.weight = fresh.to("cpu")
    return FourBitExperts(experts).eval()


def predict(options: argparse.Namespace, touched: int) -> dict[str, float]:
    """Compute the bytes that each must move for `touched` experts."""
    weights = 3 * options.dim * options.hidden
    four_bits = 0.5 + 1 / 64 + 4 / (64 * 256)
    return {
        "lab": touched * weights * four_bits,
        "bf16": touched * weights * 2,
        "fused": options.experts * weights * (four_bits + 2) + touched * weights * 2,
    }


def measure(layers: dict[str, torch.nn.Module], N: int, options: argparse.Namespace, bandwidth: float) -> dict:
    """Time each on N tokens, and check that they compute the same."""
    random = torch.Generator().manual_seed(N)
    x = torch.randn(N, options.dim, generator=random).to(torch.bfloat16)
    probabilities = functional.softmax(torch.randn(N, options.experts, generator=random), dim=-1)
    weights, indices = probabilities.topk(options.experts_per_tok)
    weights = weights / weights.sum(-1, keepdim=True)
    functions = {name: lambda layer=layer: layer(x, indices, weights) for name, layer in layers.items()}
    results = {name: function().float() for name, function in functions.items()}
    # lab and fused hold the same codes; the fused CPU kernel rounds the scales to bfloat16, which has 8 bits.
    error = (results["lab"] - results["fused"]).norm() / results["fused"].norm()
    if not error < 0.02:
        raise RuntimeError(f"lab differs from fused by {error:.1e} of its norm: nothing to compare")
    timings = time_in_turns(functions, repeats=options.repeats)
    touched = len(indices.unique())
    predicted = {name: size / bandwidth for name, size in predict(options, touched).items()}
    return {
        "tokens": N,
        "experts_touched": touched,
        "quantisation_error": float((results["lab"] - results["bf16"]).norm() / results["bf16"].norm()),
        "rows": [
            {
                "name": name,
                "median_s": timing.median_s,
                "spread_s": timing.spread_s,
                "predicted_s": predicted[name],
                **compare(timing, timings["lab"]),  # its time over that of the lab
            }
            for name, timing in timings.items()
        ],
    }


def show(result: dict) -> None:
    """Print the table of one number of tokens."""
    touched, error = result["experts_touched"], result["quantisation_error"]
    print(f"\nN={result['tokens']}: touches {touched} experts; four bits are {error:.1%} off bf16")
    print(f"{'':8}{'median ms':>11}{'spread ms':>11}{'predicted ms':>14}{'it / lab':>10}{'(range)':>18}")
    for row in result["rows"]:
        spread = f"{row['least']:.2f} to {row['largest']:.2f}"
        print(
            f"{row['name']:8}{row['median_s'] * 1e3:11.1f}{row['spread_s'] * 1e3:11.1f}{row['predicted_s'] * 1e3:14.1f}"
            f"{row['ratio']:10.2f}{spread:>18}"
        )


def main() -> None:
    """Measure, and print a table for each number of tokens and one line of JSON."""
    options = size_arguments(__doc__, repeats=7).parse_args()

    def measured() -> Callable[[int, float], dict]:
        layers = build(options)
        return lambda N, bandwidth: measure(layers, N, options, bandwidth)

    run_benchmark("four_bit", options, measured, lambda result, bandwidth: show(result))


if __name__ == "__main__":
    main()
