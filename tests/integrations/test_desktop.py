"""The D-Bus service on a bus of its own: a real bus daemon that starts it, gdbus and dbus-fast as callers."""

from __future__ import annotations

import asyncio
import configparser
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import MessageType, Variant

from tests.daemon.conftest import Daemon, cancelling
from tests.integrations.desktops import (
    LIMIT,
    NAME,
    Desktop,
    caller,
    carried,
    desk,
    desktop,
    expected,
    installed,
    pytestmark,
    run,
)

__all__ = ["desk", "installed", "pytestmark"]
LONG = {  # an answer that does not end by itself
    "schema": Variant("s", '{"type": "string", "minLength": 10000}'),
    "max_tokens": Variant("u", 900),
    "speculate": Variant("s", "off"),
    "stop": Variant("as", ["never said"]),
}


@pytest.mark.skipif(shutil.which("gdbus") is None, reason="needs gdbus (apt: libglib2.0-bin)")
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


def test_its_end_with_an_answer_on_its_way_is_orderly_too(
    installed: Path, shared: Daemon, tmp_path: Path
) -> None:
    with desktop(installed, tmp_path) as desk:
        service = desk.start("--endpoint", shared.endpoint)

        async def work() -> None:
            async with caller(desk) as app:
                while (await app.call("Cancel", "s", ["1"])).message_type is MessageType.ERROR:
                    await asyncio.sleep(0.05)  # until it is on the bus
                await app.ask("hello", **LONG)
                assert (await app.signals.get())[0] == "Token"
                service.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(service.communicate, None, LIMIT) == ("", "")

        with cancelling(shared):
            run(work())
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
