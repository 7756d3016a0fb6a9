"""The D-Bus service on a bus of its own: a real bus daemon that starts it, gdbus and dbus-fast as callers."""

from __future__ import annotations

import asyncio
import configparser
import os
import shutil
import signal
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
from tests.integrations.conftest import cancelling, paused

pytestmark = pytest.mark.skipif(
    shutil.which("dbus-daemon") is None, reason="needs dbus-daemon (apt: dbus-daemon)"
)

NAME, PATH = "org.draftd.Assistant1", "/org/draftd/Assistant1"
KRUNNER = "org.kde.krunner1"
NOTIFICATIONS = "org.freedesktop.Notifications"
SYSTEM = "Answer in at most four sentences of plain text."
LIMIT = 30.0  # seconds
LONG = {  # an answer that does not end by itself
    "schema": Variant("s", '{"type": "string", "minLength": 10000}'),
    "max_tokens": Variant("u", 900),
    "speculate": Variant("s", "off"),
    "stop": Variant("as", ["never said"]),
}


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
        assert done.communicate(timeout=LIMIT)[1] == ""
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


def test_the_bus_starts_it_for_a_shell_script(desk: Desktop) -> None:
    options = """{'max_tokens': <40>, 'schema': <'{"type": "boolean"}'>}"""
    done = desk.gdbus("Complete", "is it?", options)
    assert done.stdout in ("('true',)\n", "('false',)\n"), done.stderr


def test_an_answer_goes_to_who_asked_alone(desk: Desktop, shared: Daemon) -> None:
    history = [["user", "hello"], ["assistant", "yes"]]
    options = {
        "system": Variant("s", "be brief"),
        "messages": Variant("a(ss)", history),
        "max_tokens": Variant("u", 20),
        "temperature": Variant("d", 0.9),
        "seed": Variant("t", 5),
    }
    said = [["system", "be brief"], *history, ["user", "more"]]
    messages = [{"role": role, "content": content} for role, content in said]
    reply = expected(shared, messages=messages, max_tokens=20, temperature=0.9, seed=5)

    async def work() -> None:
        async with caller(desk) as app, caller(desk, listens=True) as stranger:
            request = await app.ask("more", **options)
            text, member, (about, reason, figures) = await app.answer()
            assert (text, member, about, reason) == (
                carried(reply.text),
                "Done",
                request,
                reply.finish_reason,
            )
            told = {name: variant.value for name, variant in figures.items()}
            assert told["prompt_tokens"] == reply.usage.prompt_tokens
            assert told["completion_tokens"] == reply.usage.completion_tokens
            assert told["drafted"] >= told["accepted"] >= 0
            await stranger.call("Cancel", "s", ["none"])  # what was sent to it before has come by now
            assert stranger.signals.empty()

    run(work())


def test_only_who_asked_cancels(desk: Desktop, shared: Daemon) -> None:
    async def work() -> None:
        async with caller(desk) as app, caller(desk) as stranger:
            request = await app.ask("hello", **LONG)
            assert (await stranger.call("Cancel", "s", [request])).body == [False]
            assert (await app.call("Cancel", "s", [request])).body == [True]
            assert (await app.answer())[1:] == ("Done", [request, "cancelled", {}])
            assert (await app.call("Cancel", "s", [request])).body == [False]

    with cancelling(shared):
        run(work())


def test_who_leaves_the_bus_wants_no_answer(desk: Desktop, shared: Daemon) -> None:
    async def work() -> None:
        async with caller(desk) as app:
            await app.ask("hello", **LONG)
            assert (await app.signals.get())[0] == "Token"

    with cancelling(shared):
        run(work())


@pytest.mark.parametrize(
    ("signature", "body", "error", "words"),
    [
        ("sa{sv}", ["hello", {"colour": Variant("s", "red")}], "org.draftd.Error.invalid_request", "colour"),
        ("sa{sv}", ["hello", {"seed": Variant("s", "x")}], "org.draftd.Error.invalid_request", "seed"),
        (
            "sa{sv}",
            ["hello", {"schema": Variant("s", "{")}],
            "org.draftd.Error.invalid_request",
            "JSON schema",
        ),
        ("sa{sv}", ["hello", {"messages": Variant("as", [])}], "org.draftd.Error.invalid_request", "a(ss)"),
        ("s", ["hello"], "org.freedesktop.DBus.Error.InvalidSignature", "takes (sa{sv}), not (s)"),
    ],
)
def test_a_wrong_call_is_told_so(
    desk: Desktop, signature: str, body: list[Any], error: str, words: str
) -> None:
    async def work() -> None:
        async with caller(desk) as app:
            reply = await app.call("Ask", signature, body)
            assert (reply.error_name, words in reply.body[0]) == (error, True), reply.body

    run(work())


def test_krunner_gets_one_match_and_nothing_is_generated(desk: Desktop, shared: Daemon) -> None:
    def asked() -> tuple[int, int, int]:
        requests = shared.status().requests
        return requests["running"], requests["waiting"], requests["finished"]

    before = asked()

    async def work() -> None:
        async with caller(desk) as app:
            assert await app.krunner("Actions") == []
            assert await app.krunner("Match", "s", "wh") == []
            for end in range(3, 12):
                query = "what is love"[:end]
                ((found, text, icon, category, relevance, properties),) = await app.krunner(
                    "Match", "s", query
                )
                assert (found, text, icon) == (query.strip(), f"Ask: {query.strip()}", "dialog-question")
                assert (category, 0 < relevance < 1) == (30, True)
                assert properties["actions"].value == []
            await app.krunner("SetActivationToken", "s", "token")
            await app.krunner("Teardown")

    run(work())
    assert asked() == before


def test_krunner_s_answer_replaces_its_notification(desk: Desktop, shared: Daemon) -> None:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "what <is>"}]
    text = expected(shared, messages=messages, max_tokens=300).text.strip()

    async def work() -> None:
        async with caller(desk) as shell, caller(desk) as krunner:
            shown = await notifications(shell.bus)
            await krunner.krunner("Run", "ss", "what <is>", "")
            first, second = await shown.get(), await shown.get()
            assert first[:5] == ["draftd", 0, "dialog-question", "what <is>", "…"]
            escaped = carried(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            assert second[:5] == ["draftd", 7, "dialog-question", "what <is>", escaped]

    run(work())


def test_a_closed_notification_ends_its_answer(desk: Desktop, shared: Daemon) -> None:
    async def work() -> None:
        async with caller(desk) as shell, caller(desk) as krunner:
            shown = await notifications(shell.bus)
            await krunner.krunner("Run", "ss", "what is it", "")
            assert (await shown.get())[4] == "…"
            closed = Message.new_signal(
                "/org/freedesktop/Notifications", NOTIFICATIONS, "NotificationClosed", "uu", [7, 2]
            )
            await shell.bus.send(closed)
            await shell.krunner("Teardown")  # from the same connection: the signal has been seen by now
            assert shown.empty()

    with cancelling(shared), paused(shared):
        run(work())


def test_without_notifications_krunner_s_answer_is_signalled_to_all(desk: Desktop, shared: Daemon) -> None:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "what is it"}]
    reply = expected(shared, messages=messages, max_tokens=300)

    async def work() -> None:
        async with caller(desk) as krunner, caller(desk, listens=True) as applet:
            await krunner.krunner("Run", "ss", "what is it", "")
            got, member, (_, reason, _) = await applet.answer()
            assert (got, member, reason) == (carried(reply.text), "Done", reply.finish_reason)

    run(work())


def test_no_daemon_a_second_service_and_an_orderly_end(installed: Path, tmp_path: Path) -> None:
    with desktop(installed, tmp_path) as desk:
        service = desk.start("--endpoint", f"ipc://{tmp_path}/none.sock")

        async def work() -> None:
            async with caller(desk) as app:
                while (await app.call("Cancel", "s", ["1"])).message_type is MessageType.ERROR:
                    await asyncio.sleep(0.05)  # until it is on the bus
                request = await app.ask("hello")
                text, member, (about, code, sentence) = await app.answer()
                assert (text, member, about, code) == ("", "Error", request, "unreachable")
                assert "no daemon" in sentence

        run(work())
        second = desk.start()
        assert "another draftd-desktop runs" in second.communicate(timeout=LIMIT)[1]
        assert second.returncode == 5
        service.send_signal(signal.SIGTERM)
        assert service.communicate(timeout=LIMIT) == ("", "")
        assert service.returncode == 0


def test_a_wrong_endpoint_is_said_at_once_and_not_installed(installed: Path, tmp_path: Path) -> None:
    with desktop(installed, tmp_path) as desk:
        for command in ("serve", "install"):
            wrong = desk.start("--endpoint", "draftd.sock", command)
            _, said = wrong.communicate(timeout=30)
            assert wrong.returncode == 2
            assert "endpoint 'draftd.sock' has no scheme" in said
    assert not list(tmp_path.rglob("*.service"))


def test_what_is_installed_fits_together_and_goes_again(
    desk: Desktop, shared: Daemon, tmp_path: Path
) -> None:
    plugin = configparser.ConfigParser()
    assert plugin.read(desk.data / "krunner/dbusplugins/draftd.desktop")
    entry = plugin["Desktop Entry"]
    assert (entry["X-Plasma-DBusRunner-Service"], entry["X-Plasma-DBusRunner-Path"]) == (NAME, "/krunner")
    elsewhere = Desktop(desk.address, {**desk.env, "XDG_DATA_HOME": str(tmp_path)}, tmp_path)
    for command, there in (("install", 2), ("uninstall", 0)):
        assert elsewhere.start(command).communicate(timeout=LIMIT)[1] == ""
        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == there


async def notifications(bus: MessageBus) -> asyncio.Queue[list[Any]]:
    """Be the desktop's notification service; what Notify was called with. Its notifications are number 7."""
    shown: asyncio.Queue[list[Any]] = asyncio.Queue()

    def route(message: Message) -> Message | None:
        if message.message_type is not MessageType.METHOD_CALL or message.interface != NOTIFICATIONS:
            return None
        if message.member == "GetCapabilities":
            return Message.new_method_return(message, "as", [["body", "body-markup"]])
        assert (message.member, message.signature) == ("Notify", "susssasa{sv}i")
        shown.put_nowait(message.body)
        return Message.new_method_return(message, "u", [7])

    bus.add_message_handler(route)
    await bus.request_name(NOTIFICATIONS)
    return shown
