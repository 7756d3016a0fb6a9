"""A front without an engine: real sockets, turned by hand or by a thread; the test is the engine."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import zmq

from draftd.daemon.front import Front
from draftd.daemon.lifetime import Stage
from draftd.daemon.settings import Settings
from draftd.ipc.parts import Stats

SECONDS = 10_000  # milliseconds in which what must come has come
LONG = 16_777_150  # characters: they fit a frame, and in an error that quotes them they do not
# Messages that are wrong for a word of that length.
QUOTED: list[dict[str, Any]] = [
    {"type": "load", "model": "A" * LONG},
    {"type": "generate", "prompt": "x", "logit_bias": {"b" * LONG: 1.0}},
    {
        "type": "generate",
        "messages": [{"role": "user", "content": "x"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {bytes(LONG // 4): 1}}}],
    },
]


def buried(levels: int) -> bytes:
    """A request whose schema is a map within so many others, deeper than msgpack itself may pack."""
    grammar = msgpack.packb({"kind": "json_schema"})
    frame = msgpack.packb({"type": "generate", "id": "1", "prompt": "x", "max_tokens": 1, "grammar": {}})
    deep = b"\x81\xa1a" * levels + b"\x80"
    return bytes(frame[:-1] + b"\x82" + grammar[1:] + b"\xa6source" + deep)


class App:
    """A bare DEALER socket: what a client in another language would be."""

    def __init__(self, address: str, **options: Any) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        for name, value in options.items():
            setattr(self.socket, name, value)
        self.socket.connect(address)

    def say(self, kind: str, request: str = "1", **fields: Any) -> None:
        self.socket.send(msgpack.packb({"type": kind, "id": request, **fields}))

    def hear(self) -> dict[str, Any]:
        assert self.socket.poll(SECONDS), "nothing came"
        body: dict[str, Any] = msgpack.unpackb(self.socket.recv())
        return body

    def close(self) -> None:
        self.context.destroy(linger=0)


class Desk:
    """The front at work: `told` is what it has told the engine."""

    def __init__(self, address: str, **settings: Any) -> None:
        self.address = address
        self.front = Front(Settings(**settings), address)
        self.told: list[dict[str, Any]] = []
        self.front.jobs.tell_engine = self.told.append
        self.front.apps.bind(address)
        self.front.poller.register(self.front.apps.socket, zmq.POLLIN)
        if self.front.peers.zap is not None:
            self.front.poller.register(self.front.peers.zap, zmq.POLLIN)
        self.front.life.state = "ready"
        self.front.life.lifetime.stage = Stage.IN
        self._apps: list[App] = []

    def app(self, **options: Any) -> App:
        self._apps.append(App(self.address, **options))
        return self._apps[-1]

    def turn(self) -> None:
        """Let the front take what one app has just said."""
        assert self.front.apps.socket.poll(SECONDS), "nothing came"
        self.front._hear_apps()

    def ask(self, app: App, kind: str, request: str = "1", **fields: Any) -> dict[str, Any]:
        app.say(kind, request, **fields)
        self.turn()
        return app.hear()

    def generate(self, app: App, request: str = "1", **fields: Any) -> int:
        """Open a request; its key."""
        assert self.ask(app, "generate", request, prompt="x", **fields)["type"] == "accepted"
        return int(self.told[-1]["key"])

    def hear(self, app: App) -> dict[str, Any]:
        """The next message, while the front looks now and then whether the app's connection has room."""
        now = time.monotonic()
        for look in range(2000):
            if app.socket.poll(5):
                return app.hear()
            self.front.expiry.tick(now + look / 100)
        raise AssertionError("nothing came")

    def stuff(self, key: int) -> int:
        """Give a request tokens until the connection of its app, which does not read, is full; how many."""
        count = 0
        while self.front.jobs.by_key[key].delivery.since is None:
            self.tokens(key, count)
            count += 1
            assert count < 1_000_000
        for token in range(count, count + 100):
            time.sleep(0.001)  # ZeroMQ's own thread finds room for a few more
            self.tokens(key, token)
        return count + 100

    def tokens(self, key: int, *tokens: int) -> None:
        """The engine found tokens; the text of each is one letter."""
        self.front.jobs.relay(
            {
                "type": "tokens",
                "key": key,
                "text": "".join(chr(97 + token % 26) for token in tokens),
                "tokens": list(tokens),
                "drafted": [False] * len(tokens),
                "lengths": [1] * len(tokens),
                "rounds": [0, 0],
                "tool_calls": [],
            }
        )

    def done(self, key: int, **stats: Any) -> None:
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "cached_tokens": 0}
        told = {**Stats.nothing(seed=1).model_dump(), **stats}
        self.front.jobs.relay(
            {
                "type": "done",
                "key": key,
                "finish_reason": "stop",
                "usage": usage,
                "stats": told,
                "books": {"queue_seconds": 0.0, "seconds": 0.0, "positions": {}},
            }
        )

    @contextlib.contextmanager
    def turning(self) -> Iterator[None]:
        """Turn in a thread of its own, for clients that wait."""

        def turn() -> None:
            while not self.front.stopping:
                self.front._turn()

        self.front.poller.register(self.front.wake.fileno(), zmq.POLLIN)
        thread = threading.Thread(target=turn)
        thread.start()
        try:
            yield
        finally:
            self.front.waker.send(bytes([signal.SIGTERM]))
            thread.join(10)

    def close(self) -> None:
        for app in self._apps:
            app.close()
        self.front.engine.stop()
        self.front.apps.close()
        self.front.peers.close()
        self.front.context.term()
        self.front.wake.close()
        self.front.waker.close()


@contextlib.contextmanager
def desk(directory: Path, address: str = "", **settings: Any) -> Iterator[Desk]:
    made = Desk(address or f"ipc://{directory}/d.sock", **settings)
    try:
        yield made
    finally:
        made.close()


def cancelled(desk: Desk) -> list[int]:
    """The keys that the engine was told to give up."""
    return [body["key"] for body in desk.told if body["type"] == "cancel"]
