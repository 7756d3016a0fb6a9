"""The desktop's notifications, over org.freedesktop.Notifications."""

from __future__ import annotations

import html
from typing import Any

from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from draftd_desktop.exported import text

NAME = "org.freedesktop.Notifications"
PATH = "/org/freedesktop/Notifications"
CLOSED = f"type='signal',interface='{NAME}',member='NotificationClosed'"
STAYS = 0  # milliseconds: until it is closed


async def show(bus: MessageBus, title: str, body: str, replaces: int = 0) -> int:
    """Show a notification, or another in its place; its id, 0 if the desktop has no notifications."""
    capabilities = await _call(bus, "GetCapabilities", "", [])
    if capabilities is None:
        return 0
    if "body-markup" in capabilities:
        body = html.escape(body, quote=False)
    hints = {"category": Variant("s", "im.received")}
    given = ["draftd", replaces, "dialog-question", title, text(body), [], hints, STAYS]
    return int(await _call(bus, "Notify", "susssasa{sv}i", given) or 0)


async def _call(bus: MessageBus, member: str, signature: str, body: list[Any]) -> Any:
    """What a method returns; None if it fails, for want of a notification service or otherwise."""
    if not bus.connected:
        return None
    reply = await bus.call(Message(NAME, PATH, NAME, member, signature=signature, body=body))
    if reply is None or reply.message_type is MessageType.ERROR:
        return None
    return reply.body[0]
