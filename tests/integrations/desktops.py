"""A session bus of its own with the D-Bus service on it, and programs that call it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from tests.daemon.conftest import Daemon

pytestmark = pytest.mark.skipif(
    shutil.which("dbus-daemon") is None, reason="needs dbus-daemon (apt: dbus-daemon)"
)

NAME, PATH = "org.draftd.Assistant1", "/org/draftd/Assistant1"
KRUNNER = "org.kde.krunner1"
LIMIT = 30.0  # seconds


@dataclass
class Desktop:
    address: str
    env: dict[str, str]
    data: Path  # XDG_DATA_HOME

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "draftd_desktop.main", *arguments]
        return subprocess.Popen(
            command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def gdbus(self, member: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["gdbus", "call", "--session", "--dest", NAME, "--object-path", PATH, "--method"]
        return subprocess.run(
            [*command, f"{NAME}.{member}", *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )


@contextmanager
def desktop(installed: Path, data: Path) -> Iterator[Desktop]:
    """A session bus that finds the services installed in `data`, and what a program on it sees."""
    env = {**os.environ, "PYTHONPATH": str(installed), "XDG_DATA_HOME": str(data), "XDG_DATA_DIRS": str(data)}
    command = ["dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address=1"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stdout is not None
            address = daemon.stdout.readline().strip()
            yield Desktop(address, {**env, "DBUS_SESSION_BUS_ADDRESS": address}, data)
        finally:
            daemon.terminate()


@pytest.fixture(scope="module")
def installed(install: Callable[[str], Path]) -> Path:
    return install("desktop")


@pytest.fixture(scope="module")
def desk(installed: Path, shared: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desktop]:
    with desktop(installed, tmp_path_factory.mktemp("data")) as made:
        done = made.start("--endpoint", shared.endpoint, "install")
        complaint = done.communicate(timeout=LIMIT)[1]
        assert complaint == "", complaint
        yield made


@dataclass
class Caller:
    """A program on the bus, and the assistant's signals that reach it."""

    bus: MessageBus
    signals: asyncio.Queue[tuple[str, list[Any]]] = field(default_factory=asyncio.Queue)

    async def call(self, member: str, signature: str = "", body: list[Any] | None = None) -> Message:
        return await self.send(Message(NAME, PATH, NAME, member, signature=signature, body=body or []))

    async def send(self, message: Message) -> Message:
        reply = await self.bus.call(message)
        assert reply is not None
        return reply

    async def ask(self, prompt: str, **options: Variant) -> str:
        reply = await self.call("Ask", "sa{sv}", [prompt, options])
        assert reply.message_type is MessageType.METHOD_RETURN, reply.body
        return str(reply.body[0])

    async def krunner(self, member: str, signature: str = "", *body: str) -> Any:
        message = Message(NAME, "/krunner", KRUNNER, member, signature=signature, body=list(body))
        reply = await self.send(message)
        assert reply.message_type is MessageType.METHOD_RETURN, reply.body
        return reply.body[0] if reply.body else None

    async def answer(self) -> tuple[str, str, list[Any]]:
        """The text of the tokens up to an answer's end, and that end."""
        text = ""
        while (got := await self.signals.get())[0] == "Token":
            text += got[1][1]
        return text, *got


@asynccontextmanager
async def caller(desk: Desktop, listens: bool = False) -> AsyncIterator[Caller]:
    """`listens`: it asks the bus for the signals of all, not only for those sent to it."""
    made = Caller(await MessageBus(bus_address=desk.address).connect())

    def seen(message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.interface == NAME:
            made.signals.put_nowait((message.member or "", message.body))

    made.bus.add_message_handler(seen)
    if listens:
        bus, path = "org.freedesktop.DBus", "/org/freedesktop/DBus"
        rule = f"type='signal',interface='{NAME}'"
        await made.send(Message(bus, path, bus, "AddMatch", signature="s", body=[rule]))
    try:
        yield made
    finally:
        made.bus.disconnect()


def run(work: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT):
            await work

    asyncio.run(limited())


def expected(daemon: Daemon, **params: Any) -> Any:
    return daemon.client().complete(**params)


def carried(text: str) -> str:
    """What D-Bus makes of a text: it has no zero bytes, of which the random model has some."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
