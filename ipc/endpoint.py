"""Where daemon and apps meet: which endpoint it is, whether it can be used, and who holds it."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import stat
from pathlib import Path

import platformdirs

from draftd.ipc.errors import EndpointInUse, InvalidEndpoint

MAX_PATH = 107  # bytes that fit in a Unix socket's address
LOCK = ".lock"  # behind the socket's name: the file that the daemon there has locked
SECONDS = 2.0  # for a port to say whether anybody is there


def resolve(endpoint: str | None = None) -> str:
    """The endpoint to use: the argument, else $DRAFTD_ENDPOINT, else draftd.sock in the runtime directory."""
    chosen = endpoint or os.environ.get("DRAFTD_ENDPOINT") or f"ipc://{_default_path()}"
    if is_tcp(chosen):
        _check_port(chosen)
    else:
        socket_path(chosen)
    return chosen


def is_tcp(endpoint: str) -> bool:
    return endpoint.startswith("tcp://")


def socket_path(endpoint: str) -> Path:
    """The socket file of an endpoint; InvalidEndpoint says what to write instead."""
    scheme, separator, rest = endpoint.partition("://")
    if not separator:
        hint = f"ipc://{endpoint}" if endpoint.startswith("/") else "ipc:///path/to/draftd.sock"
        raise InvalidEndpoint(f"endpoint {endpoint!r} has no scheme: write {hint}")
    if scheme != "ipc":
        raise InvalidEndpoint(f"endpoint {endpoint!r}: {scheme}:// is not supported: use ipc://")
    if not rest.startswith("/") or rest.endswith("/") or "\0" in rest:
        raise InvalidEndpoint(
            f"endpoint {endpoint!r}: give the socket file's absolute path, as in ipc:///run/draftd.sock"
        )
    if (length := len(os.fsencode(rest))) > MAX_PATH:
        raise InvalidEndpoint(
            f"endpoint {endpoint!r}: the path is {length} bytes, a socket's may have {MAX_PATH}: "
            "choose a shorter one"
        )
    return Path(rest)


def is_held(endpoint: str) -> bool:
    """Does a daemon hold an endpoint? One that can't be reached may do so all the same."""
    if is_tcp(endpoint):
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), SECONDS).close()
        except OSError as error:
            return not isinstance(error, ConnectionRefusedError)
        return True
    path = socket_path(endpoint)
    try:
        file = os.open(path.with_name(path.name + LOCK), os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # of another user
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def prepare(endpoint: str, group: int | None = None) -> Hold:
    """Make an endpoint safe and free to bind: private directory, this process's lock, no stale socket file.

    `group`: may enter the directory. InvalidEndpoint if the directory can't be used, EndpointInUse if another
    daemon holds the endpoint.
    """
    path = socket_path(endpoint)
    _private_directory(path.parent, group)
    hold = Hold(path, group)
    if path.exists() and not path.is_socket():
        hold.release()
        raise InvalidEndpoint(f"{path} exists and is not a socket: move it away or choose another endpoint")
    path.unlink(missing_ok=True)
    return hold


class Hold:
    """This process's claim on a socket path, until release(); the lock file names the process."""

    def __init__(self, path: Path, group: int | None = None) -> None:
        self.path = path
        self._group = group
        self._lock = path.with_name(path.name + LOCK)
        self._file: int | None = self._claim()
        self._bound: tuple[int, int, int] | None = None  # which file the socket is

    def bound(self) -> None:
        """The socket file is there now: remember which it is."""
        self._bound = identity(self.path)

    def is_whole(self) -> bool:
        """Are lock and socket file still those of this process?"""
        if self._file is None or self._bound is None:
            return True  # not yet, or no more
        return _same_file(self._file, self._lock) and identity(self.path) == self._bound

    def renew(self) -> None:
        """Make directory, lock and a free path again where someone removed them; errors as prepare()."""
        _private_directory(self.path.parent, self._group)
        if self._file is not None and not _same_file(self._file, self._lock):
            file = self._claim()
            os.close(self._file)
            self._file = file
        self.path.unlink(missing_ok=True)

    def release(self) -> None:
        """Remove socket file and lock, unless another daemon has made its own; a second call does nothing."""
        if self._file is None:
            return
        if self.path.is_socket() and self._bound in (None, identity(self.path)):
            self.path.unlink(missing_ok=True)
        if _same_file(self._file, self._lock):
            self._lock.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _claim(self) -> int:
        while True:
            try:
                file = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                raise InvalidEndpoint(f"cannot lock {self._lock}: {error.strerror}") from None
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same_file(file, self._lock):
                    os.ftruncate(file, 0)
                    os.pwrite(file, str(os.getpid()).encode(), 0)
                    return file
            except BlockingIOError:
                pid = os.pread(file, 20, 0).decode("ascii", "replace") or "unknown"
                os.close(file)
                raise EndpointInUse(
                    f"a draftd daemon (pid {pid}) already listens at ipc://{self.path}: "
                    "stop it or choose another endpoint with --endpoint"
                ) from None
            except OSError as error:
                os.close(file)
                raise InvalidEndpoint(f"cannot lock {self._lock}: {error.strerror}") from None
            os.close(file)  # the daemon that held it removed it between our open and our lock


def identity(path: Path) -> tuple[int, int, int] | None:
    """Device, inode and kind of a file, None if there is none: what tells it from another of its name.

    The kind, since a directory made in a socket's place may have the inode that came free.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, stat.S_IFMT(found.st_mode)


def _same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


def _private_directory(directory: Path, group: int | None) -> None:
    """Make it (mode 0700, 0750 for a group), or refuse one that people outside owner and group can enter."""
    try:
        for part in (*reversed(directory.parents), directory):  # parents=True would not make them all private
            if not part.exists():
                part.mkdir(mode=0o700, exist_ok=True)
        found = directory.stat()
        if group is not None and found.st_uid == os.getuid() and not found.st_mode & 0o007:
            os.chown(directory, -1, group)
            directory.chmod(0o750)
            found = directory.stat()
    except OSError as error:
        raise InvalidEndpoint(f"cannot make {directory} the socket directory: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise InvalidEndpoint(f"{directory} is not a directory: choose another endpoint")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise InvalidEndpoint(f"no permission to make a socket in {directory}: choose another endpoint")
    if not found.st_mode & 0o007:
        return
    mend = f"run `chmod o= {directory}`"
    if found.st_mode & stat.S_ISVTX or found.st_uid != os.getuid():  # a directory that many share, like /tmp
        mend = f"use a directory of its own, as in ipc://{directory / 'draftd' / 'draftd.sock'}"
    raise InvalidEndpoint(f"everyone on this machine can enter the socket directory {directory}: {mend}")


def _check_port(endpoint: str) -> None:
    port = re.fullmatch(r"tcp://.+:(\d+)", endpoint)
    if port is None or not 1 <= int(port[1]) <= 65535:
        raise InvalidEndpoint(
            f"endpoint {endpoint!r}: give a port from 1 to 65535, as in tcp://127.0.0.1:5555"
        )


def _default_path() -> Path:
    """In the login session's runtime directory; without one in the home, never in a /tmp that all share."""
    session = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if os.access(session, os.W_OK):
        return Path(session) / "draftd" / "draftd.sock"
    return platformdirs.user_state_path("draftd") / "run" / "draftd.sock"
