"""The explorers of bytes say what the formula and the plan say, and offer what goes together."""

from mistral_lab import PRESETS, explorers, memory


def test_only_divisors_are_offered_and_the_cache_is_that_of_the_formula():
    explorer = explorers.head_groups()
    for H in (12, 28, 1):
        explorer.controls["H"].value = H
        options = explorer.controls["K"].options
        assert list(options) == [K for K in range(1, H + 1) if H % K == 0]
        assert explorer.controls["K"].value in options
    explorer = explorers.head_groups()
    explorer.controls["context"].value = 8192
    assert 2 * 32 * 8 * 128 * 8192 * 2 == 2**30
    assert "takes 1 GiB at 16 bits" in explorer.sentence
    assert "4 times less" in explorer.sentence


def test_the_planner_repeats_the_plan_and_offers_no_longer_text_than_the_model_takes():
    explorer = explorers.memory_plan()
    explorer.controls["card"].value, explorer.controls["precision"].value = "T4", "bfloat16"
    asked = {"precision": "bfloat16", "context": 4096, "device_bytes": memory.DEVICES["T4"]}
    assert str(memory.plan(PRESETS["mixtral-8x7b-v0.1"], **asked)) in explorer.sentence
    explorer.controls["context"].value = 32_768
    explorer.controls["model"].value = "llama-2-7b"
    assert max(explorer.controls["context"].options) == 4096 == explorer.controls["context"].value
    assert "fits" in explorer.sentence


def test_the_planner_says_what_runs_with_experts_outside_a_card_that_is_too_small():
    explorer = explorers.memory_plan()
    explorer.controls["card"].value = "RTX 3070"
    asked = {"precision": "nf4-double", "context": 4096, "device_bytes": memory.DEVICES["RTX 3070"]}
    machine = {"host_bytes": 64 * 2**30, "speeds": memory.SPEEDS["RTX 3070"]}
    outside = memory.plan_outside(PRESETS["mixtral-8x7b-v0.1"], **asked, **machine)
    assert explorer.sentence.endswith(f" With its experts in the computer's memory: {outside}.")
    assert "6 of 8 experts per layer outside" in explorer.sentence
    explorer.controls["model"].value = "llama-2-70b"
    assert "experts" not in explorer.sentence
