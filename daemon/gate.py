"""The listening socket of a Unix endpoint: libzmq takes connections from it while descriptors last.

libzmq ends the process when it has a connection to take and no descriptor for it (4.3.5, ipc_listener.cpp).
So it is kept from taking one while no more than a reserve is left: the number by which it knows the listening
socket is made to stand for another, which nobody can reach, and the front turns away who comes.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import resource
import socket
import tempfile
from pathlib import Path

import zmq

log = logging.getLogger("draftd.front")

BACKLOG = 100  # connections that wait to be taken
RESERVE = 8192  # descriptors kept back: more than libzmq takes connections in a turn of the front's
SHARE = 0.75  # of a small limit, which is kept back instead
EVERY = 0.1  # seconds between two counts of all descriptors
LOOK = 0.25  # seconds between two looks, where nothing else makes the front turn


class Gate:
    """One listening socket; `file` is libzmq's, for ZMQ_USE_FD."""

    def __init__(self, path: Path) -> None:
        """Bind and listen; OSError."""
        kind = socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        self.listener, self._nobody = socket.socket(*kind), socket.socket(*kind)
        try:
            with tempfile.TemporaryDirectory(prefix="draftd-") as hidden:  # a socket must have had a name
                self._nobody.bind(f"{hidden}/nobody")
            self._nobody.listen(1)
            path.unlink(missing_ok=True)  # what an earlier daemon left; who binds holds the path's lock
            self.listener.bind(str(path))
            self.listener.listen(BACKLOG)
            self.file = os.dup(self.listener.fileno())
        except BaseException:
            self.close()
            raise

    def open(self) -> None:
        """Let libzmq take connections: also what it must find when it closes its socket."""
        os.dup2(self.listener.fileno(), self.file, inheritable=False)

    def shut(self) -> None:
        """Keep libzmq from taking connections."""
        os.dup2(self._nobody.fileno(), self.file, inheritable=False)

    def turn_away(self) -> int:
        """End the connections that wait at a gate that is shut; how many there were."""
        count = 0
        with contextlib.suppress(OSError):  # there are no more, or another thread took the last descriptor
            while count < BACKLOG:
                self.listener.accept()[0].close()
                count += 1
        return count

    def close(self) -> None:
        self.listener.close()
        self._nobody.close()


class Gates:
    """All gates of a front, shut and opened together: a timer of its turn, which who knocks brings about."""

    def __init__(self, poller: zmq.Poller) -> None:
        self._poller = poller
        self._gates: list[Gate] = []
        self._open = True
        self._count_at = 0.0  # monotonic seconds
        self._turned_away = 0

    def add(self, path: Path) -> int:
        """Another gate, beside those whose socket file was removed; libzmq's descriptor of it."""
        gate = Gate(path)
        self._gates.append(gate)
        self._poller.register(gate.listener, zmq.POLLIN)
        return gate.file

    def tick(self, now: float) -> float | None:
        """Shut the gates, or open them again; when to look next."""
        if not self._gates:
            return None  # libzmq waits by itself where it listens to TCP
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = limit - min(RESERVE, int(SHARE * limit))
        if now >= self._count_at and (not self._open or _reached(self._gates[-1].file, most)):
            self._count_at = now + EVERY
            used = len(os.listdir("/proc/self/fd"))
            if self._open and used > most:
                self._shut(used, limit)
            elif not self._open and used < 0.9 * most:
                self._reopen()
        if not self._open:
            self._turned_away += sum(gate.turn_away() for gate in self._gates)
        return now + LOOK

    def close(self) -> None:
        """Before libzmq's socket is closed: let it find what it knows."""
        for gate in self._gates:
            gate.open()
            gate.close()

    def _shut(self, used: int, limit: int) -> None:
        self._open, self._turned_away = False, 0
        for gate in self._gates:
            gate.shut()
        log.error(
            "%d of %d descriptors are in use: no further connection is taken until some have ended; "
            "an app holds too many, or LimitNOFILE is too low",
            used,
            limit,
        )

    def _reopen(self) -> None:
        self._open = True
        for gate in self._gates:
            gate.open()
        log.warning("connections are taken again; %d were turned away", self._turned_away)


def _reached(some: int, number: int) -> bool:
    """Is a descriptor of this number or above in use? A copy of `some` gets the lowest that is free."""
    try:
        file = fcntl.fcntl(some, fcntl.F_DUPFD_CLOEXEC, number)
    except OSError:
        return True
    os.close(file)
    return file > number
