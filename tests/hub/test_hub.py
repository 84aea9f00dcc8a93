"""The real client of the hub against a hub on this machine, which refuses, breaks off, lies and is slow."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from hub_server import COMMIT, Fault

from mistral_lab.checkpoints import BUNDLED

WEIGHTS = "model.safetensors"
SIZE = (BUNDLED["tiny-mistral"] / WEIGHTS).stat().st_size
HALF = SIZE // 2
FOLDER = {"do": "folder", "name": "owner/model"}
CONFIG = {"do": "config", "name": "owner/model"}


def fails(outcome: dict, kind: str, *parts: str) -> None:
    assert outcome.get("kind") == kind, outcome
    assert all(part in outcome["message"] for part in parts), outcome["message"]


def is_whole(outcome: dict) -> None:
    assert "result" in outcome, outcome
    for file in BUNDLED["tiny-mistral"].iterdir():
        assert (Path(outcome["result"]) / file.name).read_bytes() == file.read_bytes()


# What the hub refuses

REFUSALS = [
    ("gated", 401, {"X-Error-Code": "GatedRepo"}, "PermissionError", "accept its terms at https://huggingface.co/own"),
    ("gated-403", 403, {"X-Error-Code": "GatedRepo"}, "PermissionError", "your account has no access: accept its term"),
    ("barred", 403, {}, "PermissionError", "your access token may not read owner/barred"),
    (
        "locked", 401, {"X-Error-Message": "Invalid credentials in Authorization header"},
        "PermissionError", "the hub refused the access token: make a new one",
    ),
    ("empty", 404, {"X-Error-Code": "EntryNotFound"}, "FileNotFoundError", "no config.json in owner/empty"),
    ("busy", 429, {"Retry-After": "7"}, "ConnectionError", "429 (too many requests) for owner/busy: wait five min"),
    ("broken", 500, {}, "ConnectionError", "the hub answered 500 for owner/broken: try again later"),
    ("away", 503, {}, "ConnectionError", "the hub answered 503 for owner/away: try again later"),
]  # fmt: skip


def test_what_the_hub_refuses_is_one_sentence_with_what_to_do(hub, reader):
    for name, status, headers, *_ in REFUSALS:
        hub.faulty(f"owner/{name}", Fault(status, headers))
    names = [f"owner/{name}" for name, *_ in REFUSALS]
    unknown = ["owner/private", "mistralai/Mistral-7B-v0.2"]
    steps = [{"do": do, "name": name} for name in [*names, *unknown] for do in ("config", "folder")]
    steps.append(FOLDER | {"revision": "v9"})
    outcomes = reader.does(*steps)
    expected = [row[-2:] for row in REFUSALS for _ in range(2)]
    expected += [("FileNotFoundError", "no model owner/private on the hub, or a private one")] * 2
    expected += [("FileNotFoundError", "no model mistralai/Mistral-7B-v0.2 on the hub (did you mean mistralai/")] * 2
    expected += [("FileNotFoundError", "owner/model has no revision 'v9': see https://huggingface.co/owner/model/")]
    for step, outcome, (kind, message) in zip(steps, outcomes, expected, strict=True):
        if step["do"] == "folder" and "owner/empty" in message:
            continue  # its listing is not there either, which is no missing config
        fails(outcome, kind, message)
    assert {line.token for line in hub.log} == {"Bearer hf_a_secret"}  # it was sent, so it could have leaked
    busy = outcomes[2 * [row[0] for row in REFUSALS].index("busy")]
    assert busy["waited"] == 4 * 7  # four times what the hub asked for, in which its window moves on


def test_no_network_is_found_out_at_once(hub, reader):
    (outcome,) = reader.does(CONFIG, HF_ENDPOINT="http://127.0.0.1:9")
    fails(outcome, "ConnectionError", "owner/model is not on this machine and the hub cannot be reached")
    assert outcome["waited"] == 0


# What passes over


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub, reader, status):
    for name in ("owner/model", f"owner/model/{WEIGHTS}"):
        hub.faulty(name, Fault(status, {"Retry-After": "3"}, times=1))
    config, folder = reader.does(CONFIG, FOLDER)
    assert "result" in config
    is_whole(folder)
    assert config["waited"] >= 3
    assert folder["waited"] > 0
    hub.faulty("owner/model", Fault(status, {"Retry-After": "3"}, times=1))
    (again,) = reader.does(FOLDER)  # for the listing of a branch
    is_whole(again)


def test_a_download_cut_off_goes_on_at_that_byte(hub, reader):
    hub.faulty(f"owner/model/{WEIGHTS}", Fault(cut_after=HALF, times=1))
    is_whole(reader.does(FOLDER)[0])
    first, second = hub.downloads("owner/model", WEIGHTS)
    begun = int(second.range.removeprefix("bytes=").removesuffix("-"))
    assert HALF - 2**16 <= begun <= HALF  # what is less than one piece is not kept
    assert (first.sent, second.sent) == (HALF, SIZE - begun)
    assert not any(line.token for line in hub.downloads("owner/model", WEIGHTS))  # another origin


def test_a_hub_that_stands_still_is_asked_again(hub, reader):
    hub.faulty(f"owner/model/{WEIGHTS}", Fault(stall_after=HALF, times=1))
    is_whole(reader.does(FOLDER)[0])
    assert [line.status for line in hub.downloads("owner/model", WEIGHTS)] == [200, 206]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(503), "the hub answered 503 for owner/model: try again later; what has arrived stays"),
        (Fault(cut_after=0), "the connection to the hub broke while owner/model was downloaded: load again, and"),
    ],
    ids=["503", "cut"],
)
def test_a_call_that_gave_up_is_taken_up_by_the_next(hub, reader, fault, words):
    hub.faulty(f"owner/model/{WEIGHTS}", Fault(cut_after=HALF, times=1), fault)
    (failed,) = reader.does(FOLDER)
    fails(failed, "ConnectionError", words)
    hub.faulty(f"owner/model/{WEIGHTS}")
    is_whole(reader.does(FOLDER)[0])
    last = hub.downloads("owner/model", WEIGHTS)[-1]
    assert last.status == 206
    assert last.sent <= SIZE - HALF + 2**16


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_download_that_was_stopped_goes_on(hub, reader, kind):
    hub.faulty(f"owner/model/{WEIGHTS}", Fault(pause_s=0.05, times=1))
    process = reader.starts(FOLDER)
    assert hub.arrived[f"owner/model/{WEIGHTS}"].wait(30)
    process.send_signal(kind)
    out, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "result" not in out
    assert "hf_a_secret" not in err
    is_whole(reader.does(FOLDER)[0])
    first, second = hub.downloads("owner/model", WEIGHTS)
    assert (first.status, second.status) == (200, 206)
    assert second.sent < SIZE * 0.75
    assert not list(reader.cache.glob("*/blobs/*.incomplete"))


def test_a_slow_hub_is_waited_for(hub, reader):
    hub.faulty(f"owner/model/{WEIGHTS}", Fault(pause_s=0.02))
    is_whole(reader.does(FOLDER)[0])
    assert len(hub.downloads("owner/model", WEIGHTS)) == 1


# What arrives wrong


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"x" * (SIZE + 100), f"it does not have the {SIZE:,} bytes that the hub lists"),
        (b"x" * 1000, f"it does not have the {SIZE:,} bytes that the hub lists"),
        (b"x" * SIZE, "its checksum is not the one that the hub lists"),
    ],
    ids=["long", "short", "damaged"],
)
def test_what_arrives_wrong_is_removed_and_downloaded_again(hub, reader, body, reason):
    hub.faulty(f"owner/model/{WEIGHTS}", Fault(body=body, times=1))
    first, second = reader.does(FOLDER, FOLDER)
    fails(first, "OSError", f"{WEIGHTS} of owner/model arrived damaged and was removed ({reason}): load again")
    is_whole(second)
    assert hub.downloads("owner/model", WEIGHTS)[-1].range is None


# What is there already


def test_a_model_that_is_there_is_not_asked_for_again(hub, reader):
    pinned = FOLDER | {"revision": COMMIT}
    is_whole(reader.does(pinned)[0])
    asked = len(hub.log)
    is_whole(reader.does(pinned)[0])
    assert len(hub.log) == asked
    reader.does(FOLDER)
    assert {line.path for line in hub.log[asked:]} == {"/api/models/owner/model/revision/main"}  # where it is now
    hub.faulty("owner/model", Fault(503))
    for offline in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, {}):
        for outcome in reader.does(FOLDER, pinned, **offline):
            is_whole(outcome)


def test_what_has_arrived_stays_where_the_next_call_is_offline(hub, reader):
    hub.faulty(f"owner/model/{WEIGHTS}", Fault(cut_after=HALF, times=1), Fault(503))
    pinned = FOLDER | {"revision": COMMIT}
    reader.does(pinned)
    hub.faulty(f"owner/model/{WEIGHTS}")
    (offline,) = reader.does(pinned, HF_HUB_OFFLINE="1")
    fails(offline, "ConnectionError", "owner/model is not on this machine and the hub cannot be reached")
    is_whole(reader.does(pinned)[0])
    assert hub.downloads("owner/model", WEIGHTS)[-1].status == 206


def test_what_is_there_in_part_is_refused_without_network(hub, reader):
    reader.does(CONFIG)
    for step in (FOLDER, FOLDER | {"revision": COMMIT}):
        (outcome,) = reader.does(step, HF_HUB_OFFLINE="1")
        assert outcome["kind"] in ("ConnectionError", "FileNotFoundError")


def test_a_name_in_another_casing_is_one_download(hub, reader):
    for do in ("config", "folder"):  # whichever comes first
        other, own, third = (FOLDER | {"name": name} for name in ("Owner/MODEL", "owner/model", "OWNER/model"))
        *_, first, second, third = reader.does(other | {"do": do}, other, own, third)
        is_whole(first)
        assert first["result"] == second["result"] == third["result"]
        assert len(hub.downloads("owner/model", WEIGHTS)) == 1
        assert [path.name for path in reader.cache.glob("models--*")] == ["models--owner--model"]
        assert len(list(reader.home.glob("mistral_lab/listings/*"))) == 1
        shutil.rmtree(reader.home)
        hub.log.clear()


# The disk


def free(nbytes: int) -> dict:
    return {"do": "free", "nbytes": nbytes}


def test_a_disk_that_is_too_small_is_refused_before_the_download(hub, reader):
    _, refused, _, done, _, there = reader.does(free(10**6), FOLDER, free(10**7), FOLDER, free(0), FOLDER)
    fails(refused, "OSError", "3.5 MB are needed in ", "(3.5 MB to download owner/model), and 1.0 MB are free there")
    fails(refused, "OSError", "free 2.5 MB more, or set HF_HOME")
    is_whole(done)
    assert there == done  # what is there needs no room
    assert len(hub.downloads("owner/model", WEIGHTS)) == 1


def own_mounts() -> tuple[str, ...]:
    """What starts a process that may mount a small disk, which is gone when the process ends."""
    command = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)))
    trial = "mount -t tmpfs tmpfs /tmp"
    if not shutil.which("unshare") or subprocess.run([*command, "sh", "-c", trial], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    return command


@pytest.mark.long
def test_a_disk_that_fills_up_keeps_what_is_finished(hub, reader, mixture):
    hub.repos["owner/mixture"] = mixture
    disk, lab = str(reader.home), str(reader.home / "mistral_lab")
    folder, four_bits = {"do": "folder", "name": "owner/mixture"}, {"do": "quantise", "name": "owner/mixture"}
    outcomes, _ = reader.ends(
        reader.starts(
            free(10**9),  # as where another program takes the room in the meantime
            {"do": "mount", "at": disk, "nbytes": 4 * 10**6},
            folder,
            {"do": "mount", "at": disk, "nbytes": 10**7, "options": "remount,"},
            folder,
            {"do": "mount", "at": lab, "nbytes": 10**6},
            four_bits,
            {"do": "mount", "at": lab, "nbytes": 10**7, "options": "remount,"},
            four_bits,
            before=own_mounts(),
        )
    )
    _, _, full, _, downloaded, _, full_again, _, quantised = outcomes
    fails(full, "OSError", f"the disk of {disk}", " MB to download owner/mixture are still needed, and ")
    assert "make room, or set HF_HOME" in full["message"]
    assert "result" in downloaded
    shards = [path.name for path in mixture.glob("*.safetensors")]
    sent = [line.sent for shard in shards for line in hub.downloads("owner/mixture", shard) if line.status == 206]
    assert sent  # at least one shard had begun, and went on
    fails(full_again, "OSError", f"the disk of {lab}", " MB for owner/mixture in four bits are still needed, and ")
    assert "result" in quantised


# Several processes


def test_two_downloads_at_once_are_one(hub, reader):
    hub.faulty(f"owner/model/{WEIGHTS}", Fault(pause_s=0.06))
    first = reader.starts(FOLDER, REAL_WAITS="1")
    assert hub.arrived[f"owner/model/{WEIGHTS}"].wait(30)
    second = reader.starts(FOLDER, REAL_WAITS="1")
    for process in (second, first):
        (outcome,), said = reader.ends(process)
        is_whole(outcome)
        waited = f"another process is downloading {WEIGHTS} of owner/model: waiting for it" in said
        assert waited == (process is second)
    assert len(hub.downloads("owner/model", WEIGHTS)) == 1


def tell(process: subprocess.Popen) -> None:
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.mark.long
def test_a_killed_quantisation_goes_on_and_a_second_process_waits_for_it(hub, reader, mixture):
    hub.repos["owner/mixture"] = mixture
    step = {"do": "quantise", "name": "owner/mixture"}
    killed = reader.starts(step | {"pause_in": "00002"})
    first = reader.starts(step | {"pause_in": "00003", "when_told": True}, REAL_WAITS="1")
    second = reader.starts(step | {"name": "Owner/Mixture", "when_told": True}, REAL_WAITS="1")
    assert killed.stdout.readline() == "there\n"
    killed.kill()
    killed.communicate()
    (folder,) = reader.home.glob("mistral_lab/*nf4*")
    done = folder / "model-00001-of-00003.safetensors"
    finished = done.stat().st_mtime_ns
    half = f".model-00002-of-00003.safetensors.{killed.pid}"
    assert sorted(path.name for path in folder.iterdir()) == [half, done.name]
    tell(first)
    assert first.stdout.readline() == "there\n"
    tell(second)
    while "another process is quantising owner/mixture: waiting for it to finish" not in second.stderr.readline():
        assert second.poll() is None
    (one,), bar = reader.ends(first)
    (other,), rest = reader.ends(second)
    assert one["result"] == other["result"] == str(folder)
    assert "Quantising owner/mixture: 100%" in bar
    assert "Quantising" not in rest
    assert done.stat().st_mtime_ns == finished
    assert not list(folder.glob(".*"))
    assert (folder / "quantized.json").exists()
