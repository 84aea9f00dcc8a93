"""Weight files of the hub: fetched a few at a time, from the byte where an earlier call stopped, and checked."""

import functools
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from ..files import decimal_size, one_process_at_a_time
from .compat import fetch_rest, incomplete_path, lock_of
from .listing import RemoteFile
from .patience import Stopped, patiently

AT_ONCE = 4  # files; a single connection seldom fills a fast line
HASHED_AT_ONCE = 2**22  # bytes


def fetch_weights(repo: str, commit: str, storage: Path, files: list[RemoteFile]) -> None:
    """Download a few files at a time under one progress bar. What has arrived stays, whatever ends the download."""
    from huggingface_hub import errors
    from huggingface_hub.utils import tqdm

    if not files:
        return
    (storage / "blobs").mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    total = sum(file.size for file in files)
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc=f"Downloading {repo}") as bar,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        jobs = [pool.submit(_fetch, repo, commit, storage, file, bar, stop) for file in files]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException as error:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, errors.HTTPError) and not isinstance(error, errors.HfHubHTTPError):
                raise ConnectionError(
                    f"the connection to the hub broke while {repo} was downloaded: load again, and it goes on where it "
                    "stopped"
                ) from None
            raise


def _fetch(repo: str, commit: str, storage: Path, file: RemoteFile, bar, stop: threading.Event) -> None:
    """Bring one file into the cache, from the byte where an earlier call stopped; it gets its name once it is right."""
    from huggingface_hub import errors, hf_hub_url

    def arrived(count: int) -> None:
        if stop.is_set():
            raise Stopped
        bar.update(count)

    blob = storage / "blobs" / file.sha256
    part = incomplete_path(blob)
    waiting = f"another process is downloading {file.name} of {repo}: waiting for it"
    with one_process_at_a_time(lock_of(storage, file.sha256), waiting, stop.is_set):
        if blob.is_file() and blob.stat().st_size == file.size:
            bar.update(file.size)
            return
        if part.is_file() and part.stat().st_size > file.size:
            part.unlink()
        try:
            with part.open("ab") as out:
                bar.update(out.tell())
                url = hf_hub_url(repo, file.name, revision=commit)
                fetch = functools.partial(fetch_rest, url, out, size=file.size, name=file.name, update=arrived)
                patiently(fetch, out.tell, stop)
        except errors.OfflineModeIsEnabled:  # an OSError too, and no fault of the file
            raise
        except OSError as error:
            if error.errno or (isinstance(error, errors.HfHubHTTPError) and error.response.status_code != 416):
                raise
            part.unlink()
            raise _wrong(repo, file, f"it does not have the {file.size:,} bytes that the hub lists") from None
        bar.set_postfix_str(f"checking {file.name}")
        if _sha256(part, stop) != file.sha256:
            part.unlink()
            raise _wrong(repo, file, "its checksum is not the one that the hub lists")
        part.replace(blob)
        bar.set_postfix_str("")


def _wrong(repo: str, file: RemoteFile, reason: str) -> OSError:
    return OSError(
        f"{file.name} of {repo} arrived damaged and was removed ({reason}): load again to download it once more "
        f"({decimal_size(file.size)}); the other files stay"
    )


def _sha256(path: Path, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(HASHED_AT_ONCE):
            if stop.is_set():
                raise Stopped
            digest.update(piece)
    return digest.hexdigest()
