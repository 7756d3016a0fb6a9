"""The asyncio client's connection, on the running loop and without a task of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from typing import Any

import zmq

from draftd.ipc import link
from draftd.ipc.errors import Cancelled, DraftdError
from draftd.ipc.keys import ClientKeys
from draftd.ipc.lease import Renewal
from draftd.ipc.messages import Hello, Message
from draftd.ipc.session import Event, Session, cancel, credit


class AsyncConnection:
    """One DEALER socket, read in a callback whenever its file descriptor or its monitor's stirs.

    `_guard` is held at the socket: the loop's thread works it, and the one that renews the lease.
    """

    def __init__(self, endpoint: str, keys: ClientKeys | None) -> None:
        self.down: DraftdError | None = None  # why it is of no more use
        self._process = os.getpid()
        self._endpoint = endpoint
        self._session = Session()
        self._news: dict[str, asyncio.Event] = {}  # by open request
        self._changed = asyncio.Event()  # the connection came up or went down
        self._end: list[bytes] = []  # what the monitor said when it went down
        self._heard = time.monotonic()  # when a frame came last
        link.look(endpoint)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        link.configure(self._socket, keys)
        self._monitor = self._socket.get_monitor_socket(link.WATCHED)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.FD, self._read)
        self._loop.add_reader(self._monitor.FD, self._read)
        self._guard = threading.Lock()
        self._renewal = Renewal(self._renew)

    async def usable(self) -> bool:
        """Whether it has its daemon and its loop, and is not a copy that a fork made."""
        if self._loop.is_closed() or self._process != os.getpid():
            return False
        self._read()
        if self._end and self.down is None:  # lost while the loop stood still: _fail comes behind last words
            await asyncio.sleep(2 * link.LAST_WORDS / 1000)
        return self.down is None

    async def shake_hands(self, timeout: float, name: str) -> None:
        """Connect and say hello; Unreachable or UnsupportedVersion."""
        link.connect(self._socket, self._endpoint)
        self._read()
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            self._read()  # what came while something else held up the loop
            if not self._changed.is_set():
                raise link.absent(self._endpoint) from None
        if self.down is not None:
            raise link.refused(self._endpoint, self._end)
        link.check_welcome(await self.ask(Hello, link.hello(name), timeout))

    async def ask(self, kind: type[Message], fields: dict[str, Any], limit: float | None) -> Event:
        """Send a message that has one answer, and wait for it, `limit` seconds at most (None: see `wait`)."""
        request = self.open(kind, fields)
        try:
            return await self.wait(request, limit)
        finally:
            self.leave(request, finished=True)

    def open(self, kind: type[Message], fields: dict[str, Any]) -> str:
        if self.down is not None:
            raise self.down
        request, frame = self._session.open(kind, fields)
        self._news[request] = asyncio.Event()
        self._send(frame)
        if kind in link.LASTING:
            self._renewal.start()
        return request

    def give(self, request: str, more: int) -> None:
        """Let the daemon send so many `tokens` messages more."""
        if self.down is None:
            self._send(credit(request, more))

    def leave(self, request: str, finished: bool) -> None:
        """Forget a request, and cancel it unless it is finished."""
        self._session.close(request)
        del self._news[request]
        if not finished and self.down is None:
            self._send(cancel(request))

    def let_go(self, request: str) -> None:
        """Wait no more for a request that goes on: the lease is renewed for it."""
        self._session.let_go(request)
        del self._news[request]

    async def wait(self, request: str, limit: float | None) -> Event:
        """The request's next event; raises its error. No limit: as long as the daemon shows signs of life."""
        start = time.monotonic()
        news = self._news[request]
        while (event := self._session.take(request)) is None:
            news.clear()
            try:
                async with asyncio.timeout(link.PING_EVERY if limit is None else limit):
                    await news.wait()
            except TimeoutError:
                self._read()  # what came while something else held up the loop
                if news.is_set():
                    continue
                if limit is not None:
                    raise link.silent(self._endpoint, limit) from None
                quiet = time.monotonic() - max(self._heard, start)
                if quiet > link.SILENCE:
                    self._fail(link.silent(self._endpoint, quiet))
        return event

    async def close(self) -> None:
        if self._process != os.getpid() or self._socket.closed:
            return
        self._renewal.stop()
        with contextlib.suppress(RuntimeError):  # its loop has ended, and who waited there
            if self.down is None:
                for request in self._session.unfinished():
                    self._send(cancel(request))
            self._fail(Cancelled("the client was closed"))
            self._loop.remove_reader(self._socket.FD)
            self._loop.remove_reader(self._monitor.FD)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
        await asyncio.to_thread(self._context.term)  # waits for what LINGER allows

    def _send(self, frame: bytes) -> None:
        try:
            with self._guard:
                self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:  # no connection any more, or a daemon that does not read
            self._fail(link.gone(self._endpoint))
        self._read()  # sending can take the news off the file descriptor

    def _renew(self) -> None:
        with self._guard, contextlib.suppress(zmq.Again):  # the loop finds out by itself
            if self.down is None and self._session.lives():
                self._socket.send(link.ALIVE, zmq.NOBLOCK)
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the connection with it
            self._loop.call_soon_threadsafe(self._read)

    def _read(self) -> None:
        if self._socket.closed:
            return
        with self._guard:
            frames, lost = self._receive()
        if frames:
            self._heard = time.monotonic()
        try:
            for frame in frames:
                for request in self._session.feed(frame):
                    self._news[request].set()
        except DraftdError as error:
            self._fail(error)
        if lost:
            self._loop.call_later(link.LAST_WORDS / 1000, self._fail, link.gone(self._endpoint))

    def _receive(self) -> tuple[list[bytes], bool]:
        """What has come, and whether the connection is lost."""
        frames, lost = [], False
        while _readable(self._monitor):
            event = self._monitor.recv_multipart(zmq.NOBLOCK)
            up = link.change(event)
            if up is False:
                lost, self._end = True, self._end or event
            if up:
                self._changed.set()
        while _readable(self._socket):
            frames.append(self._socket.recv(zmq.NOBLOCK))
        return frames, lost

    def _fail(self, error: DraftdError) -> None:
        if self.down is None:
            self.down = error
            self._session.fail(error)
            self._changed.set()
            for news in self._news.values():
                news.set()


def _readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
