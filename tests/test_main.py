"""`python -m mistral_lab`: what it prints, and what it says to options that mean nothing."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from no_network import SITECUSTOMIZE

from mistral_lab import __main__ as program
from mistral_lab.config import PRESETS
from mistral_lab.memory import DEVICES, LAPTOP, PRECISIONS, SPEEDS, largest_context, plan, plan_outside, rate_text

SLOW = "What is slow on this machine, and why"


def printed(capsys, *options: str) -> str:
    program.main(list(options))
    return capsys.readouterr().out


def cells(text: str, head: str) -> dict[str, list[str]]:
    """The rows of the table under a heading: model -> what stands in its columns."""
    body = text[text.index(head) :].split("\n\n")[0].splitlines()[1:]
    assert body[0].split() == list(PRECISIONS)
    return {line.split()[0]: re.split(r"  +", line.strip())[1:] for line in body[1:]}


def test_it_runs_without_network_and_names_no_host_and_no_path(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    log = tmp_path / "refused.txt"
    log.touch()
    unset = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "MISTRAL_LAB_MODEL")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-m", "mistral_lab", "--context", "2048"],
        env=environment | {"PYTHONPATH": str(tmp_path), "REFUSED_SOCKETS": str(log)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""
    assert log.read_text() == ""
    assert not re.search(rf"\b{re.escape(platform.node())}\b", done.stdout)
    for path in (Path.home(), Path(program.__file__).parent, Path(sys.prefix)):
        assert str(path) + "/" not in done.stdout
    assert f"torch {torch.__version__}" in done.stdout
    assert SLOW in done.stdout
    assert len(cells(done.stdout, "GiB for 2,048 tokens")) == 2 + len(PRESETS)


def test_the_tables_are_the_plans(capsys):
    text = printed(capsys, "--card", "RTX 4090", "--context", "3000", "--batch", "2", "--host-gib", "30")
    totals = cells(text, "GiB for 3,000 tokens in 2 sequences")
    longest = cells(text, "Tokens of context that fit there")
    assert "RTX 4090, 23.99 GiB?" in text
    assert list(totals)[:2] == ["tiny-mistral", "tiny-mixtral"]
    for name, config in PRESETS.items():
        for column, precision in enumerate(PRECISIONS):
            device = {"precision": precision, "batch": 2, "device_bytes": DEVICES["RTX 4090"]}
            made = plan(config, context=3000, **device)
            verdict = "yes" if made.fits else "no"
            if (name, precision) in (("mixtral-8x7b-v0.1", "nf4"), ("mixtral-8x7b-v0.1", "nf4-double")):
                machine = {"host_bytes": 30 * 2**30, "speeds": SPEEDS["RTX 4090"]}
                outside = plan_outside(config, context=3000, **device, **machine)
                verdict = f"{rate_text(outside.tokens_per_s)}/s"
                assert f"  {name}, {outside}\n" in text
            assert totals[name][column] == f"{made.total_bytes / 2**30:.2f} {verdict}"
            tokens = largest_context(config, **device)
            assert longest[name][column] == (f"{tokens:,}" if tokens else "-")


def test_a_device_that_is_only_thought_of(capsys):
    text = printed(capsys, "--gib", "5.25")
    assert "such a device, 5.25 GiB?" in text
    verdicts = [cell.split()[1] for cell in cells(text, "GiB for 4,096 tokens in one sequence")["mistral-7b-v0.1"]]
    assert verdicts == ["no", "no", "no", "no", "yes"]


def test_a_laptop_maps_what_does_not_fit(capsys):
    text = printed(capsys, "--gib", "16", "--context", "512")
    machine = {"device_bytes": 16 * 2**30, "host_bytes": None, "speeds": LAPTOP}
    made = plan_outside(PRESETS["mixtral-8x7b-v0.1"], precision="nf4-double", context=512, **machine)
    assert made.outcome == "runs"
    verdicts = [cell.split()[1] for cell in cells(text, "GiB for 512 tokens")["mixtral-8x7b-v0.1"]]
    assert verdicts[:3] == ["no"] * 3
    assert verdicts[4] == f"{rate_text(made.tokens_per_s)}/s"
    assert "(memory 51.2, disk 3.5 GB/s)" in text
    assert f"  mixtral-8x7b-v0.1, {made}\n" in text


@pytest.mark.parametrize("gib", ["1", "64"])
def test_nothing_is_said_of_experts_outside_where_all_fits_or_nothing_runs(capsys, gib):
    assert "n/s" not in printed(capsys, "--gib", gib)


def test_models_made_for_fewer_tokens_are_named(capsys):
    assert (
        "Made for fewer tokens than 4,097: tiny-mistral (2,048), tiny-mixtral (2,048), llama-2-7b (4,096)"
        in printed(capsys, "--gib", "8", "--context", "4097")
    )
    assert "Made for fewer" not in printed(capsys, "--gib", "8", "--context", "2048")


def test_every_card_and_the_free_memory_of_this_machine(capsys, monkeypatch):
    card = SimpleNamespace(name="Tesla T4", total_memory=15 * 2**30, major=7, minor=5)
    monkeypatch.setattr(program, "measure_bandwidth", lambda device, repeats: 25e9)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=12 * 2**30, available=9 * 2**30))
    text = printed(capsys)
    assert "GPU       Tesla T4 (cuda:0), 15.0 GiB; Tesla T4 (cuda:1), 15.0 GiB\n" in text
    assert "12.0 GiB, 9.0 GiB of it free" in text
    devices = re.findall(r"Do they fit in (.*)\?", text)
    assert devices == [
        "Tesla T4 (cuda:0), 15.00 GiB",
        "Tesla T4 (cuda:1), 15.00 GiB",
        "the CPU's free memory, 9.00 GiB",
    ]
    assert "it is emulated" in text[text.index(SLOW) :]
    card_of_this_machine, free = "(memory 320, link 13.1, disk 3.5 GB/s)", "(memory 25, disk 3.5 GB/s)"
    assert (text.count(card_of_this_machine), text.count(free)) == (2, 1)
    assert "with 4 of 8 experts per layer outside (of all experts 9.0 GiB in memory, 12.7 on disk)" in text


def test_nothing_is_said_of_experts_outside_a_card_whose_speeds_are_unknown(capsys, monkeypatch):
    card = SimpleNamespace(name="Some other card", total_memory=15 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**30, available=2**30))
    monkeypatch.setattr(program, "measure_bandwidth", lambda device, repeats: 25e9)
    assert "n/s" not in printed(capsys)


@pytest.mark.parametrize(
    ("capabilities", "vectors", "x86", "expected"),
    [
        ([], "AVX512, AVX512_BF16", True, ["no GPU", "few cores", "slower than bfloat16 for many"]),
        ([], "AVX2", True, ["no GPU", "few cores", "without AVX512_BF16"]),
        ([], "DEFAULT", True, ["no GPU", "few cores", "needs AVX2"]),
        ([], "DEFAULT", False, ["no GPU", "few cores", "without AVX512_BF16"]),
        ([(7, 5)], "AVX2", True, ["emulated"]),
        ([(8, 9), (7, 5)], "AVX2", True, ["emulated"]),
        ([(9, 0)], "AVX2", True, []),
    ],
)
def test_what_is_slow_follows_from_the_hardware(capabilities, vectors, x86, expected):
    lines = program.slow_lines(capabilities, vectors, x86=x86)
    assert len(lines) == len(expected)
    assert all(part in line for part, line in zip(expected, lines, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--context", "0"], "--context: '0': expected a whole number of at least 1"),
        (["--context", "4k"], "--context: '4k': expected a whole number of at least 1"),
        (["--batch", "-3"], "--batch: '-3': expected a whole number of at least 1"),
        (["--gib", "0"], "--gib: '0': expected a number of GiB above 0"),
        (["--gib", "nan"], "--gib: 'nan': expected a number of GiB above 0"),
        (["--gib", "much"], "--gib: 'much': expected a number of GiB above 0"),
        (["--gib", "8", "--card", "T4"], "--card: not allowed with argument --gib"),
        (["--gib", "8", "--host-gib", "8"], "--host-gib: expected --card beside it"),
        (["--card", "T4", "--host-gib", "0"], "--host-gib: '0': expected a number of GiB above 0"),
        (["--card", "T5"], "--card: invalid choice: 'T5'"),
        (["--cards"], "unrecognized arguments: --cards"),
    ],
)
def test_an_option_that_means_nothing_is_one_sentence(capsys, options, message):
    with pytest.raises(SystemExit) as caught:
        program.main(options)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: [^\n]*\n", err)
    assert message in err
