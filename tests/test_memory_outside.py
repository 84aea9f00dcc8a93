"""Experts outside the device: bytes added up by hand, hit rates beside a simulated cache, limits to the byte."""

import dataclasses

import numpy as np
import pytest

from mistral_lab.config import PRESETS
from mistral_lab.memory import (
    DEVICES,
    LAPTOP,
    PRECISIONS,
    PUBLISHED_HIT_RATES,
    SPEEDS,
    Speeds,
    expert_bytes,
    experts_touched,
    plan,
    plan_outside,
    rate_text,
    speeds_of,
    uniform_hit_rate,
    weight_parts,
)

MISTRAL, MIXTRAL = PRESETS["mistral-7b-v0.1"], PRESETS["mixtral-8x7b-v0.1"]
ASKED = {"precision": "nf4-double", "context": 512}
CARD = Speeds(memory_bytes_per_s=300e9, link_bytes_per_s=12e9, disk_bytes_per_s=1e9)
CPU = Speeds(memory_bytes_per_s=30e9, link_bytes_per_s=None, disk_bytes_per_s=1e9)
LARGE = 2**40
# One expert: three matrices of 4,096 × 14,336 weights, in 4 bits, with a byte for each 64 of them, a float32 for each
# 256 of those bytes, and per matrix 16 and 256 values and an offset in float32. All of it divides without a rest.
WEIGHTS = 3 * 4096 * 14_336
DOUBLE = WEIGHTS // 2 + WEIGHTS // 64 + 4 * WEIGHTS // (64 * 256) + 3 * 4 * (16 + 256 + 1)
PLAIN = WEIGHTS // 2 + 4 * WEIGHTS // 64 + 3 * 4 * 16


def on_card(device_bytes, *, config=MIXTRAL, host_bytes=LARGE, speeds=CARD, **more):
    return plan_outside(config, **ASKED | more, device_bytes=device_bytes, host_bytes=host_bytes, speeds=speeds)


def on_cpu(device_bytes, *, config=MIXTRAL, **more):
    return plan_outside(config, **ASKED | more, device_bytes=device_bytes, host_bytes=None, speeds=CPU)


def beside_experts(config=MIXTRAL, **more) -> int:
    """What lies beside the experts, counted as the whole without them."""
    asked = ASKED | more
    experts = weight_parts(config, asked["precision"])["feed_forward"]
    return plan(config, **asked, device_bytes=1).total_bytes - experts.total - experts.tables


def simulated_hits(rng, *, experts, chosen, slots, tokens=20_000) -> float:
    """The share of needed experts that lie in the slots, if those hold what was used last and routing is uniform."""
    slots_now, hits = list(range(slots)), 0  # the last one was used most recently
    for _ in range(tokens):
        needed = rng.choice(experts, size=chosen, replace=False).tolist()
        hits += len(set(needed) & set(slots_now))
        slots_now = ([expert for expert in slots_now if expert not in needed] + needed)[-slots:]
    return hits / (tokens * chosen)


def test_an_expert_of_mixtral_is_what_a_hand_adds_up():
    assert expert_bytes(MIXTRAL, "nf4-double") == DOUBLE == 90_879_180
    assert expert_bytes(MIXTRAL, "nf4") == PLAIN
    assert expert_bytes(MIXTRAL, "bfloat16") == 2 * WEIGHTS


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_experts_are_the_plans_experts(precision):
    odd = dataclasses.replace(MIXTRAL, dim=70, hidden_dim=90, num_experts=5, n_layers=3)  # blocks that are not full
    parts = weight_parts(odd, precision)["feed_forward"]
    assert 15 * expert_bytes(odd, precision) == parts.total + parts.tables


@pytest.mark.parametrize(("experts", "chosen", "slots"), [(8, 2, 2), (8, 2, 4), (8, 2, 7), (8, 1, 3), (5, 3, 4)])
def test_uniform_routing_hits_as_often_as_a_simulated_cache(experts, chosen, slots):
    config = dataclasses.replace(MIXTRAL, num_experts=experts, num_experts_per_tok=chosen)
    measured = simulated_hits(np.random.default_rng(0), experts=experts, chosen=chosen, slots=slots)
    # 20,000 tokens: the standard error of a share is at most 0.5 / sqrt(20,000) = 0.0035; four of them.
    assert abs(measured - uniform_hit_rate(config, slots)) < 0.015


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_a_batch_needs_as_many_experts_as_are_drawn(tokens):
    rng = np.random.default_rng(tokens)
    drawn = [len({e for _ in range(tokens) for e in rng.choice(8, 2, replace=False).tolist()}) for _ in range(4000)]
    # The number of different experts has a standard deviation below 1.1: four standard errors of 4,000 draws.
    assert abs(np.mean(drawn) - experts_touched(MIXTRAL, tokens)) < 0.07


def test_published_hits_lie_above_those_of_two_slots_under_uniform_routing():
    assert uniform_hit_rate(MIXTRAL, 2) < PUBLISHED_HIT_RATES[0] < PUBLISHED_HIT_RATES[1] < 1


def test_slots_are_what_is_left_beside_everything_else_and_the_spare_places():
    beside, layer = beside_experts() + 2 * DOUBLE, 32 * DOUBLE
    for slots in (2, 3, 7):
        exact = on_card(beside + slots * layer)
        assert (exact.slots, exact.outside, exact.outcome, exact.beside_bytes) == (slots, 8 - slots, "runs", beside)
        assert on_card(beside + slots * layer - 1).slots == slots - 1
    less = on_card(beside + 2 * layer - 1)
    assert (less.runs, less.outcome, less.tokens_per_s) == (False, "does not run", 0)
    assert on_card(1).slots == 0


@pytest.mark.parametrize("make", [on_card, on_cpu])
def test_what_a_plan_says_fits_has_nothing_outside(make):
    whole = plan(MIXTRAL, **ASKED, device_bytes=1).total_bytes
    fits, runs = make(whole), make(whole - 1)
    assert plan(MIXTRAL, **ASKED, device_bytes=whole).fits
    assert (fits.outcome, fits.hit_rate, fits.on_disk_bytes, fits.moved_bytes, fits.disk_bytes) == ("fits", 1, 0, 0, 0)
    assert make(whole, hit_rate=0.5) == fits  # a measured rate does not count where everything is in its place
    assert runs.outcome == "runs"
    assert 0 < runs.hit_rate < 1


def test_the_bytes_of_a_token_are_what_a_hand_adds_up():
    made = on_card(beside_experts() + 2 * DOUBLE + 4 * 32 * DOUBLE)
    # Attention in 4 bits; in 16 bits the output layer, the router of each layer, 65 norms and one row of the embedding.
    attention = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024)
    always = attention // 2 + attention // 64 + 4 * attention // (64 * 256)
    always += 2 * (32_000 * 4096 + 32 * 8 * 4096 + 65 * 4096 + 4096)
    cache = 512 * 128 * 2**10
    assert made.read_bytes == always + cache + 64 * DOUBLE
    assert made.moved_bytes == 32 * DOUBLE  # half of the 64 are in their slots
    assert made.disk_bytes == 0
    assert made.in_memory_bytes == 256 * DOUBLE  # slots hold copies
    assert made.times_s == {"memory": made.read_bytes / 300e9, "link": made.moved_bytes / 12e9, "disk": 0}
    assert made.floor_s == made.times_s["link"]
    assert made.in_turn_s == made.times_s["memory"] + made.times_s["link"]
    assert made.tokens_per_s == 1 / made.floor_s


def test_a_tied_output_layer_is_the_embedding_and_is_read_too():
    tied = dataclasses.replace(MIXTRAL, tied_embeddings=True)
    assert on_card(LARGE, config=tied).read_bytes == on_card(LARGE).read_bytes


def test_what_the_computers_memory_cannot_hold_is_on_disk_in_whole_experts():
    room = beside_experts() + 2 * DOUBLE + 4 * 32 * DOUBLE
    made = on_card(room, host_bytes=97 * DOUBLE - 1)
    assert (made.in_memory_bytes, made.on_disk_bytes) == (96 * DOUBLE, 160 * DOUBLE)
    assert made.disk_bytes == made.moved_bytes * 160 / 256
    assert made.floor_s == made.times_s["disk"]
    nothing = on_card(room, host_bytes=0)
    assert (nothing.in_memory_bytes, nothing.disk_bytes, nothing.runs) == (0, nothing.moved_bytes, True)


def test_a_measured_hit_rate_takes_the_place_of_the_uniform_one():
    room = beside_experts() + 2 * DOUBLE + 2 * 32 * DOUBLE
    assert on_card(room).hit_rate == 0.25
    measured = on_card(room, hit_rate=0.6)
    assert measured.hit_rate == 0.6
    assert measured.moved_bytes == pytest.approx(0.4 * 64 * DOUBLE)  # 1 - 0.6 is not exactly 0.4
    assert on_card(room, hit_rate=1.0).floor_s == on_card(room, hit_rate=1.0).times_s["memory"]


def test_a_batch_reads_and_moves_the_experts_that_its_tokens_touch_together():
    room = beside_experts(batch=4) + 2 * DOUBLE + 3 * 32 * DOUBLE
    made = on_card(room, batch=4)
    assert made.slots == 3
    touched = 8 * (1 - 0.75**4)
    assert made.moved_bytes == pytest.approx(32 * touched * 5 / 8 * DOUBLE)  # sums of floats in another order
    assert str(made).startswith("nf4-double, 512 tokens in each of 4 sequences: runs on ")
    assert str(made).endswith("tokens per second in each at 38% hits")


def test_on_a_cpu_the_free_memory_holds_a_share_of_the_experts():
    beside, every = beside_experts(), 256 * DOUBLE
    made = on_cpu(beside + every // 4)
    assert (made.outcome, made.slots, made.in_memory_bytes, made.on_disk_bytes) == (
        "runs",
        0,
        every // 4,
        every * 3 // 4,
    )
    assert made.hit_rate == 0.25
    assert (made.moved_bytes, made.disk_bytes) == (0, 48 * DOUBLE)
    assert made.times_s["link"] == 0
    assert made.floor_s == made.times_s["disk"]
    assert on_cpu(beside).outcome == "runs"  # all from the disk
    assert on_cpu(beside).hit_rate == 0
    # The rest is mapped too: of it, too, what does not fit comes from the disk. Only cache and overhead have to fit.
    assert on_cpu(beside - 10**6).disk_bytes == on_cpu(beside).disk_bytes + 10**6
    parts = plan(MIXTRAL, **ASKED, device_bytes=1)
    own = parts.cache_bytes + parts.workspace_bytes + parts.runtime_bytes
    assert on_cpu(own).outcome == "runs"
    assert on_cpu(own - 1).outcome == "does not run"
    assert on_cpu(own - 1).tokens_per_s == 0


def test_one_expert_is_held_or_not():
    one = dataclasses.replace(MIXTRAL, num_experts=1, num_experts_per_tok=1)
    whole = plan(one, **ASKED, device_bytes=1).total_bytes
    assert uniform_hit_rate(one, 1) == 1
    assert experts_touched(one, 5) == 1
    assert on_card(whole, config=one).outcome == "fits"
    assert on_card(whole - 1, config=one).outcome == "does not run"


def test_the_line_says_what_lies_where():
    room = beside_experts() + 2 * DOUBLE + 3 * 32 * DOUBLE
    start = f"nf4-double, 512 tokens: runs on {room / 2**30:.2f} GiB with "
    link = f"at most {12e9 / (40 * DOUBLE):.1f} tokens per second at 38% hits"
    where = "(of all experts 21.7 GiB in memory, 0.0 on disk)"
    assert str(on_card(room)) == f"{start}5 of 8 experts per layer outside {where}, {link}"
    assert str(on_card(2 * 2**30)) == (
        f"nf4-double, 512 tokens: does not run on 2.00 GiB, because everything but the experts takes "
        f"{(beside_experts() + 2 * DOUBLE) / 2**30:.2f} GiB, which leaves slots for 0 of 8 experts per layer: "
        "expected at least 2"
    )
    assert str(on_cpu(2**29)).endswith("does not run on 0.50 GiB, because cache and overhead take 0.73 GiB")
    assert str(on_cpu(beside_experts() + 128 * DOUBLE)).endswith(
        "with all experts mapped (10.8 GiB in memory, 10.8 on disk), at most 0.34 tokens per second at 50% hits"
    )
    assert str(on_card(24 * 2**30)) == "nf4-double, 512 tokens: fits 24.00 GiB, at most 44 tokens per second"


@pytest.mark.parametrize("card", DEVICES)
def test_every_card_has_its_speeds_and_the_smaller_ones_run_mixtral(card):
    made = on_card(DEVICES[card], speeds=SPEEDS[card])
    assert made.outcome == ("runs" if DEVICES[card] < 20 * 2**30 else "fits")
    assert made.tokens_per_s > 1


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 3070", "RTX 3070"),
        ("NVIDIA GeForce RTX 3070 Ti", None),
        ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 4060", None),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 80GB"),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA T400", None),
    ],
)
def test_a_card_is_known_by_the_name_that_its_driver_gives(name, card):
    assert speeds_of(name) is (card and SPEEDS[card])


def test_a_rate_has_two_digits_that_count():
    assert [rate_text(rate) for rate in (0.0612, 0.347, 1.42, 9.96, 10.4, 149.3)] == [
        "0.061", "0.35", "1.4", "10", "10", "149",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: on_card(LARGE, config=MISTRAL), ValueError, "the model is dense: it has no experts that could stay"),
        (lambda: expert_bytes(MISTRAL, "nf4"), ValueError, "the model is dense"),
        (lambda: uniform_hit_rate(MISTRAL, 1), ValueError, "the model is dense"),
        (lambda: uniform_hit_rate(MIXTRAL, 9), ValueError, "slots is 9: expected 0 to 8, the experts of a layer"),
        (lambda: experts_touched(MIXTRAL, 0), ValueError, "tokens is 0: expected at least 1"),
        (
            lambda: on_card(LARGE, precision="bfloat16"),
            ValueError,
            "precision is 'bfloat16': expected nf4 or nf4-double",
        ),
        (lambda: on_card(LARGE, precision="nf5"), ValueError, "precision is 'nf5': expected one of float32"),
        (lambda: on_card(0), ValueError, "device_bytes is 0: expected at least 1"),
        (lambda: on_card(LARGE, context=0), ValueError, "context is 0: expected at least 1"),
        (lambda: on_card(LARGE, batch=1.5), TypeError, "batch is 1.5: expected a whole number"),
        (lambda: on_card(LARGE, host_bytes=-1), ValueError, "host_bytes is -1: expected 0 or more"),
        (lambda: on_card(LARGE, hit_rate=1.01), ValueError, "hit_rate is 1.01: expected a share from 0 to 1"),
        (lambda: on_card(LARGE, hit_rate=float("nan")), ValueError, "hit_rate is nan: expected a share"),
        (
            lambda: on_card(LARGE, speeds=LAPTOP),
            ValueError,
            "link_bytes_per_s None: expected both for a card",
        ),
        (lambda: on_card(LARGE, host_bytes=None), ValueError, "host_bytes is None and link_bytes_per_s 12000000000"),
        (
            lambda: Speeds(1e9, 0, 1e9),
            ValueError,
            "link_bytes_per_s is 0: expected a number of bytes",
        ),
        (lambda: Speeds(float("nan"), None, 1e9), ValueError, "memory_bytes_per_s is nan"),
    ],
)
def test_what_means_nothing_is_one_sentence(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
