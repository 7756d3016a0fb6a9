"""SHA-256 of files, remembered so that a start need not hash gigabytes again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

MANIFEST = "draftd-manifest.json"


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal, read from the disk."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path, cache_dir: Path, *, fresh: bool = False) -> str:
    """The file's SHA-256; from its stamp if size and time are those it was hashed at, unless `fresh`."""
    stat = path.stat()
    where = str(path.resolve())
    key = {"path": where, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    stamp = cache_dir / "stamps" / f"{path.name}-{hashlib.sha256(where.encode()).hexdigest()[:12]}.json"
    if not fresh and (known := _read(stamp)) is not None and all(known.get(k) == v for k, v in key.items()):
        return str(known["sha256"])
    found = sha256(path)
    with contextlib.suppress(OSError):  # a cache that can't be written to costs time, nothing else
        stamp.parent.mkdir(parents=True, exist_ok=True)
        replace_text(stamp, json.dumps(key | {"sha256": found}))
    return found


def write_manifest(directory: Path) -> None:
    """Note every file of a finished directory with its size and SHA-256."""
    files = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_file() and not name.startswith(".") and name != MANIFEST:
            files[name] = [path.stat().st_size, sha256(path)]
    replace_text(directory / MANIFEST, json.dumps(files, indent=1))


def damaged(directory: Path, *, fresh: bool = False) -> list[str]:
    """Names of files that are missing or not as the manifest says; `fresh` hashes them, else sizes count."""
    files = _read(directory / MANIFEST)
    if files is None:
        return [MANIFEST]
    bad = []
    for name, (size, expected) in files.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != size or (fresh and sha256(path) != expected):
            bad.append(name)
    return bad


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new, never a part."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        new.write_text(text, "utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def replace_file(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file that only its owner may read, and have it on the disk before it takes the old one's place.

    What a crash leaves behind ends in `.new`.
    """
    handle, new = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".new")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):  # none yet, or half of one: it is made again
        return None
    return found if isinstance(found, dict) else None
