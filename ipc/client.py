"""The blocking client; several threads may share one."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from types import TracebackType
from typing import Any

from draftd.ipc import link
from draftd.ipc.connection import Connection
from draftd.ipc.endpoint import resolve
from draftd.ipc.errors import Cancelled, DraftdError, Unreachable
from draftd.ipc.keys import ClientKeys
from draftd.ipc.messages import (
    Clear,
    Cleared,
    Done,
    Generate,
    GetStatus,
    Load,
    Message,
    Ping,
    Prefill,
    Prefilled,
    Status,
    Tokens,
    Unload,
)
from draftd.ipc.progress import Progress, pause_after
from draftd.ipc.session import Reply, check, reply


class Client:
    """An app's connection to the daemon; it connects at the first call, and anew after a lost connection.

    `timeout`: seconds to wait for the daemon to take the connection and to answer hello, status and ping.
    A generation may take as long as the daemon shows signs of life. `name`: the app's, by default its
    program's; requests of one name may draft from earlier ones, those of the name "" from themselves only.
    `patience`: seconds in which a stream whose daemon went away looks for the next and goes on; 0: none.
    `keys`: for tcp; by default from the files DRAFTD_SERVER_KEY and DRAFTD_CLIENT_KEY name.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        timeout: float = 5.0,
        name: str | None = None,
        patience: float = 30.0,
        keys: ClientKeys | None = None,
    ) -> None:
        self.endpoint = resolve(endpoint)
        self.timeout = timeout
        self.name = link.program_name() if name is None else name
        self.patience = patience
        self.keys = link.keys_for(self.endpoint, keys)
        self._lock = threading.RLock()  # a signal's handler may close it as its own thread connects
        self._connection: Connection | None = None
        self._closed = threading.Event()

    def generate(self, **params: Any) -> Generator[Tokens | Done, None, None]:
        """Stream an answer: Tokens as they come, then one Done. The parameters are `Generate`'s fields.

        InvalidRequest at once for wrong parameters; leaving the loop early cancels the request.
        """
        return self._stream(check(Generate, params))

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
            connection.let_go(request)
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
        return self._ask_status(GetStatus, self.timeout, full=full)

    def load(self, keep_alive: float | None = None, model: str | None = None) -> Status:
        """Have the models in memory, without a request; returns once they are.

        `keep_alive`: seconds that they stay without one; None: the daemon's setting, -1: for ever.
        """
        return self._ask_status(Load, None, keep_alive=keep_alive, model=model)

    def unload(self, model: str | None = None) -> Status:
        """Free the models' memory, when no request runs any more; returns once that is done."""
        return self._ask_status(Unload, None, model=model)

    def clear(self, learnt: bool = False) -> int:
        """Make the daemon forget what repeated text is drafted from, of all apps; how many files went.

        Models that load do so first.
        `learnt`: also what it learnt of the pairs, acceptance and costs.
        """
        answer = self._connect().ask(Clear, {"learnt": learnt}, None)
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
            self._closed.set()
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
        progress = Progress(params)
        connection = self._connect()
        while True:
            request, finished = "", False
            try:
                request = connection.open(Generate, progress.fields())
                while not finished:
                    event = connection.wait(request, None)
                    finished = isinstance(event, Done)
                    progress.saw(event)
                    if isinstance(event, Tokens | Done):
                        yield event
                    if more := progress.owed():
                        connection.give(request, more)
                return
            except DraftdError as ended:
                finished, error = True, ended
                if not progress.goes_on_after(ended):
                    raise
            finally:
                if request:
                    connection.leave(request, finished)
            connection = self._connect_again(error, progress.lost() + self.patience)

    def _connect_again(self, lost: DraftdError, end: float) -> Connection:
        """A connection to the daemon that comes after a lost one; raises what was lost if none comes."""
        pause = pause_after(lost)
        while time.monotonic() + pause < end:
            if self._closed.wait(pause):
                raise Cancelled("the client was closed")
            try:
                return self._connect()
            except Unreachable:
                pause = min(1.0, pause * 2 + 0.05)
        raise lost

    def _ask_status(self, kind: type[Message], limit: float | None, **fields: Any) -> Status:
        answer = self._connect().ask(kind, fields, limit)
        assert isinstance(answer, Status)
        return answer

    def _connect(self) -> Connection:
        connection = self._connection
        if connection is not None and connection.usable:
            return connection
        with self._lock:
            if self._closed.is_set():
                raise RuntimeError("this Client is closed: make another")
            if self._connection is None or not self._connection.usable:
                if self._connection is not None:
                    self._connection.close()
                connection = Connection(self.endpoint, self.timeout, self.name, self.keys)
                if self._closed.is_set():
                    connection.close()
                    raise Cancelled("the client was closed")
                self._connection = connection
            return self._connection
