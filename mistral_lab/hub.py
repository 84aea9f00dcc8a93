"""The hub: its refusals in one sentence each, and downloads that go on where they stopped.

huggingface_hub talks, lists and lays out its cache. But after an interruption it begins a weight file at its first byte
again, and of what arrives it checks the size alone. So weight files are fetched into its cache here.
"""

import functools
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from .files import (
    Need,
    check_disk,
    decimal_size,
    full_disk_in_a_sentence,
    lab_cache,
    one_process_at_a_time,
    write_whole,
)

# Mistral's own format (consolidated*) lies beside the same weights and would double the download.
WANTED = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model", "LICENSE*", "NOTICE*"]
UNWANTED = ["consolidated*", "*/*"]
COMMIT = re.compile("[0-9a-f]{40}")
BUSY = (408, 429, 500, 502, 503, 504)
AT_ONCE = 4  # files; a single connection seldom fills a fast line
WAITS_S = (1, 2, 4, 8)  # before a request that failed for the hub's reasons is made again
LONGEST_WAIT_S = 300  # in which the hub's count of requests begins anew
WORTH_A_WORD_S = 10
HASHED_AT_ONCE = 2**22


class RemoteFile(NamedTuple):
    """One file of a repository; `sha256` is None for a small one, which lies in git itself."""

    name: str
    size: int
    sha256: str | None


def config_file(repo: str, revision: str) -> Path:
    """Fetch `config.json` alone, or find it in the cache."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    file = {"repo_id": spelled(repo), "filename": "config.json", "revision": revision}
    if not isinstance(try_to_load_from_cache(**file), str):
        # Left to itself the download would try for 23 seconds to reach a hub where there is no network.
        found = _patiently(lambda: get_hf_file_metadata(hf_hub_url(**file)))
        # The hub answers to a name in any casing, and sends on to the right one.
        spelling = re.search(rf"/({re.escape(file['repo_id'])})/", found.location, re.IGNORECASE)
        file["repo_id"] = spelling[1] if spelling else file["repo_id"]
    return Path(hf_hub_download(**file))


def spelled(repo: str) -> str:
    """The name as the cache has it, where it has it in another casing: one download serves all."""
    from huggingface_hub import constants

    there = {path.name for path in Path(constants.HF_HUB_CACHE).glob("models--*")}
    mine = f"models--{repo.replace('/', '--')}"
    other = next((name for name in sorted(there) if name.lower() == mine.lower()), mine)
    return repo if mine in there else other.removeprefix("models--").replace("--", "/")


def snapshot(repo: str, revision: str, *beside: Need) -> Path:
    """Download what is missing of a checkpoint, or find all of it in the cache.

    Args:
        repo: "owner/name".
        revision: branch, tag or commit. For a commit whose files are all there nothing goes to the network.
        beside: what the caller is going to write once it has the files.

    Raises:
        OSError: the disk has no room for the download and what goes beside it, said before anything is downloaded, or
            it filled up; a file whose size or checksum is wrong, which is removed.
    """
    from huggingface_hub import errors, snapshot_download

    repo = spelled(repo)
    try:
        repo, commit, files = _listing(repo, revision)
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:
        # The branch cannot be followed; what was downloaded of it before still serves.
        try:
            wanted = {"allow_patterns": WANTED, "ignore_patterns": UNWANTED}  # the library knows of the other files
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, **wanted))
        except errors.LocalEntryNotFoundError:
            raise error from None
        files = _kept_listing(repo, folder.name)  # None where another program has downloaded it
        if _missing(folder, files) if files else not any(folder.glob("*.safetensors")):
            raise
        return folder
    storage = _storage(repo)
    folder = storage / "snapshots" / commit
    if COMMIT.fullmatch(revision) and not _missing(folder, files):
        return folder
    purpose = f"to download {repo}"
    if left := _left(storage, folder, files):
        check_disk(Need(storage, left, purpose), *beside)
    with full_disk_in_a_sentence(lambda: Need(storage, _left(storage, folder, files), purpose)):
        missing = [file for file in _missing(folder, files) if _fetched_here(file, storage)]
        _fetch_weights(repo, commit, storage, missing)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED))


def _fetched_here(file: RemoteFile, storage: Path) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.file_download import are_symlinks_supported

    # The hub sends larger files in pieces that the library alone can put together. And without links (on Windows, by
    # default) what is fetched here would be copied where the library moves its own.
    fits = file.sha256 is not None and file.size <= constants.MAX_HTTP_DOWNLOAD_SIZE
    return fits and are_symlinks_supported(str(storage.parent))


def _storage(repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def _listing(repo: str, revision: str) -> tuple[str, str, list[RemoteFile]]:
    """The name in the hub's spelling, the commit and its files; a commit never changes, so its list is kept."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import filter_repo_objects

    if COMMIT.fullmatch(revision) and (files := _kept_listing(repo, revision)):
        return repo, revision, files
    ask = functools.partial(HfApi().model_info, timeout=constants.HF_HUB_ETAG_TIMEOUT, files_metadata=True)
    info = _patiently(lambda: ask(repo, revision=revision))
    files = [
        RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None)
        for file in filter_repo_objects(
            info.siblings or [], allow_patterns=WANTED, ignore_patterns=UNWANTED, key=lambda file: file.rfilename
        )
    ]
    path = _listing_path(info.id, info.sha)
    with suppress(OSError):  # without it the next call asks again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(files))
    return info.id, info.sha, files


def _kept_listing(repo: str, commit: str) -> list[RemoteFile] | None:
    try:
        return [RemoteFile(*row) for row in json.loads(_listing_path(repo, commit).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return None


def _listing_path(repo: str, commit: str) -> Path:
    return lab_cache() / "listings" / f"{repo.replace('/', '--')}--{commit}.json"


def _missing(folder: Path, files: list[RemoteFile]) -> list[RemoteFile]:
    """Those that the snapshot has not, or not whole."""
    paths = {file: folder / file.name for file in files}
    return [file for file, path in paths.items() if not path.is_file() or path.stat().st_size != file.size]


def _left(storage: Path, folder: Path, files: list[RemoteFile]) -> int:
    """Bytes still to be downloaded."""
    left = 0
    for file in _missing(folder, files):
        blob = storage / "blobs" / str(file.sha256)
        there = next((path.stat().st_size for path in (blob, _begun(blob)) if path.is_file()), 0)
        left += max(file.size - there, 0)
    return left


def _begun(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")  # as the library calls what it has not finished


class _Stopped(Exception):
    """Another file failed, or the reader interrupted."""


def _fetch_weights(repo: str, commit: str, storage: Path, files: list[RemoteFile]) -> None:
    """Download some files at a time under one progress bar; whatever ends it, what has arrived stays."""
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
    """Bring one file into the cache, from the byte where an earlier call stopped; only a right one gets its name."""
    from huggingface_hub import errors, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    class Share:
        """What `http_get` takes for the file's own bar: it moves the bar of all files."""

        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, count: int) -> None:
            if stop.is_set():
                raise _Stopped
            bar.update(count)

    blob = storage / "blobs" / file.sha256
    begun = _begun(blob)
    lock = storage.parent / ".locks" / storage.name / f"{file.sha256}.lock"  # the library's, so that both respect it
    waiting = f"another process is downloading {file.name} of {repo}: waiting for it"
    with one_process_at_a_time(lock, waiting, stop.is_set):
        if blob.is_file() and blob.stat().st_size == file.size:
            bar.update(file.size)
            return
        if begun.is_file() and begun.stat().st_size > file.size:
            begun.unlink()
        try:
            with begun.open("ab") as out:
                bar.update(out.tell())
                get = functools.partial(
                    http_get,
                    hf_hub_url(repo, file.name, revision=commit),
                    out,
                    headers=build_hf_headers(),
                    expected_size=file.size,
                    displayed_filename=file.name,
                    tqdm_class=Share,
                )
                _patiently(lambda: get(resume_size=out.tell()), out.tell, stop)
        except errors.OfflineModeIsEnabled:  # an OSError too, and no fault of the file
            raise
        except OSError as error:
            if error.errno or (isinstance(error, errors.HfHubHTTPError) and error.response.status_code != 416):
                raise
            begun.unlink()
            raise _wrong(repo, file, f"it is not of the {file.size:,} bytes that the hub lists") from None
        bar.set_postfix_str(f"checking {file.name}")
        if _sha256(begun, stop) != file.sha256:
            begun.unlink()
            raise _wrong(repo, file, "its checksum is not the one that the hub lists")
        begun.replace(blob)
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
                raise _Stopped
            digest.update(piece)
    return digest.hexdigest()


def _patiently(call: Callable, place: Callable[[], int] | None = None, stop: threading.Event | None = None):
    """Make a request again a few times where the hub is too busy to answer it.

    Args:
        call: makes the request.
        place: how far a download has come. With it a broken connection is tried again too, and progress gives all
            tries back; 429 is then left to the library, which has waited already.
        stop: ends a wait, where another file has failed or the reader has interrupted.
    """
    from huggingface_hub import errors

    tries = 0
    while True:
        before = place() if place else 0
        try:
            return call()
        except errors.HTTPError as error:
            response = getattr(error, "response", None)
            again = place is not None if response is None else response.status_code in BUSY
            if place and place() > before:
                tries = 0
            if not again or tries == len(WAITS_S) or (place and response is not None and response.status_code == 429):
                raise
            wait = WAITS_S[tries]
            if response is not None and (asked := response.headers.get("Retry-After", "")).isdigit():
                wait = min(int(asked), LONGEST_WAIT_S)
        tries += 1
        if wait > WORTH_A_WORD_S:
            print(f"the hub is too busy to answer: asking again in {wait} s", file=sys.stderr, flush=True)
        for _ in range(wait):
            if stop is not None and stop.is_set():
                raise _Stopped
            time.sleep(1)


@contextmanager
def in_one_sentence(repo: str, revision: str, near: str) -> Iterator[None]:
    """Turn the client's errors into one sentence each.

    Their own text can hold request ids and several lines, so only the kind of the error is passed on.

    Args:
        near: which known names are like this one, as an insertion; may be empty.
    """
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        if error.response.status_code == 403:
            raise PermissionError(
                f"{repo} is gated and your account has no access: accept its terms at {page}, signed in as the owner "
                "of your token, give the token read access, and load again"
            ) from None
        raise PermissionError(
            f"{repo} is gated: accept its terms at {page}, make a token at https://huggingface.co/settings/tokens, run "
            "`hf auth login` (or set HF_TOKEN) and load again"
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"no model {repo} on the hub{near}, or a private one, which needs `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{repo} has no revision {revision!r}: see {page}/commits/main") from None
    except errors.LocalEntryNotFoundError as error:  # the client looked into its cache after an error
        cause = error.__cause__
        raise (_refused(repo, cause) if isinstance(cause, errors.HfHubHTTPError) else _unreachable(repo)) from None
    except errors.EntryNotFoundError:
        raise FileNotFoundError(f"no config.json in {repo} on the hub: no transformers checkpoint") from None
    except errors.HfHubHTTPError as error:
        raise _refused(repo, error) from None
    except (errors.OfflineModeIsEnabled, errors.HTTPError):  # the latter where no answer came
        raise _unreachable(repo) from None


def _refused(repo: str, error) -> OSError:
    status = error.response.status_code
    if status == 401:
        return PermissionError(
            "the hub refused the access token: make a new one at https://huggingface.co/settings/tokens and run "
            "`hf auth login`"
        )
    if status == 403:
        return PermissionError(
            f"your access token may not read {repo}: accept its terms at https://huggingface.co/{repo} and give the "
            "token read access"
        )
    if status == 429:
        return ConnectionError(
            f"the hub answered 429 (too many requests) for {repo}: wait five minutes and load again, which goes on "
            "where this stopped; `hf auth login` raises the limit"
        )
    return ConnectionError(
        f"the hub answered {status} for {repo}: try again later; what has arrived stays and is used again"
    )


def _unreachable(repo: str) -> ConnectionError:
    return ConnectionError(
        f"{repo} is not on this machine and the hub cannot be reached: connect to the network (and unset "
        "HF_HUB_OFFLINE), or use load('tiny-mistral'), which needs none"
    )
