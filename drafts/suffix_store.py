"""Earlier requests' tokens on disk: one file a scope and tokenizer, appended to as requests end.

    file    = magic[12] version:u32 identity[32] record*     (little-endian; identity: of tokenizer and scope)
    record  = crc:u32 count:u32 length:u32 digest[16] token:u32 * count

`crc` covers the rest of the record, so a crash costs the records from the torn one on and nothing else. What
can't be read or written is named in a warning and raises nothing: drafting goes on from memory.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)

VERSION = 1
MAGIC = b"draftdsuffix"
HEADER = struct.Struct("<12sI32s")
RECORD = struct.Struct("<III16s")
FOLDER = "suffix"  # in the state directory
LOCK = ".lock"
LOCK_SECONDS = 1.0  # another daemon holds the lock for milliseconds


@dataclass(frozen=True, slots=True)
class Piece:
    """What one request added: tokens that follow each other, and which whole sequence they complete."""

    tokens: array[int]
    length: int  # tokens of the whole sequence
    digest: bytes  # of the whole sequence, 16 bytes


class SuffixStore:
    """The files of one tokenizer; `fingerprint` names it, since ids mean nothing under another vocabulary."""

    def __init__(
        self, state_dir: Path, fingerprint: str, *, scope_bytes: int = 8 << 20, total_bytes: int = 64 << 20
    ) -> None:
        self.folder = state_dir / FOLDER
        self.scope_bytes = scope_bytes  # a longer file keeps its newest half
        self.total_bytes = total_bytes  # beyond it the files used longest ago go
        self._tokenizer = hashlib.blake2b(fingerprint.encode(), digest_size=32).digest()
        self._sound: dict[Path, tuple[int, int]] = {}  # inode and size when all of a file was sound
        self._failing = False

    def path(self, scope: str) -> Path:
        """The scope's file; its name tells nothing about the scope."""
        return self.folder / self._identity(scope)[:16].hex()

    def load(self, scope: str) -> list[Piece]:
        """The scope's pieces, oldest first."""
        path = self.path(scope)
        try:
            with self._locked():
                return self._read(path, scope)[0] if path.exists() else []
        except OSError as error:
            self._warn("read", error)
            return []

    def append(self, scope: str, piece: Piece) -> None:
        """Add a piece to its scope's file."""
        path = self.path(scope)
        try:
            with self._locked():
                size = self._append(path, scope, encode(piece))
                if size > self.scope_bytes:
                    self._shorten(path, scope)
                self._trim(path)
            self._failing = False
        except OSError as error:
            self._warn("write", error)

    def _identity(self, scope: str) -> bytes:
        name = scope.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(name, key=self._tokenizer, digest_size=32).digest()

    def _header(self, scope: str) -> bytes:
        return HEADER.pack(MAGIC, VERSION, self._identity(scope))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        with FileLock(self.folder / LOCK, timeout=LOCK_SECONDS, mode=0o600):
            yield

    def _warn(self, action: str, error: OSError) -> None:
        """One warning until writing works again; a lock that is not had in time is an OSError, too."""
        if not self._failing:
            log.warning("cannot %s the suffix cache in %s, going on: %s", action, self.folder, error)
        self._failing = True

    def _read(self, path: Path, scope: str) -> tuple[list[Piece], int]:
        """A file's pieces and how many of its bytes are sound; a file of another kind is set aside."""
        data = path.read_bytes()
        header = self._header(scope)
        if data[: len(header)] != header[: len(data)]:
            os.replace(path, path.with_suffix(".bad"))
            log.warning("%s is damaged or of another version: set aside as %s.bad", path, path.name)
            return [], 0
        os.utime(path)  # used now
        if len(data) < len(header):
            return [], 0
        pieces, end = decode(data, len(header))
        if end < len(data):
            log.warning("%s is damaged behind byte %d of %d: the rest is ignored", path, end, len(data))
        else:
            self._sound[path] = (path.stat().st_ino, end)
        return pieces, end

    def _append(self, path: Path, scope: str, record: bytes) -> int:
        """Put a record behind what is sound; the file's new size. A failed write leaves what was there."""
        end = 0
        if path.exists():
            status = path.stat()
            known = self._sound.get(path) == (status.st_ino, status.st_size)
            end = status.st_size if known else self._read(path, scope)[1]
        if end == 0:
            record = self._header(scope) + record
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.fchmod(file, 0o600)
            os.ftruncate(file, end)
            try:
                _write_all(file, record, end)
            except OSError:
                os.ftruncate(file, end)
                raise
            self._sound[path] = (os.fstat(file).st_ino, end + len(record))
        finally:
            os.close(file)
        return end + len(record)

    def _shorten(self, path: Path, scope: str) -> None:
        """Keep the newest records, half of what is allowed, by an atomic replacement."""
        pieces, _ = self._read(path, scope)
        kept: list[bytes] = []
        size = HEADER.size
        for piece in reversed(pieces):
            record = encode(piece)
            size += len(record)
            if size > self.scope_bytes // 2:
                break
            kept.append(record)
        temporary = path.with_suffix(".tmp")
        try:
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                _write_all(file, self._header(scope) + b"".join(reversed(kept)), 0)
                os.fsync(file)
            finally:
                os.close(file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _trim(self, used: Path) -> None:
        """Remove the files used longest ago while all together are too large."""
        files = [(entry.stat(), Path(entry.path)) for entry in os.scandir(self.folder) if entry.name != LOCK]
        total = sum(status.st_size for status, _ in files)
        for status, path in sorted(files, key=lambda item: item[0].st_mtime_ns):
            if total > self.total_bytes and path != used:
                path.unlink()
                total -= status.st_size


def kept(state_dir: Path) -> tuple[int, int]:
    """How many files there are, and their bytes."""
    folder = state_dir / FOLDER
    files = [path for path in folder.iterdir() if path.name != LOCK] if folder.is_dir() else []
    return len(files), sum(path.stat().st_size for path in files)


def clear(state_dir: Path) -> int:
    """Remove what is kept for every scope and tokenizer; how many files that were. Raises OSError."""
    folder = state_dir / FOLDER
    if not folder.is_dir():
        return 0
    with FileLock(folder / LOCK, timeout=LOCK_SECONDS, mode=0o600):
        files = [Path(entry.path) for entry in os.scandir(folder) if entry.name != LOCK]
        for path in files:
            path.unlink()
    return len(files)


def encode(piece: Piece) -> bytes:
    """A piece as a record."""
    tokens = array("I", piece.tokens)
    if sys.byteorder == "big":
        tokens.byteswap()
    rest = RECORD.pack(0, len(tokens), piece.length, piece.digest)[4:] + tokens.tobytes()
    return zlib.crc32(rest).to_bytes(4, "little") + rest


def decode(data: bytes, start: int) -> tuple[list[Piece], int]:
    """The sound records from a byte on, and where they end."""
    pieces: list[Piece] = []
    while start + RECORD.size <= len(data):
        crc, count, length, digest = RECORD.unpack_from(data, start)
        end = start + RECORD.size + 4 * count
        if end > len(data) or zlib.crc32(memoryview(data)[start + 4 : end]) != crc:
            break
        tokens = array("I", data[start + RECORD.size : end])
        if sys.byteorder == "big":
            tokens.byteswap()
        pieces.append(Piece(tokens, length, digest))
        start = end
    return pieces, start


def _write_all(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
