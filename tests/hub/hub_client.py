"""What a reader's process does with the hub, step by step, told on the command line and told back on standard output.

Each step is {"do": "folder" | "config" | "load" | "quantise" | "free" | "mount", ...}; its outcome is one line of JSON.
The endpoint and the cache are read from the environment when huggingface_hub is imported, hence a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub import constants

from mistral_lab.checkpoints import locate
from mistral_lab.files import lab_cache


def quantise(name: str, pause_in: str | None = None, when_told: bool = False) -> Path:
    """Bring a model into four bits.

    Args:
        pause_in: in which shard to say "there" and stand still, as it is being written, until a line is read.
        when_told: begin with reading a line, once the slow imports are made.
    """
    import torch

    from mistral_lab.files import weight_files
    from mistral_lab.four_bit import checkpoint, shards

    save = shards.write_aligned

    def stop(tensors, path, metadata):
        if pause_in and pause_in in path.name:
            path.write_bytes(b"half")
            print("there", flush=True)
            sys.stdin.readline()
        save(tensors, path, metadata)

    shards.write_aligned = stop
    if when_told:
        sys.stdin.readline()
    source = locate(name)
    folder = source.folder()
    title, commit = source.origin(folder)
    return checkpoint.quantized_folder(
        folder,
        weight_files(folder),
        cache=lab_cache(),
        name=title,
        revision=commit,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )


def do(step: dict) -> str | None:
    what = step.pop("do")
    if what == "config":
        return str(locate(step["name"], step.get("revision")).config_folder())
    if what == "folder":
        return str(locate(step["name"], step.get("revision")).folder())
    if what == "quantise":
        return str(quantise(**step))
    if what == "load":
        from mistral_lab import load

        return load(**step).generate_text("a", max_new_tokens=8, temperature=0)
    if what == "free":
        shutil.disk_usage = lambda _: SimpleNamespace(free=step["nbytes"])
        return None
    if what == "mount":
        options = f"{step.get('options', '')}size={step['nbytes']}"
        Path(step["at"]).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", step["at"]], check=True)
        return None
    raise ValueError(what)


def main() -> None:
    # The client keeps what arrives in pieces of 10 MB, more than a whole file here.
    constants.DOWNLOAD_CHUNK_SIZE = 2**16
    waits = []
    if "REAL_WAITS" not in os.environ:
        time.sleep = waits.append
    for step in json.loads(sys.argv[1]):
        waits.clear()
        try:
            outcome = {"result": do(step)}
        except Exception as error:
            outcome = {"kind": type(error).__name__, "message": str(error)}
            outcome["alone"] = error.__cause__ is None and (error.__suppress_context__ or error.__context__ is None)
        print(json.dumps(outcome | {"waited": sum(waits)}), flush=True)


if __name__ == "__main__":
    main()
