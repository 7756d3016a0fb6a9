"""Where a process with an HTTP door listens: a Unix socket, or a port that other machines can't reach."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from draftd.ipc.errors import InvalidConfig

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@contextlib.contextmanager
def bound(listen: str, *, umask: int, anywhere: bool = False, hint: str = "") -> Iterator[socket.socket]:
    """A socket bound to unix:/path, a file of this umask, or to host:port; it is closed at the end.

    InvalidConfig if it can't be, or could be reached from other machines: with `anywhere` it may, and
    `hint` ends the sentence with how to say so.
    """
    unix = listen.startswith("unix:")
    path = Path(listen.removeprefix("unix:"))
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
            if path.is_socket():  # of a process that is gone; one that lives keeps its own
                path.unlink()
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
    try:
        yield listening
    finally:
        listening.close()
        if unix:
            path.unlink(missing_ok=True)


def hostname(host: str) -> str:
    """The name in a Host header, without its port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return host
