"""Answers to the exercises of lessons 8 and 9, which test_checks.py gives to the checks; and the modules' own.

The checks keep to modules above these two, so they cannot use `finetune`, `memory` or `distributed`; these tests do.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch

import mistral_lab
from mistral_lab import checks, distributed, finetune, memory

# --- Right answers, in float64 NumPy or plain Python, that share no code with the package ---


def adapter_by_numbers(rank, shapes):
    nbytes = 0
    for outputs, inputs in shapes:
        A, B = np.zeros((rank, inputs), "float32"), np.zeros((outputs, rank), "float32")
        nbytes += sum(matrix.nbytes for matrix in (A, B) for _ in ("itself", "gradient", "mean", "mean square"))
    return nbytes


def labels_one_by_one(prompt, answer, end):
    ids, labels = [], []
    for tokens, counts in ((prompt, False), (answer, True), ([end], True)):
        for token in tokens:
            ids.append(token)
            labels.append(token if counts else -100)
    return ids, labels


def merged_by_columns(W, A, B, alpha):
    W, A, B = (np.asarray(matrix) for matrix in (W, A, B))
    eye = np.eye(W.shape[1])  # what the layer and its adapter make of each input alone
    return np.stack([W @ x + alpha / len(A) * (B @ (A @ x)) for x in eye], axis=1)


def ring(nbytes, ranks):
    """Bytes that rank 0 receives, part by part, until every rank has every part of every rank."""
    held = [[{rank} for _ in range(ranks)] for rank in range(ranks)]  # [rank][part]: whose numbers it holds
    received = 0
    for step in range(2 * (ranks - 1)):
        sent = [(rank, (rank - step) % ranks, held[rank][(rank - step) % ranks]) for rank in range(ranks)]
        for rank, part, numbers in sent:
            held[(rank + 1) % ranks][part] = held[(rank + 1) % ranks][part] | numbers
        received += nbytes // ranks
    assert all(part == set(range(ranks)) for parts in held for part in parts)
    return received


def fullest_by_dealing(shared_bytes, num_experts, expert_bytes, ranks):
    devices = [shared_bytes] * ranks
    for expert in range(num_experts):
        devices[expert % ranks] += expert_bytes
    return max(devices)


def part_by_hand(x, gate, up, down, rank, ranks):
    gate, up, down = (np.asarray(matrix) for matrix in (gate, up, down))
    mine = np.split(np.arange(len(gate)), ranks)[rank]
    every = np.zeros((len(x), 1), dtype=int), np.ones((len(x), 1))
    return reference.experts(x, *every, gate[None, mine], up[None, mine], down[None][:, :, mine])


RIGHT = {
    "adapter_bytes": adapter_by_numbers,
    "answer_labels": labels_one_by_one,
    "merged_weight": merged_by_columns,
    "all_reduce_bytes": ring,
    "fullest_device": fullest_by_dealing,
    "partial_output": part_by_hand,
}


# --- Wrong answers, as a reader would write them, and what the hint must say ---


def in_place(W, A, B, alpha):
    W += alpha / len(A) * B @ A
    return W


def swiglu(x, gate, up, down):
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def my_slice(rank, ranks, h=12):
    return slice(rank * h // ranks, (rank + 1) * h // ranks)


def part_of(x, gate, up, down, mine):
    return swiglu(x, gate[mine], up[mine], down[:, mine])


def inputs_cut(x, gate, up, down, rank, ranks):
    x, gate, up = (matrix.chunk(ranks, dim=1)[rank] for matrix in (x, gate, up))
    return swiglu(x, gate, up, down)


WRONG = [
    ("adapter_bytes", lambda r, shapes: sum(16 * r * o * i for o, i in shapes), "multiply outputs and inputs: A is 8"),
    ("adapter_bytes", lambda r, shapes: sum(4 * r * (o + i) for o, i in shapes), "that is the adapter alone"),
    ("adapter_bytes", lambda r, shapes: sum(8 * r * (o + i) for o, i in shapes), "is the optimiser left out.*16 bits"),
    ("adapter_bytes", lambda r, shapes: sum(16 * r * i for o, i in shapes), "leave out B, which has 8"),
    ("adapter_bytes", lambda r, shapes: sum(16 * r * o for o, i in shapes), "leave out A, which has 8"),
    ("adapter_bytes", lambda r, shapes: sum(16 * (o + i) for o, i in shapes), "rank left out"),
    ("adapter_bytes", lambda r, shapes: sum(8 * 16 * (o + i) for o, i in shapes), "whatever `rank` is"),
    ("adapter_bytes", lambda r, shapes: sum((2 + 4 + 8) * r * (o + i) for o, i in shapes), "not 16 bits"),
    ("adapter_bytes", lambda r, shapes: 16 * r * sum(shapes[0]), "the first matrix alone"),
    ("adapter_bytes", lambda r, shapes: sum(16 * r * (o + i) + 8 for o, i in shapes), "count of steps.*to get 49,152"),
    ("answer_labels", lambda p, a, end: (p + a + [end], p + a + [end]), "your prompt counts too"),
    ("answer_labels", lambda p, a, end: (p + a, [-100] * len(p) + a), "end token is missing"),
    ("answer_labels", lambda p, a, end: (p + a + [end], [-100] * len(p) + a + [-100]), "end token does not count"),
    ("answer_labels", lambda p, a, end: (p + a + [2], [-100] * len(p) + a + [2]), "whatever `end` is"),
    ("answer_labels", lambda p, a, end: (p + a + [end], [0] * len(p) + a + [end]), "label 0, which is a token"),
    (
        "answer_labels",
        lambda p, a, end: (p + a + [end], ([-100] * len(p) + a + [end, -100])[1:]),
        "too far to the left: .*the model shifts",
    ),
    ("answer_labels", lambda p, a, end: ((p + a + [end])[:-1], ([-100] * len(p) + a + [end])[1:]), "to the left"),
    ("answer_labels", lambda p, a, end: (p + a + [end], [-100] + [-100] * len(p) + a), "to the right"),
    (
        "answer_labels",
        lambda p, a, end: (p + a + [end], [-100] * (len(p) + 1) + a[1:] + [end]),
        "first token of your answer",
    ),
    ("answer_labels", lambda p, a, end: (p + a + [end], a + [end]), "each token of the prompt needs one too"),
    (
        "answer_labels",
        lambda p, a, end: (p + a + [end], [-100 if t in p else t for t in p + a + [end]]),
        "go by position, not by token",
    ),
    ("answer_labels", lambda p, a, end: labels_one_by_one(p, a, end)[::-1], "swapped: input ids come first"),
    ("merged_weight", lambda W, A, B, alpha: W + alpha * B @ A, "alpha is divided by the rank"),
    ("merged_weight", lambda W, A, B, alpha: W + alpha / A.shape[1] * B @ A, "rank is the number of rows of A"),
    ("merged_weight", lambda W, A, B, alpha: W + alpha / len(B) * B @ A, "rank is the number of rows of A"),
    ("merged_weight", lambda W, A, B, alpha: W + alpha / len(A) * A.T @ B.T, "is transposed"),
    ("merged_weight", lambda W, A, B, alpha: W + (alpha / len(A)) ** 2 * B @ A, "scaled twice"),
    ("merged_weight", lambda W, A, B, alpha: alpha / len(A) * B @ A, "the change alone: it is added to W"),
    ("merged_weight", lambda W, A, B, alpha: W + B @ A, "scale alpha / r is missing"),
    ("merged_weight", lambda W, A, B, alpha: alpha / len(A) * (W + B @ A), "you scale W too"),
    ("merged_weight", lambda W, A, B, alpha: W + alpha / 3 * B @ A, "values are wrong, the first at"),
    ("merged_weight", in_place, "changes its argument `W`: work on a copy"),
    ("merged_weight", lambda W, A, B, alpha: W + alpha / len(A) * A @ B, "raises RuntimeError: .*the line `.*A @ B"),
    ("all_reduce_bytes", lambda n, R: (R - 1) * n, "get 2,520, 4 - 1 whole tensors: a ring sends parts of 1/4"),
    ("all_reduce_bytes", lambda n, R: (R - 1) * n / R, "get 630, one round.*the sums must go round too"),
    ("all_reduce_bytes", lambda n, R: 2 * (R - 1) * n, "all ranks receive together"),
    ("all_reduce_bytes", lambda n, R: 2 * n, "a rank receives 4 - 1 parts, not 4"),
    ("all_reduce_bytes", lambda n, R: 2 * n // R, "how many parts does a rank receive in a round"),
    ("all_reduce_bytes", lambda n, R: ring(n, R) or n, "for one rank: there is no other rank to receive from, so 0"),
    ("all_reduce_bytes", lambda n, R: 1.5 * n, "whatever `ranks` is"),
    ("fullest_device", lambda shared, E, each, R: shared + E // R * each, "get 1,060: 8 experts .* among 3 .*round up"),
    ("fullest_device", lambda shared, E, each, R: shared + E * each / R, "mean over devices: experts are whole"),
    ("fullest_device", lambda shared, E, each, R: shared + (E // R + 1) * each, "are divided evenly"),
    ("fullest_device", lambda shared, E, each, R: shared + round(E / R) * each, "not to the nearest"),
    ("fullest_device", lambda shared, E, each, R: shared / R + -(-E // R) * each, "divide the shared bytes"),
    ("fullest_device", lambda shared, E, each, R: (shared + E * each) / R, "everything divided evenly"),
    ("fullest_device", lambda shared, E, each, R: shared + E * each, "all 8 experts on one device"),
    ("fullest_device", lambda shared, E, each, R: -(-E // R) * each, "count experts alone"),
    ("partial_output", lambda x, gate, up, down, r, R: swiglu(x, gate, up, down), "whole on each rank.*2 times too l"),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: swiglu(x, gate, up, down) / R,
        "each rank would hold all weights",
    ),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: part_of(x, gate, up, down, my_slice(r, R)) / R,
        "divide your part by the number of ranks",
    ),
    ("partial_output", inputs_cut, "silu then sees parts of sums"),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: swiglu(x, gate, up, down.chunk(R)[r]),
        "some outputs, from all hidden values",
    ),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: part_of(x, gate, up, down, slice(r, None, R)),
        "in turn: the sum is right",
    ),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: part_of(x, gate, up, down, my_slice((r - 1) % R, R)),
        "that of rank - 1: ranks are counted from 0",
    ),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: part_of(x, gate, up, down, my_slice(r + 1, R)),
        "that of rank [+] 1",
    ),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: part_of(x, gate, up, down, slice(0, 12 // R)),
        "whatever `rank` is",
    ),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: part_of(x, up, gate, down, my_slice(r, R)),
        "gate and up swapped",
    ),
    (
        "partial_output",
        lambda x, gate, up, down, r, R: swiglu(x, gate[my_slice(r, R)], up[my_slice(r, R)], down),
        "raises RuntimeError",
    ),
]


# --- The modules' own answers pass ---


def passes(name, function, capsys) -> None:
    capsys.readouterr()
    getattr(checks, name)(function)
    assert capsys.readouterr().out == f"{name}: passed\n"


@pytest.mark.parametrize("name", ["tiny-mistral", "mixtral-8x7b-v0.1"])
@pytest.mark.parametrize("rank", [1, 16])
def test_adapter_bytes_are_those_of_the_lab_but_for_the_count_of_steps(name, rank):
    config = mistral_lab.PRESETS.get(name) or mistral_lab.ModelConfig.from_pretrained(name)
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    shapes = [(queries, config.dim), (keys, config.dim), (keys, config.dim), (config.dim, queries)] * config.n_layers
    predicted = finetune.tuning_bytes(config, rank=rank, batch=1, tokens=8)
    without_steps = predicted.total - predicted.activations - 4 * 2 * len(shapes)
    assert adapter_by_numbers(rank, shapes) == without_steps


def test_answer_labels_are_those_of_the_lab(capsys):
    def by_finetune(prompt, answer, end):
        def tokenizer(text, add_special_tokens=True):  # a token is a number
            return SimpleNamespace(input_ids=list(map(int, text.split())))

        tokenizer.eos_token_id, tokenizer.all_special_tokens = end, []
        example = finetune.Example(*(" ".join(map(str, tokens)) for tokens in (prompt, answer)))
        row = finetune.tokenise(tokenizer, example, max_tokens=100)
        return row["input_ids"], row["labels"]

    passes("answer_labels", by_finetune, capsys)


def test_a_merged_weight_is_what_peft_adds(capsys):
    import peft

    def with_peft(W, A, B, alpha):
        layer = torch.nn.Linear(*reversed(W.shape), bias=False, dtype=W.dtype)
        layer.weight.data = W.clone()
        settings = peft.LoraConfig(r=len(A), lora_alpha=alpha, target_modules=["0"])
        model = peft.get_peft_model(torch.nn.Sequential(layer), settings)
        adapted = model.base_model.model[0]
        adapted.lora_A["default"].weight.data, adapted.lora_B["default"].weight.data = A, B
        return model.merge_and_unload()[0].weight

    passes("merged_weight", with_peft, capsys)


def test_the_fullest_device_is_that_of_the_rooms(capsys):
    def by_rank(shared_bytes, num_experts, expert_bytes, ranks):
        owned = distributed.experts_of_rank(num_experts, ranks)
        return shared_bytes + max(map(len, owned)) * expert_bytes

    passes("fullest_device", by_rank, capsys)
    config = mistral_lab.PRESETS["mixtral-8x7b-v0.1"]
    parts = memory.weight_parts(config, "nf4-double")
    an_expert = parts.pop("feed_forward").total // config.num_experts
    shared = sum(part.total for part in parts.values())
    for ranks in (2, 3, 8):
        shares = memory.weights_by_device(config, "nf4-double", devices=ranks, split="experts")
        fullest = max(sum(part.total for part in share.values()) for share in shares)
        assert fullest_by_dealing(shared, config.num_experts, an_expert, ranks) == fullest


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 12])
def test_parts_add_up_to_the_whole(ranks):
    generator = torch.Generator().manual_seed(1)
    gate, up = torch.randn(2, 12, 5, generator=generator, dtype=torch.float64)
    x, down = (torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (5, 12))
    parts = [part_by_hand(x, gate, up, down, rank, ranks) for rank in range(ranks)]
    assert sum(parts) == pytest.approx(swiglu(x, gate, up, down).numpy(), rel=1e-12, abs=1e-12)  # float64 sums
