"""CURVE keys for TCP: files that hold them, who may read them, and how a client finds its own."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.auth import load_certificate

from draftd.ipc.errors import InvalidConfig

SUFFIX = ".key_secret"  # of a file with both keys; the public one alone is in NAME.key


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """The daemon's public key and an app's pair, 40 characters of Z85 each."""

    server: bytes
    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def load(cls, server: str | Path, client: str | Path) -> ClientKeys:
        """From the daemon's NAME.key and the app's NAME.key_secret; InvalidConfig says what is wrong."""
        public, secret = read_secret(Path(client))
        return cls(read_public(Path(server)), public, secret)

    @classmethod
    def from_environment(cls) -> ClientKeys | None:
        """From the files that DRAFTD_SERVER_KEY and DRAFTD_CLIENT_KEY name."""
        server, client = os.environ.get("DRAFTD_SERVER_KEY"), os.environ.get("DRAFTD_CLIENT_KEY")
        return cls.load(server, client) if server and client else None


def make(directory: Path, name: str) -> tuple[Path, Path]:
    """A new pair: NAME.key, to be given away, and NAME.key_secret with mode 0600.

    InvalidConfig if one of them exists or can't be written.
    Both are in the format of zmq.auth.create_certificates.
    """
    if Path(name).name != name:
        raise InvalidConfig(f"{name!r} is no name for a file: give one without a slash, as in `server`")
    public, secret = zmq.curve_keypair()
    open_part = f'metadata\ncurve\n    public-key = "{public.decode()}"\n'
    secret_file, public_file = directory / f"{name}{SUFFIX}", directory / f"{name}.key"
    try:
        for path in (secret_file, public_file):
            if path.exists():
                raise InvalidConfig(f"{path} exists: remove it, or choose another name")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(secret_file, f'{open_part}    secret-key = "{secret.decode()}"\n', 0o600)
        _write_new(public_file, open_part, 0o644)
    except OSError as error:
        raise InvalidConfig(f"cannot write keys to {directory}: {error.strerror}") from None
    return public_file, secret_file


def read_public(path: Path) -> bytes:
    """The public key of a file; InvalidConfig if it has none."""
    return _load(path)[0]


def read_secret(path: Path, *, guarded: bool = False) -> tuple[bytes, bytes]:
    """Public and secret key of a file that only its owner can read; InvalidConfig otherwise.

    `guarded`: something else keeps others out, as systemd does for credentials with an access list.
    """
    public, secret = _load(path)
    if secret is None:
        raise InvalidConfig(f"{path} holds no secret key: give the {SUFFIX} file")
    if not guarded and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InvalidConfig(f"others can read the secret key in {path}: run `chmod 600 {path}`")
    return public, secret


def read_allowed(directory: Path) -> frozenset[bytes]:
    """The public keys of a directory's *.key files; InvalidConfig if there are none."""
    if not directory.is_dir():
        raise InvalidConfig(f"there is no directory {directory} with the apps' public keys")
    found = frozenset(read_public(path) for path in sorted(directory.glob("*.key")))
    if not found:
        raise InvalidConfig(f"{directory} holds no *.key file: copy the apps' public keys there")
    return found


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = load_certificate(path)
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"cannot read a key from {path}: {error}") from None
    for key in (public, secret):
        if key is not None and len(key) != 40:
            raise InvalidConfig(f"{path} holds a key of {len(key)} characters, a key has 40")
    return public, secret


def _write_new(path: Path, text: str, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="ascii") as file:
        file.write(text)
