"""Where a process with an HTTP door listens: a Unix socket, or a port that other machines can't reach."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from draftd.ipc.endpoint import identity
from draftd.ipc.errors import InvalidConfig

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@contextlib.contextmanager
def bound(listen: str, *, umask: int, anywhere: bool = False, hint: str = "") -> Iterator[socket.socket]:
    """A socket bound to unix:/path, a file of this umask, or to host:port; it is closed at the end.

    InvalidConfig if it can't be, or could be reached from other machines: with `anywhere` it may, and
    `hint` ends the sentence with how to say so.
    """
    unix = listen.startswith("unix:")
    path = Path(os.path.expanduser(listen.removeprefix("unix:")))  # no shell does it behind a colon
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    if not unix and (not port.isdigit() or not 0 < int(port) < 65536 or not host):
        raise InvalidConfig(f"cannot listen at {listen!r}: give 127.0.0.1:port or unix:/path with --listen")
    if not unix and host not in LOOPBACK and not anywhere:
        raise InvalidConfig(f"{listen} can be reached from other machines: give 127.0.0.1:port{hint}")
    family = socket.AF_UNIX if unix else socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    before = os.umask(umask)
    try:
        if unix:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.is_socket():
                _free(path)
            listening.bind(str(path))
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, int(port)))
    except OSError as error:
        listening.close()
        reason = error.strerror or str(error)
        raise InvalidConfig(f"cannot listen at {listen}: {reason}: choose another with --listen") from None
    finally:
        os.umask(before)
    made = identity(path) if unix else None
    try:
        yield listening
    finally:
        listening.close()
        if made is not None and identity(path) == made:  # not one that another process made since
            path.unlink(missing_ok=True)


def _free(path: Path) -> None:
    """Remove the socket file of a process that is gone; OSError if one that lives answers there."""
    with socket.socket(socket.AF_UNIX) as knock:
        knock.setblocking(False)  # a full queue is an answer too
        if knock.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    path.unlink()


def hostname(host: str) -> str:
    """The name in a Host header, without its port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return host
