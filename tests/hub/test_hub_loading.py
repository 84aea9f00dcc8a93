"""`load` from the hub on this machine, in this process: what of the above reaches the reader through it."""

import re
import shutil
import socket
from types import SimpleNamespace

import huggingface_hub
import pytest
from hub_server import COMMIT, Fault
from huggingface_hub import constants

from mistral_lab import load
from mistral_lab.checkpoints import BUNDLED, locate
from mistral_lab.config import ModelConfig

HOST = "/{repo_id}/resolve/{revision}/{filename}"


def reach(monkeypatch, address, folder):
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + HOST)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("MISTRAL_LAB_CACHE", str(folder / "lab"))
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret")
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def here(hub, monkeypatch, tmp_path):
    """The hub, to which this process's client is led."""
    reach(monkeypatch, hub.address, tmp_path)
    return hub


def refused(call, kind, *parts):
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert all(part in message for part in parts), message
    assert "\n" not in message
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)  # one traceback, not two
    return message


@pytest.mark.parametrize(
    ("repo", "fault", "kind", "message"),
    [
        ("owner/gated", Fault(401, {"X-Error-Code": "GatedRepo"}), PermissionError, "accept its terms at https://hug"),
        ("mistralai/absent-7B-v0.1", None, FileNotFoundError, "did you mean mistralai/Mistral-7B-v0.1"),
        ("owner/broken", Fault(500), ConnectionError, "the hub answered 500 for owner/broken"),
    ],
)
def test_what_the_hub_refuses_is_one_line_without_the_token(here, capfd, repo, fault, kind, message):
    here.faulty(repo, *([fault] if fault else []))
    texts = [refused(lambda: call(repo), kind, message) for call in (load, ModelConfig.from_pretrained)]  # noqa: B023
    assert any(line.token == "Bearer hf_a_secret" for line in here.log)  # it was sent, so it could have leaked
    assert "hf_a_secret" not in "".join([*texts, *capfd.readouterr()])


def test_a_hub_model_is_fetched_at_its_revision_and_then_needs_no_network(here, monkeypatch, tmp_path, capfd):
    folder = shutil.copytree(BUNDLED["tiny-mistral"], tmp_path / "files")
    for name in ("pytorch_model.bin", "consolidated.safetensors"):
        (folder / name).write_bytes(b"not this one")
    (folder / "notes").mkdir()  # what lies in a folder of the repository is no part of the checkpoint
    here.repos["owner/full"] = folder
    loaded = load("owner/full", revision=COMMIT)
    assert re.search(r"Downloading owner/full: 100%.*3\.28M/3\.28M", capfd.readouterr().err)
    text = {"max_new_tokens": 5, "temperature": 0}
    assert loaded.generate_text("a", **text) == load("tiny-mistral").generate_text("a", **text)
    fetched = {line.path for line in here.log if "/resolve/" in line.path}
    assert all(COMMIT in path for path in fetched)
    assert not any(path.endswith((".bin", "consolidated.safetensors")) for path in fetched)
    assert (locate("owner/full", COMMIT).config_folder() / "LICENSE").is_file()  # the licence comes with it
    asked = len(here.log)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load("owner/full", revision=COMMIT).config == loaded.config
    assert len(here.log) == asked


def test_a_config_is_read_from_the_hub_without_the_weights(here):
    assert ModelConfig.from_pretrained("Owner/Model") == ModelConfig.from_pretrained(BUNDLED["tiny-mistral"])
    assert not any(line.path.endswith(".safetensors") for line in here.log)


def test_the_disk_is_asked_for_the_download_and_the_copy_in_four_bits_together(here, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4 * 10**6))  # enough for either
    with pytest.raises(OSError, match=r"\(3\.5 MB to download owner/model and 1\.\d MB for its copy in four bits\)"):
        load("owner/model", bits=4)
    assert not here.downloads("owner/model", "model.safetensors")


def test_a_model_and_its_copy_that_are_there_need_no_room(here, monkeypatch):
    load("owner/model", bits=4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    load("owner/model", bits=4)
    load("owner/model")
    assert len(here.downloads("owner/model", "model.safetensors")) == 1


def test_a_branch_stands_for_the_commit_it_is_at(here):
    source = locate("Owner/MODEL")
    assert source.origin(source.folder()) == ("owner/model", COMMIT)


def test_a_hub_model_offline_and_out_of_reach(here, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    words = "is not on this machine and the hub cannot be reached"
    refused(lambda: load("mixtral-8x7b-v0.1"), ConnectionError, words)
    assert here.log == []


def test_no_network_is_found_out_at_once(monkeypatch, tmp_path):
    with socket.socket() as unused:  # bound and not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        reach(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}", tmp_path)
        # The hub's own download would try again for 23 seconds: it must not be reached.
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda **file: pytest.fail("the download was started"))
        words = "mistralai/Mistral-7B-v0.1 is not on this machine"
        refused(lambda: load("mistral-7b-v0.1"), ConnectionError, words, "tiny-mistral")
