"""``hf:org/name[@revision]``: the ``config.json`` of a repository on the Hugging Face Hub. Never its weights, never its code.

The fetching is huggingface_hub's, with its cache, its token and its environment variables (``HF_HUB_OFFLINE``, ``HF_HOME``,
``HF_ENDPOINT``). A config already in the cache is read from there and nothing is asked: what a branch pointed to when it was
fetched is what it means, until the cache is emptied.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from memcalc.errors import InputError, MissingPackageError

_REPO = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*/)?[A-Za-z0-9._-]*")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_UNREACHED = ("Connect", "Timeout", "OfflineMode")
"""What the names of errors say when there is no network: requests', httpx's and huggingface_hub's own, by version."""
_LOCAL = "or give the path of a config.json, or py:package.module:factory"


def fetch_config(reference: str, path: str = "model") -> Path:
    """The local file of a repository's ``config.json``.

    Args:
        reference: ``org/name`` or ``org/name@revision``, a revision being a branch, a tag or a commit.
        path: what errors call the value.

    Raises:
        MissingPackageError: huggingface_hub is not installed.
        InputError: not a repository's name, no such repository, revision or file, no access, or no network and no cache.
    """
    repo, _, revision = reference.partition("@")
    named = _REPO.fullmatch(repo) and not (".." in repo or "--" in repo)
    if not named or ("@" in reference and not _REVISION.fullmatch(revision)) or ".." in revision:
        raise InputError(
            path, f"hf:{reference}", "is not the name of a repository", "write it as hf:org/name or hf:org/name@main"
        )
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    except ImportError:
        raise MissingPackageError.extra(path, "huggingface_hub", "hub") from None
    asked: dict[str, Any] = {"repo_id": repo, "filename": "config.json", "revision": revision or None}
    try:
        try:
            return Path(hf_hub_download(**asked, local_files_only=True))
        except FileNotFoundError:  # LocalEntryNotFoundError: not in the cache
            # one question without retries, so that a Hub that cannot be reached is known at once and said in one line
            get_hf_file_metadata(hf_hub_url(**asked))
            return Path(hf_hub_download(**asked))
    except Exception as error:  # requests, httpx or OSError, by version; whichever it is, a person reads one line
        rule, way_out = _reason(error)
        raise InputError(path, f"hf:{reference}", rule, way_out) from None


def _reason(error: Exception) -> tuple[str, str]:
    """(rule, way out) of a failed download; the narrower errors first, since they derive from the wider ones."""
    # the one place that has had them all since 0.24, though not under a public listing
    utils: Any = import_module("huggingface_hub.utils")
    if isinstance(error, utils.GatedRepoError):
        return "is gated and this token has no access", f"ask for access and log in with `hf auth login`, {_LOCAL}"
    if isinstance(error, utils.RepositoryNotFoundError):
        return "is not a repository of the Hub, or is private", f"check its name, {_LOCAL}"
    if isinstance(error, utils.RevisionNotFoundError):
        return "names a revision the repository does not have", "check what follows the @, or leave it out"
    if isinstance(error, utils.LocalEntryNotFoundError) or any(word in type(error).__name__ for word in _UNREACHED):
        from huggingface_hub import constants

        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        return f"is not in the cache, and {why}", f"go online once, {_LOCAL}"
    if isinstance(error, utils.EntryNotFoundError):
        return "has no config.json", _LOCAL.removeprefix("or ")
    if isinstance(error, utils.HFValidationError):
        return "is not the name of a repository", "write it as hf:org/name"
    lines = str(error).strip().splitlines() or [""]
    return f"could not be fetched ({type(error).__name__}: {lines[0]})", f"try again, {_LOCAL}"
