"""Where a checkpoint is and whether it is whole: a name, a folder or a hub id becomes one folder on this machine."""

import difflib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BUNDLED = {name: Path(__file__).parent / "bundled" / name for name in ("tiny-mistral", "tiny-mixtral")}

# Alias: hub id and commit. A branch can change under a reader, a commit cannot. Each is a commit that public code pins
# too; huggingface.co/<id>/tree/<commit> shows it.
ALIASES = {
    "mistral-7b-v0.1": ("mistralai/Mistral-7B-v0.1", "27d67f1b5f57dc0953326b2601d68371d40ea8da"),
    "mistral-7b-instruct-v0.1": ("mistralai/Mistral-7B-Instruct-v0.1", "ec5deb64f2c6e6fa90c1abf74a91d5c93a9669ca"),
    "mistral-7b-v0.3": ("mistralai/Mistral-7B-v0.3", "caa1feb0e54d415e2df31207e5f4e273e33509b1"),
    "mixtral-8x7b-v0.1": ("mistralai/Mixtral-8x7B-v0.1", "fc7ac94680e38d7348cfa806e51218e6273104b0"),
    "mixtral-8x7b-instruct-v0.1": ("mistralai/Mixtral-8x7B-Instruct-v0.1", "eba92302a2861cdc0098cc54bc9f17cb2c47eb61"),
}
PINNED = dict(ALIASES.values())

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Mistral's own format (consolidated*) lies beside the same weights and would double the download.
WANTED = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model", "LICENSE*", "NOTICE*"]
UNWANTED = ["consolidated*", "*/*"]


@dataclass(frozen=True)
class Source:
    """One checkpoint: a folder on this machine, or a revision of a repository on the hub."""

    name: str
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None

    def config_folder(self) -> Path:
        """The folder with `config.json`; from the hub only that file is fetched."""
        folder = self.path
        if self.repo:
            from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

            file = {"repo_id": self.repo, "filename": "config.json", "revision": self.revision}
            with self._hub_errors():
                if not isinstance(try_to_load_from_cache(**file), str):
                    get_hf_file_metadata(hf_hub_url(**file))  # asks once, where the download retries for 23 seconds
                folder = Path(hf_hub_download(**file)).parent
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"no config.json in {folder}: expected the folder of a Hugging Face checkpoint")
        return folder

    def folder(self) -> Path:
        """The folder with the whole checkpoint, its weight files checked."""
        folder = self.path
        if self.repo:
            from huggingface_hub import snapshot_download

            with self._hub_errors():
                folder = Path(
                    snapshot_download(
                        self.repo, revision=self.revision, allow_patterns=WANTED, ignore_patterns=UNWANTED
                    )
                )
        _check_weights(folder)
        return folder

    @contextmanager
    def _hub_errors(self) -> Iterator[None]:
        from huggingface_hub import errors

        # The hub's own text can hold request ids and several lines: only the kind of the error is passed on.
        try:
            yield
        except errors.GatedRepoError:
            raise PermissionError(
                f"{self.repo} is gated: accept its terms at https://huggingface.co/{self.repo}, make a token at "
                "https://huggingface.co/settings/tokens, run `hf auth login` (or set HF_TOKEN) and load again"
            ) from None
        except errors.RepositoryNotFoundError:
            raise FileNotFoundError(
                f"no model {self.repo} on the hub{_nearest(self.repo)}, or a private one, which needs `hf auth login`"
            ) from None
        except errors.RevisionNotFoundError:
            raise FileNotFoundError(
                f"{self.repo} has no revision {self.revision!r}: see https://huggingface.co/{self.repo}/commits/main"
            ) from None
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
            raise self._unreachable() from None
        except errors.EntryNotFoundError:
            raise FileNotFoundError(f"no config.json in {self.repo} on the hub: no transformers checkpoint") from None
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status == 401:
                raise PermissionError(
                    "the hub refused the access token: make a new one at https://huggingface.co/settings/tokens and "
                    "run `hf auth login`"
                ) from None
            if status == 403:
                raise PermissionError(
                    f"your access token may not read {self.repo}: accept its terms at "
                    f"https://huggingface.co/{self.repo} and give the token read access"
                ) from None
            raise ConnectionError(f"the hub answered {status} for {self.repo}: try again later") from None
        except errors.HTTPError:  # what the HTTP library raises where no answer came
            raise self._unreachable() from None

    def _unreachable(self) -> ConnectionError:
        return ConnectionError(
            f"{self.repo} is not on this machine and the hub cannot be reached: connect to the network (and unset "
            "HF_HUB_OFFLINE), or use load('tiny-mistral'), which needs none"
        )


def locate(path_or_id, revision: str | None = None) -> Source:
    """Decide what a name means; nothing is read and the network is not used.

    Args:
        path_or_id: a bundled name, an alias of a hub model, a folder, or a hub id "owner/name". A hub id with an alias
            stands for the same commit.
        revision: branch, tag or commit on the hub. None is the pinned commit where there is one, otherwise "main".

    Raises:
        FileNotFoundError: a path that is no folder.
        ValueError: a name that nothing has, or a revision of a folder.

    >>> locate("mixtral-8x7b-v0.1").revision[:7]
    'fc7ac94'
    """
    if not isinstance(path_or_id, str | os.PathLike):
        raise TypeError(f"the model is {path_or_id!r}: expected a name, a path or a hub id")
    name = os.fspath(path_or_id)
    path = BUNDLED.get(name, Path(name).expanduser())
    if name in ALIASES or (HUB_ID.fullmatch(name) and isinstance(path_or_id, str) and not path.exists()):
        repo = ALIASES[name][0] if name in ALIASES else name
        return Source(name, repo=repo, revision=revision or PINNED.get(repo, "main"))
    if name not in BUNDLED and not (name and path.is_dir()):
        if path.is_file():
            raise FileNotFoundError(f"{name} is a file: expected the folder that holds config.json")
        if isinstance(path_or_id, os.PathLike) or os.sep in name or "/" in name or name.startswith((".", "~")):
            raise FileNotFoundError(f"no folder {name}: expected the folder of a Hugging Face checkpoint")
        raise ValueError(
            f"unknown model {name!r}{_nearest(name)}: known are {', '.join([*BUNDLED, *ALIASES])}, any folder with a "
            "checkpoint, and any hub id 'owner/name'"
        )
    if revision is not None:
        raise ValueError(f"revision is {revision!r}, but {name} is a folder: only models on the hub have revisions")
    return Source(name, path=path)


def _nearest(name: str) -> str:
    known = [*BUNDLED, *ALIASES, *PINNED]
    close = difflib.get_close_matches(name.lower(), [item.lower() for item in known], n=2, cutoff=0.6)
    names = [item for item in known if item.lower() in close]
    return f" (did you mean {' or '.join(names)}?)" if names else ""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: the one, or those that the index names.

    Raises:
        FileNotFoundError: neither of them is there.
        OSError: a damaged index.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        pickles = sorted(file.name for end in ("bin", "pt", "pth") for file in folder.glob(f"*.{end}"))
        found = f" (only {pickles[0]})" if pickles else ""
        raise FileNotFoundError(
            f"no model.safetensors in {folder}{found}: weights are read from safetensors alone, because opening a "
            "pickle file (.bin, .pt, .pth) can run any code; load the safetensors copy of this model"
        )
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OSError(f"{index} is damaged: copy or download it again") from None


def _check_weights(folder: Path) -> None:
    """Open the header of every safetensors file; it states the file's size, so a cut file shows."""
    from safetensors import SafetensorError, safe_open

    for file in weight_files(folder):
        try:
            with safe_open(file, framework="np"):
                pass
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder} lacks {file.name}, named by its index: copy or download it again"
            ) from None
        except SafetensorError as error:
            raise OSError(f"{file} is truncated or damaged ({error}): copy or download it again") from None
