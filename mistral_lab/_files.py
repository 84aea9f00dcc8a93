"""Files that are there are whole, and what a safetensors file says it holds."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write under a temporary name and rename when done; an interruption or a full disk leaves what was there.

    Yields:
        the temporary path, in the same folder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_header(path: str | os.PathLike) -> dict[str, dict]:
    """What a safetensors file holds, without its tensors: name to "dtype", "shape" and "data_offsets".

    Source: github.com/huggingface/safetensors, README, "Format": eight bytes of length, then a JSON object.
    """
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return header
