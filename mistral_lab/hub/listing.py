"""Which files a repository has at a commit, and which of them the cache lacks."""

import functools
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..files import lab_cache, read_json_if_whole, write_json
from .compat import incomplete_path
from .patience import patiently

# Mistral's own format (consolidated*) lies beside the same weights and would double the download.
WANTED = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model", "LICENSE*", "NOTICE*"]
UNWANTED = ["consolidated*", "*/*"]
COMMIT = re.compile("[0-9a-f]{40}")


class RemoteFile(NamedTuple):
    """One file of a repository; `sha256` is None for a small one, which lies in git itself."""

    name: str
    size: int
    sha256: str | None


def spelled(repo: str) -> str:
    """Return the name as the cache has it, where it has it in another casing: then one download serves all."""
    from huggingface_hub import constants

    there = {path.name for path in Path(constants.HF_HUB_CACHE).glob("models--*")}
    mine = f"models--{repo.replace('/', '--')}"
    other = next((name for name in sorted(there) if name.lower() == mine.lower()), mine)
    return repo if mine in there else other.removeprefix("models--").replace("--", "/")


def listing(repo: str, revision: str) -> tuple[str, str, list[RemoteFile]]:
    """Ask the hub for the files of a repository; a commit never changes, so its list is kept and not asked for again.

    Returns:
        the name in the hub's spelling, the commit and its files.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import filter_repo_objects

    if COMMIT.fullmatch(revision) and (files := kept_listing(repo, revision)):
        return repo, revision, files
    ask = functools.partial(HfApi().model_info, timeout=constants.HF_HUB_ETAG_TIMEOUT, files_metadata=True)
    info = patiently(lambda: ask(repo, revision=revision))
    files = [
        RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None)
        for file in filter_repo_objects(
            info.siblings or [], allow_patterns=WANTED, ignore_patterns=UNWANTED, key=lambda file: file.rfilename
        )
    ]
    path = _listing_path(info.id, info.sha)
    with suppress(OSError):  # without it the next call asks again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, files)
    return info.id, info.sha, files


def kept_listing(repo: str, commit: str) -> list[RemoteFile] | None:
    """Return the list that an earlier call kept of a commit, or None where there is none that can be read."""
    try:
        return [RemoteFile(*row) for row in read_json_if_whole(_listing_path(repo, commit))]
    except TypeError:
        return None


def missing_files(folder: Path, files: list[RemoteFile]) -> list[RemoteFile]:
    """Return those files that a snapshot lacks, or of which it has only a part."""
    paths = {file: folder / file.name for file in files}
    return [file for file, path in paths.items() if not path.is_file() or path.stat().st_size != file.size]


def bytes_left(storage: Path, folder: Path, files: list[RemoteFile]) -> int:
    """Count the bytes that are still to be downloaded."""
    left = 0
    for file in missing_files(folder, files):
        blob = storage / "blobs" / str(file.sha256)
        there = next((path.stat().st_size for path in (blob, incomplete_path(blob)) if path.is_file()), 0)
        left += max(file.size - there, 0)
    return left


def _listing_path(repo: str, commit: str) -> Path:
    return lab_cache() / "listings" / f"{repo.replace('/', '--')}--{commit}.json"
