"""Answer checks: right answers pass, plausible wrong ones are named, and whatever else is given is one sentence."""

import functools
import importlib
import inspect
import math
import re
import threading

import numpy as np
import pytest
import reference
import test_checks_tuning_machines as tuning_machines
import torch

from mistral_lab import checks, masks, nf4
from mistral_lab.checks import judging, values


def said(name, function, capsys) -> str:
    """What a check prints on a function, less its name; always one line."""
    capsys.readouterr()
    assert getattr(checks, name)(function) is None
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.count("\n") == 1
    assert printed.out.startswith(f"{name}: ")
    return printed.out.removeprefix(f"{name}: ").strip()


@functools.cache
def parts_of(name) -> dict:
    """What a check hands to `judge`: answer, cases, mistakes, show."""
    function = getattr(checks, name)
    module = importlib.import_module(function.__module__)
    with pytest.MonkeyPatch.context() as patch:
        given = {}
        patch.setattr(module, "judge", lambda name, function, **parts: given.update(parts))
        function(None)
    return given


# --- Right answers, in float64 NumPy or plain Python, that share no code with the package ---


def in_chunks(q, k, v, window, chunk):
    q, k, v = (np.asarray(x)[None, :, None] for x in (q, k, v))
    return reference.attention(q, k, v, reference.window_mask(q.shape[1], window))[0][0, :, 0]


def grouped(q, k, v, mask):
    q, k, v = (np.asarray(x).swapaxes(1, 2) for x in (q, k, v))
    return reference.attention(q, k, v, np.asarray(mask))[0].swapaxes(1, 2)


def drawn(logits, temperature, top_p):
    weights = np.exp(np.asarray(logits) / temperature)
    weights /= weights.sum()
    together, kept = 0.0, np.zeros_like(weights)
    for token in np.argsort(-weights):
        if together < top_p:
            kept[token] = weights[token]
        together += weights[token]
    return kept / kept.sum()


def printed_pieces(pieces):
    waiting, printed = [], []
    for piece in pieces:
        text = ""
        for byte in piece:
            waiting.append(byte)
            lead = waiting[0]
            if len(waiting) == (1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4):
                text += bytes(waiting).decode()
                waiting = []
        printed.append(text)
    return printed


def slots(seen, window):
    return [max([p for p in range(seen) if p % window == slot], default=-1) for slot in range(window)]


def tokens_for(num_experts, experts_per_token, share):
    n = 0
    while 1 - (1 - experts_per_token / num_experts) ** n < share:
        n += 1
    return n


def normed_rows(x, weight, eps):
    rows = np.asarray(x)
    return np.array([np.asarray(weight) * row / math.sqrt((row * row).mean() + eps) for row in rows])


def fused(x, gate_up, down):
    h = len(gate_up) // 2
    every = np.zeros((len(x), 1), dtype=int), np.ones((len(x), 1))
    return reference.experts(x, *every, gate_up[None, :h], gate_up[None, h:], down[None])


def rounded(w, block_size, codebook):
    numbers, absmax, margins = reference.round_blocks(w, codebook, block_size)
    assert margins.min() > 1e-5  # no weight lies where float32 decides
    return (np.asarray(codebook)[numbers] * absmax.repeat(block_size)).reshape(w.shape)


RIGHT = {
    "least_time": lambda parameters, bits, bytes_per_s: parameters * (bits / 8) / bytes_per_s,
    "draw_probabilities": drawn,
    "whole_characters": printed_pieces,
    "shared_heads": lambda n_heads, n_kv_heads: [int(h * n_kv_heads / n_heads) for h in range(n_heads)],
    "longest_text": lambda free_bytes, n_layers, n_heads, group_size, head_dim, bytes_per_value: (
        free_bytes * group_size // (2 * n_layers * n_heads * head_dim * bytes_per_value)
    ),
    "grouped_attention": grouped,
    "window_mask": lambda queries, keys, window: np.array([[0 <= i - j < window for j in keys] for i in queries]),
    "ring_slots": slots,
    "prefill_in_chunks": in_chunks,
    "chosen_experts": reference.route_top_k,
    "tokens_to_touch": tokens_for,
    "balance_by_layer": lambda logits, experts_per_token: np.mean(
        [reference.load_balancing_loss([layer], experts_per_token) for layer in logits]
    ),
    "rms_normed": normed_rows,
    "fused_feed_forward": fused,
    "layer_output": lambda x, attention, feed_forward, first_norm, second_norm: (
        (middle := x + attention(first_norm(x))) + feed_forward(second_norm(middle))
    ),
    "unpacked_numbers": lambda packed: np.array(
        [int(digit, 16) for byte in packed.tolist() for digit in f"{byte:02x}"]
    ),
    "bits_per_weight": lambda block_size, double: 4 + ((8 + 32 / 256) if double else 32) / block_size,
    "round_trip": rounded,
    "plain_call_bytes": lambda linear, other: linear / 2 + linear / 64 * 4 + other * 2,
    "share_in_four_bits": lambda tensors: (
        2 * sum(n for n, dtype in tensors if dtype == "uint8") / sum(n * (1 + (d == "uint8")) for n, d in tensors)
    ),
    "kept_sets": lambda before, after: np.mean(
        [set(a) == set(b) for a, b in zip(before.tolist(), after.tolist(), strict=True)]
    ),
    **tuning_machines.RIGHT,
}


@pytest.mark.parametrize("name", checks.__all__)
def test_a_right_answer_passes(name, capsys):
    assert said(name, RIGHT[name], capsys) == "passed"


def in_float32(function):
    def narrow(*arguments):
        return function(*(x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in arguments))

    return narrow


IN_FLOAT32 = ["draw_probabilities", "grouped_attention", "merged_weight", "partial_output", "prefill_in_chunks"]


@pytest.mark.parametrize("name", [*IN_FLOAT32, "rms_normed"])
def test_a_right_answer_in_float32_passes(name, capsys):
    answer = functools.wraps(parts_of(name)["answer"])(in_float32(parts_of(name)["answer"]))
    assert said(name, answer, capsys) == "passed"


# --- Wrong answers, as a reader would write them, and what the hint must say ---


def attention_of(q, k, v, mask, scale=None, axis=-1, repeat=lambda x, G: x.repeat_interleave(G, dim=1)):
    k, v = (repeat(x, q.shape[1] // k.shape[1]) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / (scale or q.shape[-1] ** 0.5)
    return scores.masked_fill(~mask, float("-inf")).softmax(axis) @ v


def without_mask(q, k, v, window, chunk):
    out = []
    for start in range(0, len(q), chunk):
        keys = slice(max(0, start - window + 1), start + chunk)
        out.append((q[start : start + chunk] @ k[keys].T / q.shape[1] ** 0.5).softmax(-1) @ v[keys])
    return torch.cat(out)


def blind_chunks(q, k, v, window, chunk):
    parts = zip(q.split(chunk), k.split(chunk), v.split(chunk), strict=True)
    return torch.cat(
        [
            attention_of(*(x[None, None] for x in part), masks.sliding_window_mask(len(part[0]), window))[0, 0]
            for part in parts
        ]
    )


def whole_prompt(q, k, v, window, chunk):
    return attention_of(q[None, None], k[None, None], v[None, None], masks.sliding_window_mask(len(q), window + 1))[
        0, 0
    ]


def top_p_with(p, top_p, include):
    order = p.argsort(descending=True)
    kept, together = torch.zeros_like(p), 0.0
    for token in order:
        if include(together, p[token], top_p):
            kept[token] = p[token]
        together += p[token]
    return kept


def crossing_dropped(logits, temperature, top_p):
    kept = top_p_with((logits / temperature).softmax(0), top_p, lambda before, p, limit: before + p <= limit)
    return kept / kept.sum()


def hot(logits, temperature, top_p):
    kept = top_p_with((logits * temperature).softmax(0), top_p, lambda before, p, limit: before < limit)
    return kept / kept.sum()


def not_scaled(logits, temperature, top_p):
    return top_p_with((logits / temperature).softmax(0), top_p, lambda before, p, limit: before < limit)


def ring_with(seen, window, place, size=None):
    held = [-1] * (size or window)
    for p in range(seen):
        held[place(p)] = p
    return held


def softmax_over_all(logits, experts_per_token):
    weights, indices = logits.softmax(-1).topk(experts_per_token)
    return indices, weights


def softmax_over_tokens(logits, experts_per_token):
    chosen, indices = logits.topk(experts_per_token)
    return indices, chosen.softmax(0)


def always_two(logits, experts_per_token):
    chosen, indices = logits.topk(2)
    return indices, chosen.softmax(-1)


def balance_of(scores, experts_per_token, choices=False):
    chose = scores.topk(experts_per_token).indices.flatten().bincount(minlength=scores.shape[1])
    chose = chose / (chose.sum() if choices else len(scores))
    return scores.shape[1] * (chose * scores.softmax(-1).mean(0)).sum()


def quantised(w, block_size, codebook, scale):
    blocks = w.reshape(-1, block_size)
    top = scale(blocks)
    return (codebook[((blocks / top)[..., None] - codebook).abs().argmin(-1)] * top).reshape(w.shape)


def norm_after(x, attention, feed_forward, first_norm, second_norm):
    x = first_norm(x + attention(x))
    return second_norm(x + feed_forward(x))


def side_by_side(x, attention, feed_forward, first_norm, second_norm):
    return x + attention(first_norm(x)) + feed_forward(second_norm(x))


def normed_copy(x, attention, feed_forward, first_norm, second_norm):
    x = first_norm(x)
    x = x + attention(x)
    x = second_norm(x)
    return x + feed_forward(x)


def swiglu_of(x, gate, up, down):
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def any_kept(before, after):
    return sum(bool(set(a) & set(b)) for a, b in zip(before.tolist(), after.tolist(), strict=True)) / len(before)


WRONG = [
    ("least_time", lambda n, bits, rate: n * bits / rate, "8 times too long: are those bits"),
    ("least_time", lambda n, bits, rate: n * 4 / rate, "4 bytes for every weight, which is float32"),
    ("least_time", lambda n, bits, rate: rate / (n * bits / 8), "tokens per second"),
    ("least_time", lambda n, bits, rate: n * 2 / rate, "the same whatever `bits` is"),
    ("draw_probabilities", hot, "below 1 must sharpen.*multiply by it"),
    ("draw_probabilities", crossing_dropped, "drop the token that crosses the line"),
    ("draw_probabilities", not_scaled, r"add to 0\.\d\d, not to 1: scale up"),
    ("draw_probabilities", lambda logits, temperature, top_p: drawn(logits, 1.0, top_p), "whatever `temperature` is"),
    ("draw_probabilities", lambda logits, temperature, top_p: (logits / temperature).softmax(0), "whatever `top_p` is"),
    ("whole_characters", lambda pieces: [p.decode(errors="replace") for p in pieces], "hold it back"),
    ("whole_characters", lambda pieces: [p.decode(errors="ignore") for p in pieces], "pieces are lost"),
    (
        "whole_characters",
        lambda pieces: [*[""] * (len(pieces) - 1), b"".join(pieces).decode(errors="ignore")],
        "as soon as",
    ),
    ("whole_characters", lambda pieces: [p.decode() for p in pieces], "raises UnicodeDecodeError"),
    ("shared_heads", lambda H, K: [h // K for h in range(H)], "number of KV heads where the group size is meant"),
    ("shared_heads", lambda H, K: [h % K for h in range(H)], r"you give \[0, 1, 0, 1.*run of neighbours"),
    ("shared_heads", lambda H, K: [1 + h * K // H for h in range(H)], "counted from 0"),
    ("longest_text", lambda free, L, H, G, D, size: free // (2 * L * H * D * size), "all 32 query heads"),
    (
        "longest_text",
        lambda free, L, H, G, D, size: free // (2 * L * G * D * size),
        "group size taken for the number of KV",
    ),
    ("longest_text", lambda free, L, H, G, D, size: free // (L * (H // G) * D * size), "both keys and values"),
    (
        "longest_text",
        lambda free, L, H, G, D, size: free // (2 * L * (H // G) * D * 4),
        "4 bytes per value, which is float32",
    ),
    ("longest_text", lambda free, L, H, G, D, size: free / (2 * L * (H // G) * D * size), "round down"),
    ("grouped_attention", lambda q, k, v, mask: attention_of(q, k, v, mask, scale=1.0), "square root of D"),
    ("grouped_attention", lambda q, k, v, mask: attention_of(q, k, v, torch.ones_like(mask)), "is the mask used"),
    (
        "grouped_attention",
        lambda q, k, v, mask: attention_of(q, k, v, mask, repeat=lambda x, G: torch.cat([x] * G, dim=1)),
        "wrong KV heads.*K and G swapped",
    ),
    (
        "grouped_attention",
        lambda q, k, v, mask: attention_of(q, k, v, mask, axis=-2).nan_to_num(),
        "softmax runs over the queries",
    ),
    ("window_mask", lambda i, j, W: (i[:, None] >= j) & (i[:, None] - j <= W), "shows 5 keys where W = 4: is it `<=`"),
    ("window_mask", lambda i, j, W: (i[:, None] > j) & (i[:, None] - j < W), "shows 3 keys.*token itself is missing"),
    ("window_mask", lambda i, j, W: (i[:, None] - j).abs() < W, "keys that come after them"),
    ("window_mask", lambda i, j, W: (i >= j[:, None]) & (i - j[:, None] < W), "rows are keys"),
    ("window_mask", lambda i, j, W: i[:, None] >= j, "no far end"),
    ("window_mask", lambda i, j, W: masks.sliding_window_mask(len(j), W)[: len(i)], "you count from the first query"),
    ("ring_slots", lambda seen, W: ring_with(seen, W, lambda p: (p + 1) % W), "one slot too far"),
    ("ring_slots", lambda seen, W: ring_with(seen, W, lambda p: p % (W + 1), W + 1), "W = 4 slots are expected"),
    ("ring_slots", lambda seen, W: ring_with(seen + 1, W, lambda p: p % W), "one token too many"),
    ("ring_slots", lambda seen, W: [*range(max(0, seen - W), seen), *[-1] * (W - seen)], "order of positions"),
    ("prefill_in_chunks", without_mask, "read without a mask"),
    ("prefill_in_chunks", blind_chunks, "see only themselves"),
    ("prefill_in_chunks", whole_prompt, "one key too many"),
    ("prefill_in_chunks", lambda q, k, v, window, chunk: in_chunks(q, k, v, len(q), chunk), "more than W = 3|`window`"),
    ("chosen_experts", softmax_over_all, r"add to 0\.\d\d, not to 1: the softmax over all"),
    ("chosen_experts", softmax_over_tokens, "runs over the tokens"),
    ("chosen_experts", lambda logits, A: logits.softmax(-1).topk(A), "results are swapped: indices first"),
    ("chosen_experts", always_two, "has shape|whatever `experts_per_token` is"),
    ("chosen_experts", lambda logits, A: RIGHT["chosen_experts"](-logits, A), "smallest logits|is wrong"),
    ("tokens_to_touch", lambda E, A, share: math.floor(math.log(1 - share) / math.log(1 - A / E)), "round up"),
    ("tokens_to_touch", lambda E, A, share: math.ceil(share * E / A), "no two tokens share an expert"),
    ("tokens_to_touch", lambda E, A, share: tokens_for(E, 1, share), "one expert per token; here each token reads 2"),
    ("balance_by_layer", lambda logits, A: balance_of(torch.cat(logits), A), "is 2 where.*it pools the layers"),
    (
        "balance_by_layer",
        lambda logits, A: sum(balance_of(x, A, True) for x in logits) / len(logits),
        "share of tokens",
    ),
    ("balance_by_layer", lambda logits, A: sum(balance_of(x, A) for x in logits), "take their mean"),
    (
        "balance_by_layer",
        lambda logits, A: sum(balance_of(x, A) / x.shape[1] for x in logits) / len(logits),
        "factor E",
    ),
    ("rms_normed", lambda x, w, eps: w * x / ((x * x).mean(-1, True).sqrt() + eps), "epsilon inside the square root"),
    ("rms_normed", lambda x, w, eps: w * x / ((x * x).sum(-1, True) + eps).sqrt(), "mean of the squares is meant"),
    ("rms_normed", lambda x, w, eps: w * x / ((x * x).mean(0) + eps).sqrt(), "mean runs over the tokens"),
    ("rms_normed", lambda x, w, eps: x / ((x * x).mean(-1, True) + eps).sqrt(), "whatever `weight` is"),
    ("rms_normed", lambda x, w, eps: torch.nn.functional.layer_norm(x, (6,), w, None, eps), "LayerNorm"),
    ("fused_feed_forward", lambda x, gu, down: swiglu_of(x, gu[5:], gu[:5], down), "gate and up swapped"),
    ("fused_feed_forward", lambda x, gu, down: swiglu_of(x, gu[::2], gu[1::2], down), "every other row"),
    ("fused_feed_forward", lambda x, gu, down: (x @ gu[:5].T) * (x @ gu[5:].T) @ down.T, "switch is missing"),
    ("layer_output", normed_copy, "normed copy"),
    ("layer_output", side_by_side, "reads what attention read"),
    ("layer_output", norm_after, "norms come after"),
    ("layer_output", lambda x, a, f, n, m: f(m(a(n(x)))), "parts replace x"),
    ("unpacked_numbers", lambda b: torch.stack([b % 16, b // 16], 1).flatten(), "low half first"),
    ("unpacked_numbers", lambda b: torch.cat([b // 16, b % 16]), "all high halves"),
    ("unpacked_numbers", lambda b: torch.stack([b - b % 16, b % 16], 1).flatten(), "16 times too large"),
    ("bits_per_weight", lambda B, double: 0.5 + 4 / B if not double else 0.5 + (1 + 4 / 256) / B, "are those bytes"),
    ("bits_per_weight", lambda B, double: 4, "scales are missing"),
    ("bits_per_weight", lambda B, double: 4 + (8 if double else 32) / B, "share one more float32"),
    ("bits_per_weight", lambda B, double: 4 + 32 / B, "whatever `double` is"),
    ("round_trip", lambda w, B, c: quantised(w, B, c, lambda x: w.abs().max()), "absmax that of the whole tensor"),
    (
        "round_trip",
        lambda w, B, c: quantised(w, B, c, lambda x: x.max(1, keepdim=True).values),
        "largest absolute value",
    ),
    ("round_trip", lambda w, B, c: quantised(w.T, B, c, lambda x: x.abs().amax(1, True)).T, "down the columns"),
    ("round_trip", lambda w, B, c: nf4.dequantize(nf4.quantize(w, block_size=B)), "whatever `codebook` is"),
    ("plain_call_bytes", lambda linear, other: (linear + other) * 0.5625, "everything in four bits"),
    ("plain_call_bytes", lambda linear, other: linear * 0.5 + other * 2, "scales are missing"),
    ("plain_call_bytes", lambda linear, other: linear * 0.5625 + other * 4, "4 bytes for what stays, which is float32"),
    (
        "share_in_four_bits",
        lambda tensors: sum(n for n, d in tensors if d == "uint8") / sum(n for n, _ in tensors),
        "0.25 where 0.4 is right: an element of uint8 holds two weights",
    ),
    ("share_in_four_bits", lambda tensors: sum(d == "uint8" for _, d in tensors) / len(tensors), "share of tensors"),
    ("share_in_four_bits", lambda tensors: 100 * RIGHT["share_in_four_bits"](tensors), "not per cent"),
    ("kept_sets", lambda a, b: (a == b).all(1).double().mean(), "in another order counts as kept"),
    ("kept_sets", lambda a, b: (a[:, 0] == b[:, 0]).double().mean(), "share of first choices"),
    ("kept_sets", lambda a, b: (a.sort(0).values == b.sort(0).values).all(1).double().mean(), "along the tokens"),
    ("kept_sets", any_kept, "one shared expert is not enough"),
    ("kept_sets", lambda a, b: (a == b).double().mean(), "you count single choices"),
    *tuning_machines.WRONG,
]


@pytest.mark.parametrize(("name", "function", "hint"), WRONG, ids=[f"{name}: {hint}" for name, _, hint in WRONG])
def test_a_wrong_answer_is_named(name, function, hint, capsys):
    found = said(name, function, capsys)
    assert re.search(hint, found), found


def test_every_check_has_three_wrong_answers_and_a_right_one():
    names = [name for name, *_ in WRONG]
    assert {name: names.count(name) for name in checks.__all__ if names.count(name) < 3} == {}
    assert RIGHT.keys() == set(checks.__all__)


@pytest.mark.parametrize("name", checks.__all__)
def test_every_mistake_that_a_check_lists_gets_its_own_hint(name, capsys, monkeypatch):
    # Told apart with ten times the tolerance: no hint hangs on rounding.
    monkeypatch.setattr(values, "RTOL", 10 * values.RTOL)
    for mistake in parts_of(name)["mistakes"]:
        wrong = functools.wraps(parts_of(name)["answer"])(
            lambda *arguments, mistake=mistake: mistake.answer(*arguments)
        )
        pattern = ".+".join(re.escape(part) for part in re.split(r"\{[^}]*\}", mistake.hint))
        found = said(name, wrong, capsys)
        assert re.fullmatch(pattern, found), f"{mistake.hint!r} became {found!r}"


ARGUMENTS = [(name, place) for name in checks.__all__ for place in range(len(parts_of(name)["cases"][0]))]
ARGUMENTS.remove(("prefill_in_chunks", 4))  # chunks of every size give the same


@pytest.mark.parametrize(("name", "place"), ARGUMENTS)
def test_an_ignored_argument_is_noticed(name, place, capsys):
    answer, first = parts_of(name)["answer"], parts_of(name)["cases"][0][place]
    ignoring = functools.wraps(answer)(lambda *given: answer(*given[:place], first, *given[place + 1 :]))
    assert said(name, ignoring, capsys) != "passed"


def test_two_mistakes_in_every_answer_are_left_to_the_reader(capsys):
    def unrounded_without_values(free, L, H, G, D, size):
        return free / (L * (H // G) * D * size)

    assert said("longest_text", unrounded_without_values, capsys).endswith("your answer is 152.588, expected 76")


def test_a_mistake_that_explains_most_wrong_answers_is_named(capsys):
    def two_slips(seen, window):
        return slots(seen, window) if seen < window else ring_with(seen, window, lambda p: (p + 1) % window)

    assert "one slot too far" in said("ring_slots", two_slips, capsys)


# --- Whatever is given, one sentence ---


def changing(q, k, v, mask):
    q *= 2
    return attention_of(q / 2, k, v, mask)


def raising(seen, window):
    held = [-1] * window
    return held[window]


class NotAFunction:
    """A class."""


BAD = [
    ("window_mask", NotAFunction, "^expected a function, got the class NotAFunction: give the function itself"),
    ("window_mask", "my_window", "^expected a function, got text: give the function itself"),
    ("window_mask", torch.ones(2, 3), r"^expected a function, got a tensor of float32, shape \(2, 3\)"),
    ("window_mask", NotImplemented, "^expected a function"),
    ("window_mask", None, "^expected a function, got nothing"),
    (
        "window_mask",
        lambda T, window: None,
        r"takes \(T, window\), but it is called with 3 arguments: \(queries, keys, wi",
    ),
    ("unpacked_numbers", lambda: None, r"takes \(\), but it is called with 1 argument: \(packed\)"),
    ("window_mask", lambda *, queries, keys, window: None, "but it is called with 3"),
    (
        "ring_slots",
        raising,
        r"raises IndexError: list index out of range, in the line `return held\[window\]` \(.*window = 4",
    ),
    ("ring_slots", lambda seen, window: exit(), "raises SystemExit"),
    ("ring_slots", lambda seen, window: ring_slots_for_ever(seen, window), "raises RecursionError"),
    ("ring_slots", lambda seen, window: None, r"returns nothing \(is a `return` missing\?\): expected a list of 4 int"),
    ("ring_slots", lambda seen, window: "0123", "returns text: expected a list"),
    ("ring_slots", lambda seen, window: [None] * window, "returns a list of 4 NoneType: expected a list of 4 int"),
    ("ring_slots", lambda seen, window: [seen + window], r"= 4: your answer is \[7\], expected \[0, 1, 2, -1\]"),
    ("rms_normed", lambda x, weight, eps: x * math.nan, "NaN, which is no number"),
    (
        "rms_normed",
        lambda x, weight, eps: RIGHT["rms_normed"](x, weight, eps)[:2],
        r"shape \(2, 6\), expected \(4, 6\)",
    ),
    ("rms_normed", lambda x, weight, eps: x.to(torch.complex64), "holds no plain numbers"),
    ("rms_normed", lambda x, weight, eps: x.to("meta"), "holds no plain numbers"),
    (
        "rms_normed",
        lambda x, weight, eps: x + weight + eps,
        r"\d+ of 24 values are wrong, the first at \[0, 0\]: .*, expected",
    ),
    ("window_mask", lambda queries, keys, window: (queries[:, None] >= keys).float(), "expected True and False"),
    ("kept_sets", lambda before, after: True, "returns True or False: expected a number"),
    ("kept_sets", lambda before, after: torch.ones(3), "expected a number"),
    ("chosen_experts", lambda logits, experts_per_token: logits.topk(2).indices, "expected 2 results"),
    (
        "chosen_experts",
        lambda logits, A: (logits[:, :A], logits[:, :A]),
        "result 1 of 2 is wrong: .*are wrong, the first",
    ),
    ("least_time", lambda parameters, bits, bytes_per_s: 0.5, "whatever `parameters` is"),
    ("tokens_to_touch", lambda E, A, share: E + A + share, "for num_experts = 8, .*: your answer is 10.5, expected 3"),
    ("grouped_attention", changing, "changes its argument `q`: work on a copy"),
    (
        "balance_by_layer",
        lambda logits, A: 7 * len(logits) + A + logits[0].sum(),
        "^for experts_per_token = 2: your answer",
    ),
    (
        "share_in_four_bits",
        lambda tensors: len(tensors),
        r"for tensors = \[\(100, 'uint8'\), \(300, 'bfloat16'\)\]: your an",
    ),
    ("balance_by_layer", lambda logits, A: logits.pop().mean(), "changes its argument `logits`"),
]


def ring_slots_for_ever(seen, window):
    return ring_slots_for_ever(seen, window)


@pytest.mark.parametrize(("name", "function", "sentence"), BAD)
def test_bad_input_is_one_sentence(name, function, sentence, capsys):
    found = said(name, function, capsys)
    assert re.search(sentence, found), found


RETURNED = [
    *(
        None,
        True,
        3,
        -math.inf,
        math.nan,
        1j,
        "text",
        b"bytes",
        object(),
        [],
        [[1], [2, 3]],
        (),
        (None, None),
        {},
        {1: 2},
    ),
    *(np.array([object()]), np.float64(0.5), np.ones(3), torch.tensor(1.0), torch.empty(0), torch.ones(2, 2, 2)),
    *(
        torch.ones(3).to_sparse(),
        torch.empty(2, device="meta"),
        torch.tensor(True),
        torch.ones(3, dtype=torch.bfloat16),
    ),
    *((torch.ones(1), torch.ones(1)), [torch.tensor(1)] * 4, ["a"] * 2, (i for i in range(3)), torch.tensor(math.nan)),
]


@pytest.mark.parametrize("name", checks.__all__)
def test_whatever_is_returned_is_one_sentence(name, capsys):
    for value in RETURNED:
        found = said(name, lambda *arguments, value=value: value, capsys)
        assert found != "passed"


@pytest.mark.parametrize("name", checks.__all__)
def test_a_stub_is_not_tried_yet(name, capsys):
    def unfinished(*arguments):
        raise NotImplementedError

    assert said(name, lambda *arguments: NotImplemented, capsys) == "not tried yet"
    assert said(name, unfinished, capsys) == "not tried yet"


def test_what_pytorch_lacks_is_no_stub(capsys):
    def lacking(*arguments):
        raise NotImplementedError("\"softmax\" not implemented for 'Long'")

    assert said("ring_slots", lacking, capsys).startswith(
        'your function raises NotImplementedError: "softmax" not impl'
    )


def test_a_function_that_never_ends_is_given_up(capsys, monkeypatch):
    monkeypatch.setattr(judging, "LIMIT_S", 0.2)
    end = threading.Event()
    try:
        found = said("ring_slots", lambda seen, window: end.wait(), capsys)
    finally:
        end.set()
    assert found == (
        "your function gave no answer within 0.2 s: does a loop never end? It still runs, until you restart the kernel"
    )


def test_the_limit_is_ten_seconds():
    assert judging.LIMIT_S == 10


def test_any_callable_is_taken(capsys):
    assert said("ring_slots", functools.partial(lambda extra, seen, window: slots(seen, window), 1), capsys) == "passed"


def test_a_check_changes_nothing_for_the_next(capsys):
    said("grouped_attention", changing, capsys)
    assert said("grouped_attention", grouped, capsys) == "passed"


def test_random_state_is_left_alone(capsys):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    for name in checks.__all__:
        said(name, RIGHT[name], capsys)
    assert torch.equal(torch.rand(1), expected)


def test_each_check_says_what_the_function_is_called_with():
    for name in checks.__all__:
        line = inspect.getdoc(getattr(checks, name)).splitlines()[0]
        called = re.match(r"Check `function\(([^)]*)\)", re.sub(r" \([^)]*\)| uint8", "", line))
        assert called[1].split(", ") == list(inspect.signature(parts_of(name)["answer"]).parameters), line
