"""The blocking client: the caller's own thread works the socket, there is no helper thread.

Several threads may share a Client. One at a time holds the socket and hands what it receives to the
requests of all; the others wait for their events or for their turn.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Generator
from types import TracebackType
from typing import Any

import zmq

from draftd.ipc import link
from draftd.ipc.codec import encode
from draftd.ipc.endpoint import resolve
from draftd.ipc.errors import Cancelled, DraftdError
from draftd.ipc.messages import (
    Clear,
    Cleared,
    Done,
    Generate,
    GetStatus,
    Hello,
    Message,
    Ping,
    Prefill,
    Prefilled,
    Status,
    Tokens,
)
from draftd.ipc.session import Event, Reply, Session, cancel, check, reply


class Client:
    """An app's connection to the daemon; it connects at the first call, and anew after a lost connection.

    `timeout`: seconds to wait for the daemon to take the connection and to answer hello, status and ping.
    A generation may take as long as the daemon shows signs of life. `name`: the app's, by default its
    program's; requests of one name may draft from earlier ones, those of the name "" from themselves only.
    """

    def __init__(self, endpoint: str | None = None, timeout: float = 5.0, name: str | None = None) -> None:
        self.endpoint = resolve(endpoint)
        self.timeout = timeout
        self.name = link.program_name() if name is None else name
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._closed = False

    def generate(self, **params: Any) -> Generator[Tokens | Done, None, None]:
        """Stream an answer: Tokens as they come, then one Done. The parameters are `Generate`'s fields.

        InvalidRequest at once for wrong parameters; leaving the loop early cancels the request.
        """
        check(Generate, params)
        return self._stream(params)

    def complete(self, **params: Any) -> Reply:
        """A whole answer at once; the parameters are `Generate`'s fields."""
        parts: list[Tokens] = []
        for event in self.generate(**params):
            if isinstance(event, Done):
                return reply(parts, event)
            parts.append(event)
        raise AssertionError("a stream ends with Done or an error")

    def prefill(self, *, wait: bool = True, **params: Any) -> Prefilled | None:
        """Have a prompt computed that a request will come for; the parameters are `Prefill`'s fields.

        The connection's next prefill supersedes it. `wait`: until it is computed or superseded; else returns
        at once, and None: what an app does that sends what is typed, again and again.
        """
        check(Prefill, params)
        connection = self._connect()
        request = connection.open(Prefill, params)
        if not wait:
            connection.leave(request, finished=True)
            return None
        finished = False
        try:
            answer = connection.wait(request, None)
            finished = True
        except DraftdError:
            finished = True  # the error ended it
            raise
        finally:
            connection.leave(request, finished)
        assert isinstance(answer, Prefilled)
        return answer

    def status(self, full: bool = False) -> Status:
        """What the daemon serves and how it is doing; `full`: each open request and all counters too."""
        answer = self._ask(GetStatus, {"full": full})
        assert isinstance(answer, Status)
        return answer

    def clear(self, learnt: bool = False) -> int:
        """Make the daemon forget what repeated text is drafted from, of all apps; how many files went.

        `learnt`: also what it learnt of the pairs, acceptance and costs.
        """
        answer = self._connect().ask(Clear, {"learnt": learnt}, self.timeout)
        assert isinstance(answer, Cleared)
        return answer.files

    def ping(self) -> float:
        """Seconds for a round trip to the daemon."""
        connection = self._connect()
        start = time.perf_counter()
        connection.ask(Ping, {}, self.timeout)
        return time.perf_counter() - start

    def close(self) -> None:
        """Cancel what still runs and leave; calls that wait in other threads raise Cancelled."""
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream(self, params: dict[str, Any]) -> Generator[Tokens | Done, None, None]:
        connection = self._connect()
        request = connection.open(Generate, params)
        finished = False
        try:
            while not finished:
                event = connection.wait(request, None)
                finished = isinstance(event, Done)
                if isinstance(event, Tokens | Done):
                    yield event
        except DraftdError:
            finished = True  # the error ended it
            raise
        finally:
            connection.leave(request, finished)

    def _ask(self, kind: type[Message], fields: dict[str, Any]) -> Event:
        return self._connect().ask(kind, fields, self.timeout)

    def _connect(self) -> _Connection:
        connection = self._connection
        if connection is not None and connection.down is None:
            return connection
        with self._lock:
            if self._closed:
                raise RuntimeError("this Client is closed: make another")
            if self._connection is None or self._connection.down is not None:
                if self._connection is not None:
                    self._connection.close()
                self._connection = _Connection(self.endpoint, self.timeout, self.name)
            return self._connection


class _Connection:
    """One DEALER socket and the turns that threads take on it."""

    def __init__(self, endpoint: str, timeout: float, name: str) -> None:
        self.down: DraftdError | None = None  # why it is of no more use
        self._endpoint = endpoint
        self._session = Session()
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)  # the socket is free, or something came
        self._busy = False  # a thread is at the socket
        self._waiting = 0  # threads that wait for the turn
        self._outbox: deque[bytes] = deque()
        self._heard = time.monotonic()  # when a frame came last, or was first awaited
        link.look(endpoint)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        link.configure(self._socket)
        self._monitor = self._socket.get_monitor_socket(link.WATCHED)
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)
        self._watched: list[Any] = [
            (self._socket, zmq.POLLIN),
            (self._monitor, zmq.POLLIN),
            (self._woken, zmq.POLLIN),
        ]
        try:
            self._shake_hands(timeout, name)
        except BaseException:
            self.close()
            raise

    def ask(self, kind: type[Message], fields: dict[str, Any], limit: float) -> Event:
        """Send a message that has one answer, and wait for it, `limit` seconds at most."""
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
            self._heard = time.monotonic()
            self._send(frame)
        return request

    def leave(self, request: str, finished: bool) -> None:
        """Forget a request, and cancel it unless it is finished."""
        with self._lock:
            self._session.close(request)
            if not finished and self.down is None:
                self._send(cancel(request))

    def wait(self, request: str, limit: float | None) -> Event:
        """The request's next event; raises its error. No limit: as long as the daemon shows signs of life."""
        start = asked = time.monotonic()
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
                    if quiet > link.PING_EVERY and now - asked > link.PING_EVERY:
                        asked = now
                        self._send(encode(Ping(id=link.PING_ID)))
                    left = link.PING_EVERY
                if self._busy:
                    self._waiting += 1
                    self._turn.wait(left)
                    self._waiting -= 1
                    continue
                self._flush()
                if self.down is not None:
                    continue
                self._busy = True
            frames: list[bytes] = []
            lost = False
            try:
                lost = self._poll(left, frames)
            finally:
                with self._lock:
                    self._busy = False
                    self._receive(frames, lost)
                    if self._waiting:
                        self._turn.notify_all()

    def close(self) -> None:
        with self._lock:
            if self._socket.closed:
                return
            if self.down is None:
                self._outbox.extend(cancel(request) for request in self._session.unfinished())
            self._fail(Cancelled("the client was closed"))
            if self._busy:
                os.write(self._wake, b"\0")
                self._waiting += 1
                self._turn.wait_for(lambda: not self._busy)
            self._flush()
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._socket.close()
            self._context.term()  # waits for what LINGER allows
            os.close(self._woken)
            os.close(self._wake)

    def _shake_hands(self, timeout: float, name: str) -> None:
        self._socket.connect(self._endpoint)
        end = time.monotonic() + timeout
        up = None
        while up is None:
            left = end - time.monotonic()
            if left <= 0 or not self._monitor.poll(int(left * 1000) + 1):
                raise link.absent(self._endpoint)
            up = link.change(self._monitor.recv_multipart())
        if not up:
            raise link.absent(self._endpoint)
        link.check_welcome(self.ask(Hello, {"client": name}, timeout))

    # What follows is called with the turn held, except _poll: that is what a thread does at the socket.

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
