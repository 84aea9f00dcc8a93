import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import reference
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from mistral_lab import checkpoints
from mistral_lab.config import PRESETS, ModelConfig
from mistral_lab.distributed import __main__ as command
from mistral_lab.distributed import check_room, experts_of_rank, launch, load_rank
from mistral_lab.loading import load, quantising, reading
from mistral_lab.memory import traffic_bytes, weights_by_device

pytestmark = pytest.mark.long

BUNDLED = checkpoints.locate("tiny-mixtral").path
TINY = ModelConfig.from_pretrained("tiny-mixtral")


def test_every_expert_has_one_rank_and_no_rank_has_two_more_than_another():
    for experts in range(1, 13):
        for ranks in range(1, experts + 1):
            owned = experts_of_rank(experts, ranks)
            assert [expert for mine in owned for expert in mine] == list(range(experts))
            assert max(map(len, owned)) - min(map(len, owned)) <= 1


def test_more_ranks_than_experts_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="^9 ranks for 8 experts: expected at most one rank for each expert$"):
        experts_of_rank(8, 9)


def test_without_ranks_it_is_said_how_to_start_them(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="this process is no rank: start it with `torchrun"):
        load_rank("tiny-mixtral")


# A layer of random experts on three ranks: five experts, so that the ranks hold 2, 2 and 1.


def layer_on_ranks():
    import torch
    from bitsandbytes import functional as bnb

    from mistral_lab.distributed import ExpertsOfRank, Traffic, experts_of_rank
    from mistral_lab.four_bit import FourBitExpert, FourBitExperts

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    E, d, h = 5, 64, 128
    kind = {"compute_dtype": torch.float32, "double": True}
    whole = FourBitExperts([FourBitExpert(d, h, torch.nn.functional.silu, **kind) for _ in range(E)]).to("cpu")
    whole.train()  # the plain path: in eval mode some CPUs multiply in bfloat16, whatever the compute dtype
    weights = {
        name: [
            bnb.dequantize_4bit(m.weight.data, m.weight.quant_state).numpy() for m in (getattr(e, name) for e in whole)
        ]
        for name in ("w1", "w3", "w2")
    }
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = ExpertsOfRank(list(whole), experts_of_rank(E, ranks), rank)
    found = []
    for N, A, only in ((1, 1, E), (7, 2, E), (40, 3, E), (9, 5, E), (6, 1, 1)):  # only: the first experts alone
        x = torch.randn(N, d)
        scores = torch.rand(N, E)
        scores[:, only:] = -1
        share, indices = scores.topk(A)
        with Traffic() as traffic:
            out = mine(x, indices, share)
        case = {"x": x, "indices": indices, "share": share, "out": out}
        found.append({name: value.numpy() for name, value in case.items()})
        found[-1]["received"] = sum(traffic.received_bytes.values())
        found[-1]["equal"] = torch.equal(out, whole(x, indices, share))
    return sorted(map(int, mine)), weights, found


@pytest.fixture(scope="module")
def layers():
    return launch(layer_on_ranks, ranks=3)


def test_a_rank_holds_its_experts_and_no_others(layers):
    assert [held for held, _, _ in layers] == [[0, 1], [2, 3], [4]]


def test_experts_over_ranks_compute_what_float64_says(layers):
    _, weights, found = layers[0]
    for case in found:
        expected = reference.experts(
            case["x"], case["indices"], case["share"], weights["w1"], weights["w3"], weights["w2"]
        )
        # float32 rounds by 6e-8; sums of 128 products of a few tenths, five of them added up, stay far below 2e-6
        np.testing.assert_allclose(case["out"], expected, atol=2e-6, rtol=0)


def test_every_rank_has_the_very_bits_of_one_process_for_any_number_of_choices(layers):
    for _, _, found in layers:
        assert [case["equal"] for case in found] == [True] * 5


def test_each_answer_is_received_once_by_every_rank_but_its_own(layers):
    for number in range(5):
        case = layers[0][2][number]
        received = sum(found[number]["received"] for _, _, found in layers)
        assert received == case["indices"].size * 2 * 64 * 4  # N·A answers, R - 1 others, d values in float32


# The bundled model. Of what a rank quantises as it reads it, the other rank's experts are NaN: to quantise one raises.
# Of what it reads in four bits they are not there: to need one raises too.


def checkpoint(folder, change):
    folder.mkdir()
    (folder / "config.json").write_text((BUNDLED / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    tensors = {name: change(name, tensor) for name, tensor in load_file(BUNDLED / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def only(whole, folder, mine):
    """A copy of a four-bit checkpoint with these experts alone."""
    shutil.copytree(whole, folder)
    expert = re.compile(r"\.experts\.(\d)\.")
    tensors = {
        name: tensor
        for name, tensor in load_file(whole / "model.safetensors").items()
        if not (found := expert.search(name)) or found[1] in mine
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def model_on_ranks(folders, parts, plain, refused, bundled):
    from pathlib import Path
    from unittest import mock

    import torch
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    from mistral_lab.checkpoints import BUNDLED
    from mistral_lab.distributed import Traffic, load_rank
    from mistral_lab.four_bit import audit

    torch.set_grad_enabled(False)
    rank = torch.distributed.get_rank()
    tokens = torch.arange(3, 67)[None]
    found = {}

    def refusal(name, **arguments):
        try:
            load_rank(name, **arguments)
        except (OSError, RuntimeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"

    for label, name in refused.items():
        found[label] = refusal(name)
    found["revision"] = refusal(plain, revision="main")
    with mock.patch("mistral_lab.four_bit.audit", return_value=mock.Mock(passed=False, verdict="two are not")):
        found["not four bits"] = refusal("tiny-mixtral")
    for label, name in (("bundled", "tiny-mixtral"), ("16 bits", plain), ("4 bits", parts[rank])):
        with mock.patch.dict(BUNDLED, {"tiny-mixtral": Path(folders[rank])}):
            model = load_rank(name)
        held = audit(model).nbytes
        experts = sorted({key.split(".")[5] for key in model.state_dict() if ".experts." in key})
        with Traffic() as traffic:
            logits = model(tokens).logits
        received = traffic.received_bytes
        found[label] = (
            logits.float().numpy(),
            held,
            experts,
            dict(received),
            model.generate(tokens[:, :9], max_length=20),
        )
    split = DistributedConfig(tp_size=2)
    model = AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32, distributed_config=split).eval()
    with Traffic() as traffic:
        model(tokens)
    found["tensors"] = sum(traffic.received_bytes.values())
    return found


def broken(base):
    """Checkpoints that a rank must not take: label -> folder."""
    tensors = load_file(BUNDLED / "model.safetensors")
    expert = "model.layers.0.block_sparse_moe.experts.{}.w1.weight"
    changed = {
        "incomplete": {name: tensor for name, tensor in tensors.items() if name != expert.format(5)},
        "misshapen": tensors | {"model.norm.weight": tensors["model.norm.weight"][:-1]},
        "foreign": tensors | {expert.format(8): tensors[expert.format(0)].clone()},
    }
    for label, content in changed.items():
        folder = Path(checkpoint(base / label, lambda name, tensor: tensor))
        save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((BUNDLED / "config.json").read_text(encoding="utf-8"))
    others = {"pickled": "pytorch_model.bin", "gguf": "model-Q4_0.gguf", "gptq": "model.safetensors"}
    for label, weights in others.items():
        (base / label).mkdir()
        (base / label / weights).touch()
        entry = {"quantization_config": {"quant_method": "gptq", "bits": 4}} if label == "gptq" else {}
        (base / label / "config.json").write_text(json.dumps(config | entry), encoding="utf-8")
    return {label: str(base / label) for label in (*changed, *others)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base = tmp_path_factory.mktemp("checkpoints")

    def without(others):
        def change(name, tensor):
            foreign = any(f".experts.{expert}." in name for expert in others)
            return torch.full_like(tensor, torch.nan) if foreign else tensor

        return change

    folders = [checkpoint(base / f"{n}", without(others)) for n, others in enumerate((range(4, 8), range(4)))]
    load("tiny-mixtral", bits=4).model.save_pretrained(base / "quantised")
    parts = [only(base / "quantised", base / f"part-{n}", mine) for n, mine in enumerate(("0123", "4567"))]
    plain = checkpoint(base / "plain", lambda name, tensor: tensor)
    refused = broken(base)
    few = base / "few"
    few.mkdir()
    config = (BUNDLED / "config.json").read_text(encoding="utf-8")
    config = config.replace('"num_local_experts": 8', '"num_local_experts": 1').replace('tok": 2', 'tok": 1')
    (few / "config.json").write_text(config, encoding="utf-8")
    refused |= {"few": str(few), "dense": "tiny-mistral"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MISTRAL_LAB_CACHE", str(base / "cache"))
        found = launch(model_on_ranks, folders, parts, plain, refused, str(BUNDLED), ranks=2, limit_s=120)
    assert len(list((base / "cache").glob("plain-nf4-*"))) == 1  # what both ranks read of the one in 16 bits
    return found


@pytest.mark.parametrize("origin", ["bundled", "16 bits", "4 bits"])
def test_a_model_over_ranks_is_one_process_to_the_last_bit(models, origin):
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as every rank: another number of threads may add in another order
    try:
        whole = load("tiny-mixtral", bits=4).model
        tokens = torch.arange(3, 67)[None]
        with torch.no_grad():
            expected = whole(tokens).logits.float().numpy()
        text = whole.generate(tokens[:, :9], max_length=20)
    finally:
        torch.set_num_threads(before)
    for found in models:
        np.testing.assert_array_equal(found[origin][0], expected)
        assert torch.equal(found[origin][4], text)


@pytest.mark.parametrize("origin", ["bundled", "16 bits", "4 bits"])
def test_a_rank_reads_and_holds_its_own_experts_alone(models, origin):
    assert [found[origin][2] for found in models] == [list("0123"), list("4567")]
    predicted = weights_by_device(TINY, "nf4-double", devices=2, split="experts")
    for found, parts in zip(models, predicted, strict=True):
        assert found[origin][1] == sum(part.total for part in parts.values())


def test_what_crosses_is_the_closed_form_and_nothing_but_broadcasts(models):
    received = [found["16 bits"][3] for found in models]
    assert {name for counts in received for name in counts} == {"broadcast"}
    assert sum(counts["broadcast"] for counts in received) == 64 * traffic_bytes(TINY, devices=2, split="experts")


def test_the_prediction_of_the_memory_room_is_what_is_counted(models):
    experts = sum(found["16 bits"][3]["broadcast"] for found in models)
    assert experts == 64 * traffic_bytes(TINY, devices=2, split="experts")
    tensors = sum(found["tensors"] for found in models)
    assert tensors == 64 * traffic_bytes(TINY, devices=2, split="tensors", bytes_per_value=4)


def test_what_cannot_be_spread_is_refused_in_a_sentence(models):
    experts = "2 ranks for 1 experts: expected at most one rank for each expert"
    assert {found["few"] for found in models} == {f"ValueError: {experts}"}
    dense = "tiny-mistral has no experts to spread: expected a mixture, such as tiny-mixtral"
    assert {found["dense"] for found in models} == {f"ValueError: {dense}"}
    for found in models:
        assert found["not four bits"].startswith(
            "RuntimeError: tiny-mixtral was to be in 4 bits, but two are not; take the repository"
        )


def test_a_rank_refuses_what_load_refuses(models):
    said = {
        "misshapen": r"OSError: .* lacks 1 of the tensors .*, or has them in another shape, model\.norm\.weight first",
        "foreign": r"OSError: .* holds .*\.experts\.8\.w1.*, and its config\.json knows of experts 0 to 7 alone",
        "pickled": r"FileNotFoundError: no model\.safetensors in .* \(only pytorch_model\.bin\): weights are read from",
        "gguf": r"FileNotFoundError: .* holds GGUF files, which llama\.cpp reads \(model-Q4_0\.gguf\)",
        "gptq": r"ValueError: .* is a mixture of experts in GPTQ: expected 16 bits or 4 bits of bitsandbytes",
        "revision": r"ValueError: revision is 'main', but .* is a folder: only models on the hub have revisions",
    }
    for found in models:
        for label, message in said.items():
            assert re.match(message, found[label]), (label, found[label])


def test_a_rank_whose_tensors_are_missing_says_so_and_the_other_loads(models):
    first, second = (found["incomplete"] for found in models)
    assert first is None
    assert re.fullmatch(r"OSError: .*incomplete\S* lacks 1 of the tensors .*\.5\.w1\.weight first.*", second)


@pytest.mark.parametrize(
    ("cards", "ranks", "said"),
    [
        ([15], 1, r"^a rank's card is too small \(nf4-double, .* = 23.* GiB of 15.00 GiB: does not fit\): take more"),
        ([15, 15], 2, None),  # two T4
        ([15, 12], 2, r"experts split over 2 devices.* of 12.00 GiB: does not fit"),  # the smaller one counts
        ([24], 2, r"^a rank's part of the memory, 1 of 2, is too small \(.* of 8.00 GiB: does not fit\)"),
        ([], 4, None),
    ],
)
def test_ranks_that_are_too_small_are_refused_before_anything_is_read(monkeypatch, cards, ranks, said):
    """Mixtral on cards of so many GiB, in a computer of 16 GiB, or of 40 where it has no card."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda card: SimpleNamespace(total_memory=cards[card.index] * 2**30)
    )
    memory = SimpleNamespace(total=(16 if cards else 40) * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with nullcontext() if said is None else pytest.raises(MemoryError, match=said):
        check_room(PRESETS["mixtral-8x7b-v0.1"], ranks)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_a_rank_takes_the_dtype_of_its_card_as_load_does(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    asked = asked_on_a_card(monkeypatch, None)
    assert asked["dtype"] == expected
    assert asked["device_map"] == torch.device("cuda", 0)
    assert asked_on_a_card(monkeypatch, "float32")["dtype"] == torch.float32


def test_a_rank_reads_safetensors_alone_and_runs_no_code_of_a_checkpoint(monkeypatch):
    asked = asked_on_a_card(monkeypatch, "bfloat16")
    safe = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    assert {name: asked[name] for name in safe} == safe


def test_a_rank_that_runs_out_of_memory_says_so_with_its_plan(monkeypatch):
    full = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(MemoryError, match=r"^tiny-mixtral ran out of memory .* \(nf4-double, .* fits\); other"):
        asked_on_a_card(monkeypatch, "bfloat16", full)


def test_a_model_too_large_for_its_ranks_is_refused_before_its_weights_are_fetched(monkeypatch):
    config = PRESETS["mixtral-8x7b-v0.1"].to_transformers()
    monkeypatch.setattr(checkpoints.Source, "config_folder", lambda self: None)
    monkeypatch.setattr(checkpoints.Source, "folder", lambda self, *beside: pytest.fail("the weights were fetched"))
    monkeypatch.setattr(quantising, "read_config", lambda folder: config)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=12 * 2**30))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(MemoryError, match="^a rank's part of the memory, 1 of 2, is too small"):
        load_rank("mixtral-8x7b-v0.1", revision="main")


def test_a_rank_takes_a_dtype_that_weights_can_have(monkeypatch):
    with pytest.raises(ValueError, match=r"^dtype is 'int8': expected torch\.float32, torch\.bfloat16"):
        asked_on_a_card(monkeypatch, "int8")


def asked_on_a_card(monkeypatch, dtype, failure=None):
    """What `load_rank` asks of transformers, on a machine that seems to have one card."""
    asked = {}

    def from_pretrained(*args, **kwargs):
        asked.update(kwargs)
        raise failure or InterruptedError

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda card: SimpleNamespace(total_memory=2**34))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(reading.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with nullcontext() if failure else pytest.raises(InterruptedError):
        load_rank("tiny-mixtral", dtype=dtype)
    return asked


def test_the_command_prints_the_equality_and_the_bytes_of_uneven_ranks():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    done = subprocess.run(
        [*command, "-m", "mistral_lab.distributed"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("logits equal to one process's, bit for bit: True") == 3
    for parts in weights_by_device(TINY, "nf4-double", devices=3, split="experts"):
        size = sum(part.total for part in parts.values())
        assert f"holds {size:,} bytes (predicted {size:,})" in done.stdout
    assert "kernels-community" not in done.stderr  # of bitsandbytes, once a rank


def command_with_a_wrong_rank():
    from unittest import mock

    import torch

    from mistral_lab.distributed import __main__, loader

    load_rank = loader.load_rank

    def load_wrong(name):
        model = load_rank(name)
        model.lm_head.register_forward_hook(lambda module, args, logits: 1.01 * logits)
        return model

    if torch.distributed.get_rank() == 1:
        loader.load_rank = load_wrong
    with mock.patch.object(torch.distributed, "destroy_process_group"):  # the worker still needs the group
        try:
            __main__.main()
        except SystemExit as error:
            return error.code


def test_the_command_says_which_rank_is_unequal_and_fails_there(capsys):
    assert launch(command_with_a_wrong_rank, ranks=2) == [None, 1]
    first, second = re.findall(r"rank \d: logits equal to one process's, bit for bit: \w+", capsys.readouterr().out)
    assert first.endswith("rank 0: logits equal to one process's, bit for bit: True")
    assert second.endswith("rank 1: logits equal to one process's, bit for bit: False")


@pytest.fixture
def bars():
    """The command turns progress bars off for its process, which here is that of other tests too."""
    yield
    transformers_logging.enable_progress_bar()


@pytest.mark.usefixtures("bars")
def test_any_rank_of_the_command_says_why_it_cannot_run(monkeypatch):
    monkeypatch.setenv("RANK", "5")  # nine start at once; `torchrun` ends the others when the first has failed
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 9)
    with pytest.raises(SystemExit, match="^rank 5: 9 ranks for 8 experts: expected at most one rank for each expert$"):
        command.main()


@pytest.mark.usefixtures("bars")
def test_the_command_without_ranks_says_how_to_start_them(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit, match="^error: this process is no rank: start it with `torchrun"):
        command.main()


def counting():
    import torch
    from torch.distributed import _functional_collectives as functional

    from mistral_lab.distributed import Traffic

    def received(collective):
        with Traffic() as traffic:
            collective()
        return dict(traffic.calls), dict(traffic.received_bytes)

    six, group = torch.ones(6), torch.distributed.group.WORLD
    found = {
        "all_reduce": received(lambda: torch.distributed.all_reduce(six)),
        "functional all_reduce": received(lambda: functional.all_reduce(six, "sum", group) + 1),
        "functional all_gather": received(lambda: functional.all_gather_tensor(six, 0, group) + 1),
        "all_gather": received(lambda: torch.distributed.all_gather([torch.ones(6) for _ in range(3)], six)),
        "joined all_gather": received(lambda: torch.distributed.all_gather_into_tensor(torch.ones(18), six)),
        "broadcast": received(lambda: torch.distributed.broadcast(six, src=1)),
    }
    pairs = [torch.distributed.new_group(pair) for pair in ([0, 1], [1, 2])]  # of which every rank must know
    rank = torch.distributed.get_rank()
    if rank < 2:
        found["pair's all_reduce"] = received(lambda: torch.distributed.all_reduce(six, group=pairs[0]))
        found["pair's functional all_gather"] = received(lambda: functional.all_gather_tensor(six, 0, pairs[0]) + 1)
    if rank > 0:
        found["pair's broadcast"] = received(lambda: torch.distributed.broadcast(six, src=1, group=pairs[1]))
    try:
        with Traffic():
            torch.distributed.reduce(six, dst=0)
    except NotImplementedError as error:
        found["other"] = str(error)
    return found


def test_traffic_counts_a_ring_by_hand():
    first, second, third = launch(counting, ranks=3)
    ring = ("all_reduce", "functional all_reduce", "all_gather", "functional all_gather", "broadcast", "other")
    assert [first[name] for name in ring] == [third[name] for name in ring]
    for name, size in (("all_reduce", 32), ("all_gather", 48)):  # of 24 bytes: 2·2/3, and those of 2 other ranks
        for found in (first, second):
            assert found[f"functional {name}"] == ({name: 1}, {name: size})
    assert first["all_reduce"] == first["functional all_reduce"]
    assert first["all_gather"] == first["joined all_gather"] == first["functional all_gather"]
    assert first["broadcast"] == ({"broadcast": 1}, {"broadcast": 24})
    assert second["broadcast"] == ({"broadcast": 1}, {"broadcast": 0})
    assert first["other"].startswith("Traffic knows ")
    assert first["other"].endswith("and met c10d::reduce_")
    for found in (first, second):  # in a group of two: 2·1/2 of 24 bytes, and those of 1 other rank
        assert found["pair's all_reduce"] == ({"all_reduce": 1}, {"all_reduce": 24})
        assert found["pair's functional all_gather"] == ({"all_gather": 1}, {"all_gather": 24})
    assert second["pair's broadcast"] == ({"broadcast": 1}, {"broadcast": 0})
    assert third["pair's broadcast"] == ({"broadcast": 1}, {"broadcast": 24})
