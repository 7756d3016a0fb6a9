"""Objects on the bus: calls are checked against their interface's XML, and answered by coroutines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from dbus_fast import ErrorType, Message, MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.introspection import Node

from draftd.ipc import DraftdError

INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
Method = Callable[[Message], Awaitable[list[Any]]]  # a call's reply, by the interface's out arguments


@dataclass(frozen=True, slots=True)
class Exported:
    """One object with one interface; the XML lies beside this file, under the interface's name."""

    path: str
    interface: str
    methods: Mapping[str, Method]

    @property
    def xml(self) -> str:
        return resources.files(__package__).joinpath(f"{self.interface}.xml").read_text("utf-8")

    def signatures(self) -> dict[str, tuple[str, str]]:
        """What each method takes and returns."""
        (interface,) = Node.parse(self.xml).interfaces
        return {each.name: (each.in_signature, each.out_signature) for each in interface.methods}


def export(bus: MessageBus, exported: Exported) -> None:
    """Answer the calls of an object from now on."""
    signatures = exported.signatures()
    assert signatures.keys() == exported.methods.keys()
    working: set[asyncio.Task[None]] = set()  # the loop itself would let them be collected

    def route(message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL or message.path != exported.path:
            return None
        if message.interface == INTROSPECTABLE and message.member == "Introspect":
            return Message.new_method_return(message, "s", [exported.xml])
        if message.interface not in (exported.interface, None) or message.member not in signatures:
            return None
        takes, returns = signatures[message.member]
        if message.signature != takes:
            sentence = f"{message.member} takes ({takes}), not ({message.signature})"
            return Message.new_error(message, ErrorType.INVALID_SIGNATURE, sentence)
        task = asyncio.create_task(answer(bus, message, exported.methods[message.member], returns))
        working.add(task)
        task.add_done_callback(working.discard)
        return True

    bus.add_message_handler(route)


async def answer(bus: MessageBus, message: Message, method: Method, returns: str) -> None:
    try:
        reply = Message.new_method_return(message, returns, await method(message))
    except DraftdError as error:
        reply = Message.new_error(message, f"org.draftd.Error.{error.code}", error.message)
    except Exception:
        logging.exception("%s failed", message.member)
        reply = Message.new_error(
            message, ErrorType.INTERNAL_ERROR, "an error of draftd-desktop's own: see its log"
        )
    send(bus, reply)


def send(bus: MessageBus, message: Message) -> None:
    """Send a message, if the bus is still there: what ends with it has nobody to be told."""
    if bus.connected:
        bus.send(message)


def text(given: str) -> str:
    """A text as D-Bus can carry it: without zero bytes, for which one is thrown off the bus."""
    return given.replace("\0", "\N{REPLACEMENT CHARACTER}")


async def watch(bus: MessageBus, rule: str, seen: Callable[[Message], None]) -> None:
    """Have the bus send what a match rule selects, and call `seen` with each signal that comes."""

    def route(message: Message) -> None:
        if message.message_type is MessageType.SIGNAL:
            seen(message)

    bus.add_message_handler(route)
    await call_bus(bus, "AddMatch", "s", [rule])


async def call_bus(bus: MessageBus, member: str, signature: str, body: list[Any]) -> None:
    """A call to the bus daemon itself."""
    name, path = "org.freedesktop.DBus", "/org/freedesktop/DBus"
    reply = await bus.call(Message(name, path, name, member, signature=signature, body=body))
    assert reply is not None
    if reply.message_type is MessageType.ERROR:
        raise RuntimeError(f"the bus refused {member}: {reply.body}")
