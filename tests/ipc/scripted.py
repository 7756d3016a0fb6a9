"""A daemon that says what a test wrote for it, behind a real ROUTER socket."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from draftd.ipc import codec, messages, parts
from draftd.ipc.parse import parse_client
from draftd.ipc.version import VERSION

Say = Callable[[messages.Message], object]  # sends a message to the client that asked
Script = Callable[[messages.ClientMessage, Say], object]

USAGE = parts.Usage(prompt_tokens=3, completion_tokens=4)
STATS = parts.Stats(
    seed=7,
    rounds=2,
    drafted=4,
    accepted=3,
    accepted_by_position=[2, 1],
    draft_seconds=0.01,
    verify_seconds=0.02,
    prefill_seconds=0.03,
    overhead_seconds=0.001,
    time_to_first_token=0.04,
    tokens_per_second=50.0,
)


def answer(message: messages.ClientMessage, say: Say) -> None:
    """What a daemon says whose model always answers "Hello, Wörld!"."""
    match message:
        case messages.Hello():
            say(messages.Welcome(id=message.id, version=VERSION, daemon="scripted"))
        case messages.Ping():
            say(messages.Pong(id=message.id))
        case messages.GetStatus():
            say(messages.Status(id=message.id, state="ready", detail="ready", progress=1.0, pair="tiny"))
        case messages.Clear():
            say(messages.Cleared(id=message.id, files=2 if message.learnt else 1))
        case messages.Prefill():
            say(messages.Prefilled(id=message.id, state="complete", prompt_tokens=9, computed_tokens=5))
        case messages.Generate():
            say(messages.Accepted(id=message.id, seed=7))
            say(tokens(message.id, "Hello, ", [1, 2], [True, False], [5, 2]))
            say(tokens(message.id, "Wörld!", [3, 4], [True, True], [5, 1]))
            say(done(message.id))


def first_tokens_only(message: messages.ClientMessage, say: Say) -> None:
    """An answer that begins, and ends only when it is cancelled."""
    if isinstance(message, messages.Generate):
        say(tokens(message.id, "Hello", [1], [False], [5]))
    elif isinstance(message, messages.Cancel):
        say(done(message.id, "cancelled"))
    else:
        answer(message, say)


def told_late(by: Callable[[messages.Ping], bool] = lambda ping: True) -> Script:
    """A daemon that says a prefill is complete at the first ping behind it of which `by` is true."""
    asked: list[str] = []

    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, messages.Prefill):
            asked.append(message.id)
            return
        if asked and isinstance(message, messages.Ping) and by(message):
            say(messages.Prefilled(id=asked.pop(), state="complete"))
        answer(message, say)

    return script


def tokens(
    request: str, text: str, ids: list[int], drafted: list[bool], lengths: list[int]
) -> messages.Tokens:
    return messages.Tokens(id=request, text=text, tokens=ids, drafted=drafted, lengths=lengths)


def done(request: str, reason: Any = "stop") -> messages.Done:
    return messages.Done(id=request, finish_reason=reason, usage=USAGE, stats=STATS)


class ScriptedDaemon:
    """Runs the script in a thread for every message; `heard` holds all that came, in order."""

    def __init__(self, path: Path, script: Script = answer) -> None:
        self.endpoint = f"ipc://{path}"
        self.script = script
        self.heard: queue.Queue[messages.ClientMessage] = queue.Queue()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 1000  # ms: what was said before stop() still arrives
        self._socket.bind(self.endpoint)
        self._stopped, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait_for(self, kind: type[messages.Message]) -> Any:
        """The next message of a kind that the clients send."""
        while not isinstance(message := self.heard.get(timeout=10), kind):
            pass
        return message

    def stop(self) -> None:
        """Go away as a killed daemon does: the connections drop."""
        if self._thread.is_alive():
            os.write(self._stop, b"\0")
            self._thread.join()
            self._socket.close()
            self._context.term()
            os.close(self._stop)
            os.close(self._stopped)

    def __enter__(self) -> ScriptedDaemon:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._stopped, zmq.POLLIN)
        while self._stopped not in dict(poller.poll()):
            client, frame = self._socket.recv_multipart()
            message = parse_client(codec.decode(frame))
            self.heard.put(message)
            self.script(message, self._say_to(client))

    def _say_to(self, client: bytes) -> Say:
        return lambda message: self._socket.send_multipart([client, codec.encode(message)])
