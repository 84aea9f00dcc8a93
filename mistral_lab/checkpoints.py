"""Where a checkpoint is: a name, a folder or a hub id becomes one folder on this machine, with all of its files."""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from . import hub
from .files import Need, check_weights

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
_SPELLING = {repo.lower(): repo for repo in PINNED}  # the hub reads names in any casing

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Source:
    """One checkpoint: a folder on this machine, or a revision of a repository on the hub."""

    name: str
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None

    def config_folder(self) -> Path:
        """Return the folder with `config.json`; from the hub only that file is fetched."""
        folder = self.path
        if self.repo:
            with self._in_one_sentence():
                folder = hub.config_file(self.repo, self.revision).parent
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"no config.json in {folder}: expected the folder of a Hugging Face checkpoint")
        return folder

    def folder(self, *beside: Need) -> Path:
        """Return the folder with the whole checkpoint, its weight files checked.

        From the hub, what is missing is fetched.

        Args:
            beside: what the caller is going to write once the checkpoint is there. A download that would leave no space
                for it is refused before it begins.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError: the hub refuses, or cannot be reached.
            OSError: the disk is too small, or the checkpoint is truncated, damaged or incomplete.
        """
        folder = self.path
        if self.repo:
            with self._in_one_sentence():
                folder = hub.snapshot(self.repo, self.revision, *beside)
        check_weights(folder)
        return folder

    def origin(self, folder: Path) -> tuple[str, str | None]:
        """Return the name and the commit of what lies in `folder()`.

        They do not depend on how the name was written, nor on where a branch points by now.

        Returns:
            the name as the hub spells it, and the commit. For a folder: its own name, and None.
        """
        if not self.repo:
            return self.path.name, None
        return hub.spelled(self.repo), folder.name

    def _in_one_sentence(self):
        return hub.in_one_sentence(self.repo, self.revision, _nearest(self.repo))


def locate(path_or_id, revision: str | None = None) -> Source:
    """Decide what a name means. Nothing is read, and the network is not used.

    Args:
        path_or_id: a bundled name, an alias of a hub model, a folder, or a hub id "owner/name". A hub id that has an
            alias, written in any casing, stands for the same commit as the alias.
        revision: branch, tag or commit on the hub. None is the pinned commit where there is one, otherwise "main".

    Raises:
        TypeError: something that is no name and no path.
        FileNotFoundError: a path that is no folder.
        ValueError: an unknown name, or a revision of a folder.

    >>> locate("mixtral-8x7b-v0.1").revision[:7]
    'fc7ac94'
    """
    if not isinstance(path_or_id, str | os.PathLike):
        raise TypeError(f"the model is {path_or_id!r}: expected a name, a path or a hub id")
    name = os.fspath(path_or_id)
    path = BUNDLED.get(name, Path(name).expanduser())
    if name in ALIASES or (HUB_ID.fullmatch(name) and isinstance(path_or_id, str) and not path.exists()):
        repo = ALIASES[name][0] if name in ALIASES else _SPELLING.get(name.lower(), name)
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
