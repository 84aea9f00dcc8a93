"""Greedy decoding of the bundled models: `Transformer.generate`, `generate` of transformers, and a floor, in turns.

The floor is the same mathematics written out by hand for one sequence: a bare loop over raw tensors, with PyTorch's
fused norm, no module, no check and no cache object. It shows what could still be gained without another kernel.

transformers generates with its defaults (DynamicCache, SDPA), which was its best setting here, and with a static cache.
`--compile`, which needs a C++ compiler and minutes, adds the static cache under torch.compile. All produce the same
number of tokens, and none stops early. Each round times each of them once, so that what slows down a whole round
cancels in the ratios.

    python benchmarks/decode.py
    python benchmarks/decode.py --new 16 --repeats 2
"""

import argparse
import json
from collections.abc import Callable

import torch
import transformers
from compat import compiled_everywhere
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from mistral_lab.loading import load
from mistral_lab.measure import compare, time_in_turns
from mistral_lab.transformer import Transformer

OURS, THEIRS, FLOOR = "Transformer.generate", "transformers generate", "bare loop"


def arguments() -> argparse.Namespace:
    """The sizes of one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", default=["tiny-mistral", "tiny-mixtral"], help="bundled names or folders"
    )
    parser.add_argument("--prompt", type=int, default=32, help="tokens, within the model's window")
    parser.add_argument("--new", type=int, default=128, help="tokens to generate")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--compile", action="store_true", help="time transformers' static cache under torch.compile too"
    )
    chosen = parser.parse_args()
    for name in ("prompt", "new", "repeats", "threads"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name} is {getattr(chosen, name)}: expected at least 1")
    return chosen


def bare_loop(model: Transformer, tokens: torch.Tensor, new: int) -> Callable[[], torch.Tensor]:
    """Greedy decoding of one sequence on the raw tensors of a model; what does not depend on the tokens is prepared."""
    config = model.config
    H, K, D = config.n_heads, config.n_kv_heads, config.head_dim
    T, total, window = tokens.shape[1], tokens.shape[1] + new, config.sliding_window or tokens.shape[1] + new
    if window < T:
        raise ValueError(f"the prompt has {T} tokens: expected at most {window}, the window, for one causal pass")
    angles = torch.arange(total)[:, None] * config.rope_theta ** (-torch.arange(0, D, 2) / D)
    cos, sin = angles.cos().repeat(1, 2)[:, None], torch.cat((-angles.sin(), angles.sin()), dim=1)[:, None]
    embedding, norm, output = model.embedding.weight, model.norm, model.output.weight
    layers = []
    for layer in model.layers:
        attention, network = layer.attention, layer.feed_forward
        if config.num_experts is None:
            router, experts = None, [network.weights()]
        else:
            router, experts = network.router.weight, [expert.weights() for expert in network.experts]
        slots = [torch.empty(1, K, total, D, dtype=embedding.dtype) for _ in ("keys", "values")]
        weights = (attention.wq, attention.wk, attention.wv, attention.wo)
        layers.append((layer.attention_norm, *weights, *slots, layer.feed_forward_norm, router, experts))
    size, eps, A = (config.dim,), config.norm_eps, config.num_experts_per_tok

    def network(x, gate, up, down):
        return linear(silu(linear(x, gate)) * linear(x, up), down)

    @torch.inference_mode()
    def loop() -> torch.Tensor:
        out, chunk, start = [tokens[0]], tokens[0], 0
        while True:
            end = start + len(chunk)
            first, causal = max(0, end - window), len(chunk) > 1
            here_cos, here_sin = cos[start:end], sin[start:end]
            x = embedding[chunk]
            for norm_1, wq, wk, wv, wo, keys, values, norm_2, router, experts in layers:
                y = rms_norm(x, size, norm_1, eps)
                q, k = linear(y, wq).view(-1, H, D), linear(y, wk).view(-1, K, D)
                q = torch.addcmul(q * here_cos, q.roll(D // 2, -1), here_sin)
                keys[0, :, start:end] = torch.addcmul(k * here_cos, k.roll(D // 2, -1), here_sin).transpose(0, 1)
                values[0, :, start:end] = linear(y, wv).view(-1, K, D).transpose(0, 1)
                seen = (keys.narrow(2, first, end - first), values.narrow(2, first, end - first))
                y = scaled_dot_product_attention(q.transpose(0, 1)[None], *seen, is_causal=causal, enable_gqa=True)
                x = x + linear(y[0].transpose(0, 1).reshape(-1, H * D), wo)
                y = rms_norm(x, size, norm_2, eps)
                if router is None:
                    x = x + network(y, *experts[0])
                else:
                    logits, indices = linear(y, router).topk(A, -1)
                    mixed = [
                        weights @ torch.cat([network(token[None], *experts[expert]) for expert in chosen])
                        for token, weights, chosen in zip(y, logits.softmax(-1), indices.tolist(), strict=True)
                    ]
                    x = x + torch.stack(mixed)
            chunk = linear(rms_norm(x[-1:], size, norm, eps), output).argmax(-1)
            out.append(chunk)
            start = end
            if start + 1 == total:
                return torch.cat(out)[None]

    return loop


def contenders(name: str, options: argparse.Namespace) -> dict[str, Callable[[], torch.Tensor]]:
    """The functions to time on one model in float32; each returns (1, prompt + new) tokens."""
    ours, theirs = Transformer.from_pretrained(name, dtype=torch.float32), load(name, dtype=torch.float32).model
    theirs.generation_config.eos_token_id = None
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, ours.config.vocab_size, (1, options.prompt), generator=random)

    def generate(**how) -> torch.Tensor:
        mask = torch.ones_like(tokens)
        return theirs.generate(
            tokens, attention_mask=mask, do_sample=False, max_new_tokens=options.new, pad_token_id=0, **how
        )

    found = {
        OURS: lambda: ours.generate(tokens, max_new_tokens=options.new),
        THEIRS: generate,
        f"{THEIRS}, static cache": lambda: generate(cache_implementation="static"),
        FLOOR: bare_loop(ours, tokens, options.new),
    }
    if options.compile:
        how = compiled_everywhere()
        found[f"{THEIRS}, compiled"] = lambda: generate(cache_implementation="static", compile_config=how)
    return found


def main() -> None:
    """Measure, then print a table per model and one line of JSON."""
    options = arguments()
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {options.threads} threads, float32, one "
        f"sequence, {options.prompt} tokens of prompt, {options.new} new; {options.repeats} rounds and a warm-up"
    )
    record = {"benchmark": "decode", **vars(options), "torch": torch.__version__, "results": {}}
    for name in options.models:
        found = []  # the tokens of every call
        functions = {
            contender: lambda function=function, found=found: found.append(function())
            for contender, function in contenders(name, options).items()
        }
        timings = time_in_turns(functions, repeats=options.repeats)
        same = all(torch.equal(tokens, found[0]) for tokens in found)
        print(f"\n{name:37}{'ms/token':>11}{'spread':>8}{'times ours':>12}{'(range)':>15}")
        rows = []
        for contender, timing in timings.items():
            row = {
                "name": contender,
                "median_ms_per_token": timing.median_s / options.new * 1e3,
                "spread_ms_per_token": timing.spread_s / options.new * 1e3,
                **compare(timing, timings[OURS]),
            }
            rows.append(row)
            print(
                f"{contender:37}{row['median_ms_per_token']:11.3f}{row['spread_ms_per_token']:8.3f}{row['ratio']:12.2f}"
                f"{row['least']:8.2f} to {row['largest']:.2f}"
            )
        share = next(row["ratio"] for row in rows if row["name"] == FLOOR)
        print(f"same tokens: {same}; share of the floor reached: {share:.0%}")
        record["results"][name] = {"rows": rows, "same_tokens": same, "share_of_floor": share}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
