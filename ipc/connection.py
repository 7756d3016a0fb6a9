"""The blocking client's connection: the callers' own threads work the socket.

Several threads may share it. One at a time holds the socket and hands what it receives to the
requests of all; the others wait for their events or for their turn. One more thread only renews the lease.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from typing import Any

import zmq

from draftd.ipc import link
from draftd.ipc.errors import Cancelled, DraftdError
from draftd.ipc.keys import ClientKeys
from draftd.ipc.lease import Renewal
from draftd.ipc.messages import Hello, Message
from draftd.ipc.session import Event, Session, cancel, credit


class Connection:
    """One DEALER socket and the turns that threads take on it."""

    def __init__(self, endpoint: str, timeout: float, name: str, keys: ClientKeys | None) -> None:
        self.down: DraftdError | None = None  # why it is of no more use
        self._process = os.getpid()
        self._endpoint = endpoint
        self._session = Session()
        # its own thread may take it again: the collector ends a forgotten stream while a frame is read
        self._lock = threading.RLock()
        self._turn = threading.Condition(self._lock)  # the socket is free, or something came
        self._busy = 0  # the thread that is at the socket
        self._closing = False
        self._waiting = 0  # threads that wait for the turn
        self._outbox: deque[bytes] = deque()
        self._heard = time.monotonic()  # when a frame came last
        link.look(endpoint)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        link.configure(self._socket, keys)
        self._monitor = self._socket.get_monitor_socket(link.WATCHED)
        self._woken, self._wake = os.pipe()
        # A client may be dropped without close(). Not at the process's end: a thread may still be at it.
        self._close_pipe = weakref.finalize(self, _close, self._woken, self._wake)
        self._close_pipe.atexit = False
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)
        self._watched: list[Any] = [
            (self._socket, zmq.POLLIN),
            (self._monitor, zmq.POLLIN),
            (self._woken, zmq.POLLIN),
        ]
        self._renewal = Renewal(self._renew)
        try:
            self._shake_hands(timeout, name)
        except BaseException:
            self.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether it has its daemon, and is not a copy that a fork made: the socket stays the parent's."""
        if self._process != os.getpid():
            return False
        with self._lock:
            unread = self.down is None and not self._busy
            if unread and int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:  # lost while nobody waited
                frames: list[bytes] = []
                lost = self._poll(0.0, frames)
                self._receive(frames, lost)
            return self.down is None

    def ask(self, kind: type[Message], fields: dict[str, Any], limit: float | None) -> Event:
        """Send a message that has one answer, and wait for it, `limit` seconds at most (None: see `wait`)."""
        request = self.open(kind, fields)
        try:
            return self.wait(request, limit)
        finally:
            self.leave(request, finished=True)

    def open(self, kind: type[Message], fields: dict[str, Any]) -> str:
        with self._lock:
            if self.down is not None:
                raise self.down
            request, frame = self._session.open(kind, fields)
            self._send(frame)
        if kind in link.LASTING:
            self._renewal.start()
        return request

    def give(self, request: str, more: int) -> None:
        """Let the daemon send so many `tokens` messages more."""
        with self._lock:
            if self.down is None:
                self._send(credit(request, more))

    def leave(self, request: str, finished: bool) -> None:
        """Forget a request, and cancel it unless it is finished."""
        with self._lock:
            self._session.close(request)
            if not finished and self.down is None:
                self._send(cancel(request))

    def let_go(self, request: str) -> None:
        """Wait no more for a request that goes on: the lease is renewed for it."""
        with self._lock:
            self._session.let_go(request)

    def wait(self, request: str, limit: float | None) -> Event:
        """The request's next event; raises its error. No limit: as long as the daemon shows signs of life."""
        start = time.monotonic()
        while True:
            with self._lock:
                event = self._session.take(request)
                if event is not None:
                    return event
                now = time.monotonic()
                if limit is not None:
                    left = start + limit - now
                    if left <= 0:
                        raise link.silent(self._endpoint, limit)
                else:
                    quiet = now - max(self._heard, start)
                    if quiet > link.SILENCE:
                        self._fail(link.silent(self._endpoint, quiet))
                        continue
                    left = link.PING_EVERY  # the renewals ask for the daemon's signs of life
                if self._busy:
                    self._waiting += 1
                    self._turn.wait(left)
                    self._waiting -= 1
                    continue
                self._flush()
                if self.down is not None:
                    continue
                self._busy = threading.get_ident()
            frames: list[bytes] = []
            lost = False
            try:
                lost = self._poll(left, frames)
            finally:
                with self._lock:
                    self._busy = 0
                    self._receive(frames, lost)
                    self._flush()  # what others sent meanwhile: this thread may have what it came for
                    if self._closing:
                        self._end()
                    if self._waiting:
                        self._turn.notify_all()

    def close(self) -> None:
        if self._process != os.getpid():
            return
        self._renewal.stop()
        with self._lock:
            if self._socket.closed:
                return
            if self.down is None:
                self._outbox.extend(cancel(request) for request in self._session.unfinished())
            self._fail(Cancelled("the client was closed"))
            self._closing = True
            if not self._busy:
                self._end()
                return
            # Who is at the socket ends it; that may be this very thread, if a signal's handler called.
            os.write(self._wake, b"\0")
            if self._busy != threading.get_ident():
                self._waiting += 1
                self._turn.wait_for(lambda: self._socket.closed)

    def _shake_hands(self, timeout: float, name: str) -> None:
        link.connect(self._socket, self._endpoint)
        end = time.monotonic() + timeout
        up = None
        while up is None:
            left = end - time.monotonic()
            if left <= 0 or not self._monitor.poll(int(left * 1000) + 1):
                raise link.absent(self._endpoint)
            event = self._monitor.recv_multipart()
            up = link.change(event)
        if not up:
            raise link.refused(self._endpoint, event)
        link.check_welcome(self.ask(Hello, link.hello(name), timeout))

    def _renew(self) -> None:
        with self._lock:
            if self.down is None and not self._busy and not self._session.unfinished():
                self._receive(self._unread(), lost=False)  # nobody else does: what was let go may have ended
            if self.down is None and self._session.lives():
                self._send(link.ALIVE)

    # What follows is called with the turn held, except _poll: that is what a thread does at the socket.

    def _end(self) -> None:
        if self._socket.closed:
            return
        self._flush()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
        self._context.term()  # waits for what LINGER allows
        self._close_pipe()

    def _send(self, frame: bytes) -> None:
        self._outbox.append(frame)
        if self._busy:
            os.write(self._wake, b"\0")
        else:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._outbox:
                self._socket.send(self._outbox.popleft(), zmq.NOBLOCK)
        except zmq.Again:  # no connection any more, or a daemon that has not read for a thousand messages
            self._fail(link.gone(self._endpoint))

    def _poll(self, seconds: float, frames: list[bytes]) -> bool:
        """Wait for something to happen, put what came into frames; True if the connection is lost."""
        ready: dict[Any, int] = dict(zmq.zmq_poll(self._watched, int(seconds * 1000) + 1))
        lost = False
        if self._socket in ready:
            frames.append(self._socket.recv(zmq.NOBLOCK))
        if self._woken in ready:
            os.read(self._woken, 4096)
        if self._monitor in ready:
            lost = link.change(self._monitor.recv_multipart(zmq.NOBLOCK)) is False
        while lost and self._socket.poll(link.LAST_WORDS):
            frames.append(self._socket.recv(zmq.NOBLOCK))
        return lost

    def _unread(self) -> list[bytes]:
        frames: list[bytes] = []
        with contextlib.suppress(zmq.Again):
            while True:
                frames.append(self._socket.recv(zmq.NOBLOCK))
        return frames

    def _receive(self, frames: list[bytes], lost: bool) -> None:
        if frames:
            self._heard = time.monotonic()
        try:
            for frame in frames:
                self._session.feed(frame)
        except DraftdError as error:
            self._fail(error)
        if lost:
            self._fail(link.gone(self._endpoint))

    def _fail(self, error: DraftdError) -> None:
        if self.down is None:
            self.down = error
            self._session.fail(error)
            self._turn.notify_all()


def _close(*files: int) -> None:
    for file in files:
        os.close(file)
