"""What huggingface_hub knows: addresses, credentials, what a repository holds; imported only when needed."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from draftd.models.catalog import HubSource
from draftd.models.digest import sha256, write_manifest
from draftd.models.download import (
    CONNECT_SECONDS,
    Advance,
    SourceFailed,
    WrongContent,
    after,
    download,
    length,
    writing,
)

# What a transformers target needs of a repository's top folder; other formats of the same weights stay there.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


def hub_request(source: HubSource, file: str) -> tuple[str, dict[str, str]]:
    """The address of a repository's file and the headers that carry the user's token, if there is one."""
    hub = _library()
    try:
        url = hub.hf_hub_url(source.repo, file, revision=source.revision, endpoint=_endpoint())
    except ValueError as error:  # its rules for names are stricter than the catalog's
        reason = str(error).rstrip(".")
        raise SourceFailed(f"{source.repo} can't be a repository's name: {reason}") from None
    token = None if hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else hub.get_token()
    return url, {"Authorization": f"Bearer {token}"} if token else {}


def told_sha256(headers: Mapping[str, str]) -> str | None:
    """The file's SHA-256 as the hub's reply tells it, which it does for large files."""
    tag = headers.get("X-Linked-Etag", "").strip('"')
    return tag if len(tag) == 64 else None


def fetch_repository(source: HubSource, staging: Path, advance: Advance) -> None:
    """Bring a repository's transformers model into `staging`, each file resumed and checked."""
    hub = _library()
    try:
        info = hub.HfApi(endpoint=_endpoint()).model_info(
            source.repo, revision=source.revision, files_metadata=True, timeout=CONNECT_SECONDS
        )
    except Exception as error:  # the library's own and its HTTP library's, which differ by version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceFailed(f"{source.repo} can't be looked up: {reason}") from None
    files = [file for file in info.siblings if _wanted(file.rfilename)]
    if not any(file.rfilename.endswith(".safetensors") for file in files):
        raise SourceFailed(
            f"{source.repo} has no .safetensors files; for a GGUF name it: owner/repo/file.gguf"
        )
    pinned = source.model_copy(update={"revision": info.sha})  # one commit, even if the branch moves on
    total = sum(file.size for file in files)
    here = sum(max(length(staging / file.rfilename), length(staging / _part(file))) for file in files)
    with writing(staging, total - here):
        staging.mkdir(parents=True, exist_ok=True)
        names = {name for file in files for name in (file.rfilename, _part(file))}
        for left in staging.iterdir():  # by an earlier try, of a commit that had it
            if left.is_file() and left.name not in names:
                left.unlink()
    done = 0
    for file in files:
        path = staging / file.rfilename
        if not _have(path, file):
            part = staging / _part(file)
            if file.lfs is None:
                part.unlink(missing_ok=True)
            url, headers = hub_request(pinned, file.rfilename)
            download(url, part, size=file.size, headers=headers, advance=after(done, total, advance))
            if file.lfs is not None and sha256(part) != file.lfs.sha256:
                part.unlink()
                raise WrongContent(f"{file.rfilename} does not have the hash that the hub gives")
            part.replace(path)
        done += file.size
    with writing(staging, None):
        write_manifest(staging)


def _part(file: Any) -> str:
    """What a file is called until it is whole; weights by their hash, too, as no other goes on from there."""
    version = f".{file.lfs.sha256[:12]}" if file.lfs is not None else ""
    return f"{file.rfilename}{version}.part"


def _have(path: Path, file: Any) -> bool:
    """Whether an earlier try brought this very file, since when the branch may have moved on.

    Weights have a hash; what has none is small, and comes again.
    """
    return file.lfs is not None and length(path) == file.size and sha256(path) == file.lfs.sha256


def _wanted(name: str) -> bool:
    if name.startswith("consolidated"):  # the same weights again, as Mistral's own code reads them
        return False
    return "/" not in name and any(fnmatch.fnmatch(name, pattern) for pattern in _WANTED)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")  # the library reads it only once, at its import


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
    except ImportError:
        mend = "`pip install 'draftd[engine]'` brings it"
        raise SourceFailed(f"huggingface_hub is not installed ({mend})") from None
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise SourceFailed("HF_HUB_OFFLINE is set")
    return huggingface_hub
