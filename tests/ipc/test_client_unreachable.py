"""What both clients say where no daemon answers, and how long they wait for one that is silent."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import zmq

from draftd.ipc import AsyncClient, Client, link, messages
from draftd.ipc.errors import InvalidEndpoint, Unreachable
from draftd.ipc.keys import ClientKeys
from draftd.ipc.messages import Generate, Hello
from tests.ipc import scripted
from tests.ipc.conftest import Connect
from tests.ipc.scripted import Say, ScriptedDaemon


def test_no_daemon_is_said_at_once(tmp_path: Path, connect: Connect) -> None:
    endpoint = f"ipc://{tmp_path}/none.sock"
    start = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        connect(endpoint).ping()
    assert str(caught.value) == f"no daemon answers at {endpoint}; start it with `draftd serve`"
    assert time.monotonic() - start < 2


def test_a_socket_of_somebody_else(tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", forbidden)
    with pytest.raises(Unreachable, match="no permission to reach"):
        connect(f"ipc://{tmp_path}/d.sock").ping()
    monkeypatch.undo()


def test_a_stale_socket_file_is_no_daemon(tmp_path: Path, connect: Connect) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "d.sock"))
    start = time.monotonic()
    with pytest.raises(Unreachable, match="no daemon answers"):
        connect(f"ipc://{tmp_path}/d.sock").ping()
    assert time.monotonic() - start < 2


def test_something_else_at_the_socket(tmp_path: Path, connect: Connect) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "d.sock"))
        other.listen()
        with pytest.raises(Unreachable, match="no daemon answers"):
            connect(f"ipc://{tmp_path}/d.sock", timeout=0.2).ping()


@pytest.mark.parametrize("host", ["*", "my desk"])
def test_an_address_that_no_app_can_connect_to(connect: Connect, host: str) -> None:
    public, secret = zmq.curve_keypair()
    with pytest.raises(InvalidEndpoint, match="no app can connect to it"):
        connect(f"tcp://{host}:5555", keys=ClientKeys(public, public, secret)).ping()


def test_a_daemon_that_turns_connections_away(tmp_path: Path, connect: Connect) -> None:
    def turn_away() -> None:
        while True:
            try:
                gate.accept()[0].close()
            except OSError:  # shut down
                return

    with socket.socket(socket.AF_UNIX) as gate:
        gate.bind(str(tmp_path / "d.sock"))
        gate.listen()
        thread = threading.Thread(target=turn_away)
        thread.start()
        try:
            with pytest.raises(Unreachable, match="takes no further connections; its log says why"):
                connect(f"ipc://{tmp_path}/d.sock").ping()
        finally:
            gate.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def test_a_daemon_that_never_answers(daemon: ScriptedDaemon, connect: Connect) -> None:
    daemon.script = lambda message, say: None
    with pytest.raises(Unreachable, match="has not answered"):
        connect(daemon.endpoint, timeout=0.2).ping()


def test_a_stuck_daemon_is_noticed(
    daemon: ScriptedDaemon, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_EVERY", 0.05)
    monkeypatch.setattr(link, "SILENCE", 0.3)
    daemon.script = lambda message, say: scripted.answer(message, say) if isinstance(message, Hello) else None
    with pytest.raises(Unreachable, match="has not answered"):
        connect(daemon.endpoint, patience=0).complete(prompt="Hi")
    daemon.wait_for(messages.Ping)


def test_a_stuck_daemon_is_noticed_by_an_app_that_asks_on(
    daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_EVERY", 0.05)
    monkeypatch.setattr(link, "SILENCE", 0.3)
    daemon.script = lambda message, say: scripted.answer(message, say) if isinstance(message, Hello) else None
    caught: list[Unreachable] = []

    def blocking() -> None:
        with pytest.raises(Unreachable) as error:
            client.complete(prompt="Hi")
        caught.append(error.value)

    with Client(daemon.endpoint, timeout=0.1, patience=0) as client:
        thread = threading.Thread(target=blocking)
        thread.start()
        end = time.monotonic() + 5
        while thread.is_alive() and time.monotonic() < end:
            with pytest.raises(Unreachable):
                client.ping()
        assert len(caught) == 1, "each ping put off what the silence means"

    async def ask() -> None:
        async with AsyncClient(daemon.endpoint, timeout=0.1, patience=0) as other:
            answer = asyncio.create_task(other.complete(prompt="Hi"))
            end = time.monotonic() + 5
            while not answer.done() and time.monotonic() < end:
                with pytest.raises(Unreachable):
                    await other.ping()
            with pytest.raises(Unreachable):
                answer.result()

    asyncio.run(ask())


def test_a_slow_daemon_is_waited_for(
    daemon: ScriptedDaemon, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_EVERY", 0.05)
    monkeypatch.setattr(link, "SILENCE", 0.2)
    asked: list[Any] = []
    pings: list[int] = []

    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate):
            asked.append(message)
        elif isinstance(message, messages.Ping) and len(pings) < 10:  # half a second, longer than SILENCE
            pings.append(1)
            say(messages.Pong(id=message.id))
        else:
            scripted.answer(asked[0] if asked else message, say)

    daemon.script = script
    assert connect(daemon.endpoint).complete(prompt="Hi").text == "Hello, Wörld!"


@pytest.mark.parametrize("call", ["load", "unload"])
def test_a_load_takes_as_long_as_it_takes(
    daemon: ScriptedDaemon, connect: Connect, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(link, "PING_EVERY", 0.05)
    monkeypatch.setattr(link, "SILENCE", 0.2)
    asked: list[str] = []
    pings: list[int] = []

    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, messages.Load | messages.Unload):
            asked.append(message.id)
        elif isinstance(message, messages.Ping):
            pings.append(1)
            say(messages.Pong(id=message.id))
            if len(pings) == 10:  # half a second, longer than SILENCE
                say(messages.Status(id=asked[0], state="ready"))
        else:
            scripted.answer(message, say)

    daemon.script = script
    assert getattr(connect(daemon.endpoint), call)().state == "ready"


def test_a_daemon_that_answered_while_the_loop_was_held_up_is_not_silent(daemon: ScriptedDaemon) -> None:
    async def ask() -> None:
        client = AsyncClient(daemon.endpoint, timeout=0.2)
        asked = asyncio.create_task(client.ping())
        while not asked.done():
            await asyncio.sleep(0)
            time.sleep(0.3)  # what an app computes between two turns of its loop
        await asked
        await client.close()

    asyncio.run(ask())
