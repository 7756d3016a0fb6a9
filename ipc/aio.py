"""The asyncio client: the same calls as Client, on the running loop and without a task of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
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


class AsyncClient:
    """An app's connection to the daemon; it connects at the first call, and anew after a lost connection.

    `timeout`: seconds to wait for the daemon to take the connection and to answer hello, status and ping.
    A generation may take as long as the daemon shows signs of life. `name`: the app's, by default its
    program's; requests of one name may draft from earlier ones, those of the name "" from themselves only.
    """

    def __init__(self, endpoint: str | None = None, timeout: float = 5.0, name: str | None = None) -> None:
        self.endpoint = resolve(endpoint)
        self.timeout = timeout
        self.name = link.program_name() if name is None else name
        self._lock = asyncio.Lock()
        self._connection: _Connection | None = None
        self._closed = False

    def generate(self, **params: Any) -> AsyncGenerator[Tokens | Done, None]:
        """Stream an answer: Tokens as they come, then one Done. The parameters are `Generate`'s fields.

        InvalidRequest at once for wrong parameters; leaving the loop early cancels the request.
        """
        check(Generate, params)
        return self._stream(params)

    async def complete(self, **params: Any) -> Reply:
        """A whole answer at once; the parameters are `Generate`'s fields."""
        parts: list[Tokens] = []
        async for event in self.generate(**params):
            if isinstance(event, Done):
                return reply(parts, event)
            parts.append(event)
        raise AssertionError("a stream ends with Done or an error")

    async def prefill(self, *, wait: bool = True, **params: Any) -> Prefilled | None:
        """Have a prompt computed that a request will come for; the parameters are `Prefill`'s fields.

        The connection's next prefill supersedes it. `wait`: until it is computed or superseded; else returns
        at once, and None: what an app does that sends what is typed, again and again.
        """
        check(Prefill, params)
        connection = await self._connect()
        request = connection.open(Prefill, params)
        if not wait:
            connection.leave(request, finished=True)
            return None
        finished = False
        try:
            answer = await connection.wait(request, None)
            finished = True
        except DraftdError:
            finished = True  # the error ended it
            raise
        finally:
            connection.leave(request, finished)
        assert isinstance(answer, Prefilled)
        return answer

    async def status(self, full: bool = False) -> Status:
        """What the daemon serves and how it is doing; `full`: each open request and all counters too."""
        connection = await self._connect()
        answer = await connection.ask(GetStatus, {"full": full}, self.timeout)
        assert isinstance(answer, Status)
        return answer

    async def clear(self, learnt: bool = False) -> int:
        """Make the daemon forget what repeated text is drafted from, of all apps; how many files went.

        `learnt`: also what it learnt of the pairs, acceptance and costs.
        """
        connection = await self._connect()
        answer = await connection.ask(Clear, {"learnt": learnt}, self.timeout)
        assert isinstance(answer, Cleared)
        return answer.files

    async def ping(self) -> float:
        """Seconds for a round trip to the daemon."""
        connection = await self._connect()
        start = time.perf_counter()
        await connection.ask(Ping, {}, self.timeout)
        return time.perf_counter() - start

    async def close(self) -> None:
        """Cancel what still runs and leave; calls that wait in other tasks raise Cancelled."""
        async with self._lock:
            self._closed = True
            if self._connection is not None:
                await self._connection.close()
                self._connection = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _stream(self, params: dict[str, Any]) -> AsyncGenerator[Tokens | Done, None]:
        connection = await self._connect()
        request = connection.open(Generate, params)
        finished = False
        try:
            while not finished:
                event = await connection.wait(request, None)
                finished = isinstance(event, Done)
                if isinstance(event, Tokens | Done):
                    yield event
        except DraftdError:
            finished = True  # the error ended it
            raise
        finally:
            connection.leave(request, finished)

    async def _connect(self) -> _Connection:
        async with self._lock:
            if self._closed:
                raise RuntimeError("this AsyncClient is closed: make another")
            if self._connection is not None and self._connection.down is not None:
                await self._connection.close()
                self._connection = None
            if self._connection is None:
                connection = _Connection(self.endpoint)
                try:
                    await connection.shake_hands(self.timeout, self.name)
                except BaseException:
                    await connection.close()
                    raise
                self._connection = connection
            return self._connection


class _Connection:
    """One DEALER socket, read in a callback whenever its file descriptor or its monitor's stirs."""

    def __init__(self, endpoint: str) -> None:
        self.down: DraftdError | None = None  # why it is of no more use
        self._endpoint = endpoint
        self._session = Session()
        self._news: dict[str, asyncio.Event] = {}  # by open request
        self._changed = asyncio.Event()  # the connection came up or went down
        self._heard = time.monotonic()  # when a frame came last, or was first awaited
        link.look(endpoint)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        link.configure(self._socket)
        self._monitor = self._socket.get_monitor_socket(link.WATCHED)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.FD, self._read)
        self._loop.add_reader(self._monitor.FD, self._read)

    async def shake_hands(self, timeout: float, name: str) -> None:
        """Connect and say hello; Unreachable or UnsupportedVersion."""
        self._socket.connect(self._endpoint)
        self._read()
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            raise link.absent(self._endpoint) from None
        if self.down is not None:
            raise link.absent(self._endpoint)
        link.check_welcome(await self.ask(Hello, {"client": name}, timeout))

    async def ask(self, kind: type[Message], fields: dict[str, Any], limit: float) -> Event:
        """Send a message that has one answer, and wait for it, `limit` seconds at most."""
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
        self._heard = time.monotonic()
        self._send(frame)
        return request

    def leave(self, request: str, finished: bool) -> None:
        """Forget a request, and cancel it unless it is finished."""
        self._session.close(request)
        del self._news[request]
        if not finished and self.down is None:
            self._send(cancel(request))

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
                if limit is not None:
                    raise link.silent(self._endpoint, limit) from None
                quiet = time.monotonic() - max(self._heard, start)
                if quiet > link.SILENCE:
                    self._fail(link.silent(self._endpoint, quiet))
                else:
                    self._send(encode(Ping(id=link.PING_ID)))
        return event

    async def close(self) -> None:
        if self._socket.closed:
            return
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
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:  # no connection any more, or a daemon that does not read
            self._fail(link.gone(self._endpoint))
        self._read()  # sending can take the news off the file descriptor

    def _read(self) -> None:
        lost = False
        while _readable(self._monitor):
            up = link.change(self._monitor.recv_multipart(zmq.NOBLOCK))
            lost = lost or up is False
            if up:
                self._changed.set()
        try:
            while _readable(self._socket):
                self._heard = time.monotonic()
                for request in self._session.feed(self._socket.recv(zmq.NOBLOCK)):
                    self._news[request].set()
        except DraftdError as error:
            self._fail(error)
        if lost:
            self._loop.call_later(link.LAST_WORDS / 1000, self._fail, link.gone(self._endpoint))

    def _fail(self, error: DraftdError) -> None:
        if self.down is None:
            self.down = error
            self._session.fail(error)
            self._changed.set()
            for news in self._news.values():
                news.set()


def _readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
