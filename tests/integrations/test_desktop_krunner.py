"""The D-Bus service as KRunner calls it, with and without a desktop that shows notifications."""

from __future__ import annotations

import asyncio
from typing import Any

from dbus_fast import Message, MessageType
from dbus_fast.aio import MessageBus

from tests.daemon.conftest import Daemon, cancelling
from tests.integrations.conftest import paused
from tests.integrations.desktops import Desktop, caller, carried, desk, expected, installed, pytestmark, run

__all__ = ["desk", "installed", "pytestmark"]
NOTIFICATIONS = "org.freedesktop.Notifications"
SYSTEM = "Answer in at most four sentences of plain text."


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
