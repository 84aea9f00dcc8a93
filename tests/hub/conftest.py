import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Hub

import mistral_lab
from mistral_lab.checkpoints import BUNDLED

CLIENT = Path(__file__).with_name("hub_client.py")
TOKEN = "hf_a_secret"


class Reader:
    """A reader's machine: an empty cache, and a process for each call of `does`."""

    def __init__(self, hub: Hub, home: Path):
        self.hub, self.home = hub, home
        self.cache = home / "hub"

    def environment(self, **more: str) -> dict[str, str]:
        own = ("HF_", "HUGGING", "MISTRAL_LAB", "TRANSFORMERS_OFFLINE")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        return inherited | {
            "HF_ENDPOINT": self.hub.address,
            "HF_HOME": str(self.home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",
            "HF_HUB_ETAG_TIMEOUT": "1",
            "PYTHONPATH": str(Path(mistral_lab.__file__).parents[1]),
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def starts(self, *steps: dict, before: tuple[str, ...] = (), **more: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*before, sys.executable, str(CLIENT), json.dumps(steps)],
            env=self.environment(**more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ends(self, process: subprocess.Popen) -> tuple[list[dict], str]:
        """The outcomes of a process and what it printed: a failure is one sentence, and nothing holds the token."""
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert TOKEN not in out + err
        outcomes = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        for outcome in outcomes:
            assert "\n" not in outcome.get("message", "")
            assert outcome.get("alone", True), "two tracebacks where one would do"
        return outcomes, err

    def does(self, *steps: dict, **more: str) -> list[dict]:
        return self.ends(self.starts(*steps, **more))[0]


@pytest.fixture(scope="session")
def dense(tmp_path_factory) -> Path:
    """tiny-mistral with files that nobody needs, as every repository has some."""
    folder = shutil.copytree(BUNDLED["tiny-mistral"], tmp_path_factory.mktemp("dense") / "repository")
    (folder / "README.md").write_text("# A model\n")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights again")
    return folder


@pytest.fixture
def hub(dense):
    hub = Hub()
    hub.repos["owner/model"] = dense
    yield hub
    hub.close()


@pytest.fixture(scope="session")
def mixture(tmp_path_factory) -> Path:
    """tiny-mixtral in three shards, as the hub has a mixture."""
    from safetensors.torch import load_file, save_file

    bundled, folder = BUNDLED["tiny-mixtral"], tmp_path_factory.mktemp("mixture")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled / name, folder)
    tensors = load_file(bundled / "model.safetensors")
    names, where = sorted(tensors), {}
    for shard in range(3):
        file = f"model-{shard + 1:05}-of-00003.safetensors"
        part = names[shard * len(names) // 3 : (shard + 1) * len(names) // 3]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


@pytest.fixture
def reader(hub, tmp_path):
    return Reader(hub, tmp_path / "home")
