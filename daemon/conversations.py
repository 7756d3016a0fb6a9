"""Conversations' caches on disk: one file each, replaced as a whole, believed if every byte is as written.

    file = magic[8] version:u32 length:u32 digest[32] header[length] token:i32* state

`header` is JSON, `digest` BLAKE2b of all that follows it. A file that is damaged or of another model is
refused with a reason, and the cache is computed again. Writing happens on a thread of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import struct
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from draftd.models.digest import replace_file

log = logging.getLogger("draftd.engine")

VERSION = 1
MAGIC = b"draftdkv"
PREFIX = struct.Struct("<8sII32s")
FOLDER = "conversations"  # in the state directory
SUFFIX = ".kv"
LONGEST_HEADER = 1 << 16
OWN = str(os.getuid())  # the daemon's own user


class Conversation(NamedTuple):
    """Which one: apps of one name share none if they are of different users."""

    user: str  # who runs the app: a number, over TCP a key (peers.py)
    app: str
    name: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A kept conversation."""

    user: str
    app: str
    name: str
    tokens: int
    size: int  # bytes of the file
    used: float  # seconds since the epoch
    path: Path


class Refused(Exception):
    """A file that is not to be trusted, and why."""


class Conversations:
    """What is kept for one model; `identity` says which and how it runs, and is asked when first needed."""

    def __init__(self, state_dir: Path, limit: int, identity: Callable[[], str]) -> None:
        self.folder = state_dir / FOLDER
        self.limit = limit  # bytes of all files together; beyond it the ones used longest ago go
        self._make_identity = identity
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="conversations")
        self._writing: Future[None] | None = None

    @cached_property
    def identity(self) -> str:
        return self._make_identity()

    def path(self, which: Conversation) -> Path:
        """Its name tells nothing about user, app and conversation."""
        # The own user's are named as all were before users were told apart, so that what it kept is found;
        # what others kept then is not.
        known = which[1:] if which.user == OWN else which
        words = json.dumps([self.identity, *known]).encode()
        return self.folder / (hashlib.blake2b(words, digest_size=16).hexdigest() + SUFFIX)

    def tokens(self, which: Conversation) -> list[int]:
        """What a file claims to hold, unchecked: whether `load` is worth its time. Empty without a file."""
        path = self.path(which)
        try:
            with path.open("rb") as file:
                header = _header(file.read(PREFIX.size + LONGEST_HEADER))[1]
                file.seek(PREFIX.size + header["length"])
                return _ids(file.read(4 * header["tokens"]))
        except FileNotFoundError:
            return []
        except (OSError, Refused):
            return []  # `load` says why, when it is asked

    def load(self, which: Conversation) -> tuple[list[int], memoryview] | None:
        """The tokens and the state that were saved last; None, with a warning if there is a file."""
        self.settle()
        path = self.path(which)
        try:
            with path.open("rb") as file:
                whole = bytearray(os.fstat(file.fileno()).st_size)
                file.readinto(whole)
            data = memoryview(whole)  # parts of it are no copies: a state may be gigabytes
            digest, header = _header(data)
            if hashlib.blake2b(data[PREFIX.size :], digest_size=32).digest() != digest:
                raise Refused("its bytes are not those that were written")
            if header["identity"] != self.identity:
                raise Refused("it is of another model, or of another version of what runs it")
            if (header.get("user", OWN), header["app"], header["conversation"]) != which:
                raise Refused("it is of another conversation")
            begin = PREFIX.size + header["length"]
            end = begin + 4 * header["tokens"]
            os.utime(path)
            return _ids(data[begin:end]), data[end:]
        except FileNotFoundError:
            return None
        except Refused as error:
            log.warning("a conversation's cache is refused and computed again: %s: %s", path, error)
        except OSError as error:
            log.warning(
                "cannot read a conversation's cache, it is computed again: %s: %s", path, error.strerror
            )
        return None

    def save(self, which: Conversation, tokens: list[int], state: bytes | memoryview) -> None:
        """Replace what is kept of a conversation; a disk that can't take it costs a warning."""
        self.settle()  # at most one state waits in memory
        self._writing = self._thread.submit(self._write, self.path(which), which, tokens, state)

    def settle(self) -> None:
        """Wait until what was saved is on disk."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def close(self) -> None:
        self.settle()
        self._thread.shutdown()

    def _write(self, path: Path, which: Conversation, tokens: list[int], state: bytes | memoryview) -> None:
        fields = {
            "identity": self.identity,
            "user": which.user,
            "app": which.app,
            "conversation": which.name,
            "tokens": len(tokens),
        }
        header = json.dumps(fields).encode()
        ids = array("i", tokens).tobytes()
        size = PREFIX.size + len(header) + len(ids) + len(state)
        if size > self.limit:
            log.warning("a conversation of %d bytes is not kept: the limit for all is %d", size, self.limit)
            return
        digest = hashlib.blake2b(digest_size=32)
        for part in (header, ids, state):
            digest.update(part)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            prefix = PREFIX.pack(MAGIC, VERSION, len(header), digest.digest())
            replace_file(path, prefix, header, ids, state)
            self._trim(path)
        except OSError as error:
            log.warning("cannot keep a conversation in %s: %s", self.folder, error.strerror)

    def _trim(self, newest: Path) -> None:
        """Remove what was used longest ago while all together are too large, and what crashes left behind."""
        files = [(path.stat(), path) for path in self.folder.iterdir()]
        total = sum(status.st_size for status, _ in files)
        for status, path in sorted(files, key=lambda item: (item[1].suffix == SUFFIX, item[0].st_mtime_ns)):
            stale = path.suffix != SUFFIX and status.st_mtime < time.time() - 3600
            if stale or (total > self.limit and path != newest and path.suffix == SUFFIX):
                path.unlink(missing_ok=True)
                total -= status.st_size


def kept(state_dir: Path) -> Iterator[Entry]:
    """Every readable conversation of a state directory, whatever its model."""
    for path in sorted((state_dir / FOLDER).glob(f"*{SUFFIX}")):
        with contextlib.suppress(OSError, Refused):
            with path.open("rb") as file:
                header = _header(file.read(PREFIX.size + LONGEST_HEADER))[1]
            status = path.stat()
            # One that names no user is of before they were told apart: its owner may have it.
            user = str(header.get("user", status.st_uid))
            names = user, str(header["app"]), str(header["conversation"])
            yield Entry(*names, header["tokens"], status.st_size, status.st_mtime, path)


def clear(state_dir: Path) -> int:
    """Remove all conversations; how many files that were. Raises OSError."""
    folder = state_dir / FOLDER
    files = list(folder.iterdir()) if folder.is_dir() else []
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)


def _header(data: bytes | memoryview) -> tuple[bytes, dict[str, Any]]:
    """The digest and the header of a file's beginning, `length` added; Refused says what is wrong."""
    if len(data) < PREFIX.size:
        raise Refused("it is cut short")
    magic, version, length, digest = PREFIX.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise Refused(f"it is not a file of draftd's, version {VERSION}")
    try:
        header = json.loads(bytes(data[PREFIX.size : PREFIX.size + length]))
    except ValueError:
        raise Refused("its header is damaged") from None
    kinds = {"identity": str, "app": str, "conversation": str, "tokens": int}
    if not isinstance(header, dict) or any(not isinstance(header.get(name), kinds[name]) for name in kinds):
        raise Refused("its header is damaged")
    if not isinstance(header.get("user", ""), str):
        raise Refused("its header is damaged")
    if not 0 <= header["tokens"] < 2**31:
        raise Refused("its header is damaged")
    return digest, {**header, "length": length}


def _ids(data: bytes | memoryview) -> list[int]:
    if len(data) % 4:
        raise Refused("it is cut short")
    ids = array("i")
    ids.frombytes(data)
    return ids.tolist()
