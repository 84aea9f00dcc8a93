"""A checkpoint of the hub as a folder of the library's cache: what is missing is downloaded."""

import re
from pathlib import Path

from ..files import Need, check_disk, full_disk_explained, still_needed
from .compat import has_symlinks, storage_of
from .downloading import fetch_weights
from .listing import (
    COMMIT,
    UNWANTED,
    WANTED,
    RemoteFile,
    bytes_left,
    kept_listing,
    listing,
    missing_files,
    spelled,
)
from .patience import patiently


def config_file(repo: str, revision: str) -> Path:
    """Fetch `config.json` alone, or find it in the cache."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    file = {"repo_id": spelled(repo), "filename": "config.json", "revision": revision}
    if not isinstance(try_to_load_from_cache(**file), str):
        # Left to itself, the download would try for 23 seconds to reach a hub where there is no network.
        found = patiently(lambda: get_hf_file_metadata(hf_hub_url(**file)))
        # The hub answers to a name in any casing, and sends on to the right one.
        spelling = re.search(rf"/({re.escape(file['repo_id'])})/", found.location, re.IGNORECASE)
        file["repo_id"] = spelling[1] if spelling else file["repo_id"]
    return Path(hf_hub_download(**file))


def snapshot(repo: str, revision: str, *beside: Need) -> Path:
    """Download what is missing of a checkpoint, or find all of it in the cache.

    Args:
        repo: "owner/name".
        revision: branch, tag or commit. The network is not used for a commit whose files are all there.
        beside: what the caller is going to write once it has the files.

    Raises:
        OSError: the disk is too small for the download and what goes beside it, which is said before anything is
            downloaded; the disk filled up; or a file, which is then removed, has a wrong size or checksum.
    """
    from huggingface_hub import errors, snapshot_download

    repo = spelled(repo)
    try:
        repo, commit, files = listing(repo, revision)
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:
        # The branch cannot be followed; what was downloaded of it before still serves.
        try:
            wanted = {"allow_patterns": WANTED, "ignore_patterns": UNWANTED}  # the library knows of the other files
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, **wanted))
        except errors.LocalEntryNotFoundError:
            raise error from None
        files = kept_listing(repo, folder.name)  # None where another program has downloaded it
        if missing_files(folder, files) if files else not any(folder.glob("*.safetensors")):
            raise
        return folder
    storage = storage_of(repo)
    folder = storage / "snapshots" / commit
    if COMMIT.fullmatch(revision) and not missing_files(folder, files):
        return folder
    purpose = f"to download {repo}"
    if left := bytes_left(storage, folder, files):
        check_disk(Need(storage, left, purpose), *beside)
    with full_disk_explained(lambda: still_needed(Need(storage, bytes_left(storage, folder, files), purpose))):
        missing = [file for file in missing_files(folder, files) if _fetched_here(file, storage)]
        fetch_weights(repo, commit, storage, missing)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED))


def _fetched_here(file: RemoteFile, storage: Path) -> bool:
    """Whether `fetch_weights` fetches a file, and not the library."""
    from huggingface_hub import constants

    # The hub sends larger files in pieces that only the library can put together. And without links (the default on
    # Windows) the library moves its own downloads into place, where a file fetched here would be copied.
    fits = file.sha256 is not None and file.size <= constants.MAX_HTTP_DOWNLOAD_SIZE
    return fits and has_symlinks(storage)
