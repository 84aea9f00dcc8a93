"""What this module uses of huggingface_hub that it does not document, with the versions in which it was seen.

huggingface_hub 1.5.0 to 2.4.0: three functions of `file_download`, and the names of files and folders in the cache.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def storage_of(repo: str) -> Path:
    """Return the folder that the library's cache keeps for a repository."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def incomplete_path(blob: Path) -> Path:
    """Return the path at which the library keeps a file that it has not finished."""
    return blob.with_name(f"{blob.name}.incomplete")


def lock_of(storage: Path, sha256: str) -> Path:
    """Return the library's lock for a file, so that a download of the library and one of the lab respect each other."""
    return storage.parent / ".locks" / storage.name / f"{sha256}.lock"


def has_symlinks(storage: Path) -> bool:
    """Say whether the cache holds snapshots as links to its files; on Windows, by default, it does not."""
    from huggingface_hub.file_download import are_symlinks_supported

    return are_symlinks_supported(str(storage.parent))


def fetch_rest(url: str, out: BinaryIO, *, size: int, name: str, update: Callable[[int], None]) -> None:
    """Append to a file what it lacks of a download.

    Args:
        url: of the whole file.
        out: open for appending; its position says how much has arrived before.
        size: of the whole file, in bytes.
        name: of the file, for messages of the library.
        update: called with the number of bytes whenever some have arrived.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    class Bar:
        """What `http_get` takes for a progress bar."""

        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, count: int) -> None:
            update(count)

    http_get(
        url,
        out,
        resume_size=out.tell(),
        headers=build_hf_headers(),
        expected_size=size,
        displayed_filename=name,
        tqdm_class=Bar,
    )
