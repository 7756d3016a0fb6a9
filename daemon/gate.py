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
GREETED = 1.0  # second within which libzmq's thread should have begun
EVERY = 0.1  # seconds between two counts of all descriptors
MONITOR = "inproc://taken"


class Gate:
    """One listening socket; `file` is libzmq's, for ZMQ_USE_FD."""

    def __init__(self, path: Path) -> None:
        """Bind and listen; OSError."""
        kind = socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        self.listener, self._nobody = socket.socket(*kind), socket.socket(*kind)
        try:
            with tempfile.TemporaryDirectory(prefix="draftd-") as hidden:  # a socket must have had a name
                Path(hidden).chmod(0o700)  # the umask is a socket file's: only root could enter
                self._nobody.bind(f"{hidden}/nobody")
            self._nobody.listen(1)
            path.unlink(missing_ok=True)  # what an earlier daemon left; who binds holds the path's lock
            self.listener.bind(str(path))
            self.listener.listen(BACKLOG)
            self.file = os.dup(self.listener.fileno())
        except BaseException:
            self.close()
            raise

    def await_libzmq(self) -> None:
        """Wait until its thread has the descriptor, which shows in a greeting for who knocks.

        It would else look for what stands there while the gate is shut, and end the process when it is open
        again, and that is not found (epoll.cpp).
        """
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
            knock.settimeout(GREETED)
            knock.connect(self.listener.getsockname())
            knock.recv(1)

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
    """All gates of a front, shut and opened together: a timer of its turn, which who comes brings about.

    libzmq may take a connection before the front sees it knock, so of an open gate libzmq's monitor tells:
    a timer would have to be quick, and wake an idle machine many times a second.
    """

    def __init__(self, poller: zmq.Poller) -> None:
        self._poller = poller
        self._gates: list[Gate] = []
        self._watched: zmq.Socket[bytes] | None = None
        self._taken: zmq.Socket[bytes] | None = None  # two frames for each connection that libzmq took
        self._news = False  # some were taken since all descriptors were counted
        self._open = True
        self._count_at = 0.0  # monotonic seconds
        self._turned_away = 0

    def add(self, path: Path, socket: zmq.Socket[bytes]) -> int:
        """Another gate, beside those whose socket file was removed; the descriptor `socket` is to bind."""
        gate = Gate(path)
        self._gates.append(gate)
        if self._taken is None:
            self._watch(socket)
        return gate.file

    def bound(self) -> None:
        """The newest gate's descriptor was bound: shut it, if all are."""
        gate = self._gates[-1]
        gate.await_libzmq()
        self._hear()
        if not self._open:
            gate.shut()
            self._poller.register(gate.listener, zmq.POLLIN)

    def tick(self, now: float) -> float | None:
        """Shut the gates, or open them again; when to look next."""
        if not self._gates:
            return None  # libzmq waits by itself where it listens to TCP
        self._hear()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = limit - min(RESERVE, int(SHARE * limit))
        if self._open and not (self._news and _reached(self._gates[-1].file, most)):
            self._news = False
            return None
        if now >= self._count_at:
            self._count_at, self._news = now + EVERY, False
            used = len(os.listdir("/proc/self/fd"))
            if self._open and used > most:
                self._shut(used, limit)
            elif not self._open and used < 0.9 * most:
                self._reopen()
        if not self._open:
            self._turned_away += sum(gate.turn_away() for gate in self._gates)
        return None if self._open and not self._news else self._count_at

    def close(self) -> None:
        """Before libzmq's socket is closed: let it find what it knows."""
        for gate in self._gates:
            gate.shut()
        if self._watched is not None and self._taken is not None:
            self._hear()  # libzmq's thread may wait for room, and would not let go of the monitor
            self._watched.disable_monitor()
            self._taken.close()
        for gate in self._gates:
            gate.open()
            gate.close()

    def _watch(self, socket: zmq.Socket[bytes]) -> None:
        """Be told of each connection; libzmq waits once it is a thousand ahead of the front (its own HWM)."""
        self._watched, self._taken = socket, socket.context.socket(zmq.PAIR)
        self._taken.rcvhwm = 1
        socket.monitor(MONITOR, zmq.EVENT_ACCEPTED)
        self._taken.connect(MONITOR)
        self._poller.register(self._taken, zmq.POLLIN)

    def _hear(self) -> None:
        """Take what the monitor told: that some came is all that is of use."""
        with contextlib.suppress(zmq.Again):
            while self._taken is not None:
                self._taken.recv_multipart(zmq.NOBLOCK)
                self._news = True

    def _shut(self, used: int, limit: int) -> None:
        self._open, self._turned_away = False, 0
        for gate in self._gates:
            gate.shut()
            self._poller.register(gate.listener, zmq.POLLIN)
        log.error(
            "%d of %d descriptors are in use: no further connection is taken until some have ended; "
            "an app holds too many, or LimitNOFILE is too low",
            used,
            limit,
        )

    def _reopen(self) -> None:
        self._open = True
        for gate in self._gates:
            self._poller.unregister(gate.listener)
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
