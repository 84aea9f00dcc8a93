"""The modules' own answers to the exercises of lessons 8 and 9 pass their checks.

The checks keep to modules above these two, so they cannot use `finetune`, `memory` or `distributed`; these tests do.
"""

from types import SimpleNamespace

import pytest
import torch
from handed_in.lesson_8 import adapter_by_numbers
from handed_in.lesson_9 import fullest_by_dealing, part_by_hand, swiglu

import mistral_lab
from mistral_lab import checks, distributed, finetune, memory


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
