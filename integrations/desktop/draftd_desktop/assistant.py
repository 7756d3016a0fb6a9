"""`org.draftd.Assistant1`: ask, and hear the answer as it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from dbus_fast import Message, Variant
from dbus_fast.aio import MessageBus

from draftd.ipc import AsyncClient, Done, DraftdError, Tokens
from draftd.ipc.errors import InvalidRequest
from draftd_desktop.exported import Exported, export, send, text, watch

NAME = "org.draftd.Assistant1"
PATH = "/org/draftd/Assistant1"
MAX_TOKENS = 1024  # of an answer whose length nobody named
PLAIN = (  # options that are fields of `generate` as they stand
    *("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "speculate", "conversation"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "priority", "deadline_ms"),
)
OWN = ("system", "messages", "schema")
BUS = "org.freedesktop.DBus"
GONE = f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg2=''"


class Assistant:
    """The requests that are open, by id: who asked and the task that answers."""

    def __init__(self, bus: MessageBus, client: AsyncClient) -> None:
        self.bus = bus
        self.client = client
        self.open: dict[str, tuple[str, asyncio.Task[Any]]] = {}
        self._made = 0

    async def export(self) -> None:
        methods = {"Ask": self._ask, "Cancel": self._cancel, "Complete": self._complete}
        export(self.bus, Exported(PATH, NAME, methods))
        await watch(self.bus, GONE, self._gone)

    def ask(self, prompt: str, options: dict[str, Variant], to: str) -> str:
        """Begin an answer and return its id; its signals go to one connection, or to all if `to` is empty."""
        events = self.client.generate(**asked(prompt, options))
        request = self._new_id()

        def ended(task: asyncio.Task[None]) -> None:
            if task.cancelled():
                self._signal(to, "Done", "ssa{sv}", [request, "cancelled", {}])

        task = asyncio.create_task(self._tell(request, events, to))
        task.add_done_callback(ended)
        self._keep(request, to, task)
        return request

    async def _ask(self, message: Message) -> list[Any]:
        prompt, options = message.body
        return [self.ask(prompt, options, message.sender or "")]

    async def _cancel(self, message: Message) -> list[Any]:
        to, task = self.open.get(message.body[0], ("", None))
        if task is None or to != message.sender:
            return [False]
        task.cancel()
        return [True]

    async def _complete(self, message: Message) -> list[Any]:
        prompt, options = message.body
        task = asyncio.create_task(self.client.complete(**asked(prompt, options)))
        self._keep(self._new_id(), message.sender or "", task)
        return [text((await task).text)]

    def _new_id(self) -> str:
        self._made += 1
        return str(self._made)

    def _keep(self, request: str, to: str, task: asyncio.Task[Any]) -> None:
        self.open[request] = (to, task)
        task.add_done_callback(lambda _: self.open.pop(request))

    async def _tell(self, request: str, events: AsyncGenerator[Tokens | Done, None], to: str) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Done):
                        self._signal(to, "Done", "ssa{sv}", [request, event.finish_reason, figures(event)])
                    elif event.text:
                        self._signal(to, "Token", "ss", [request, text(event.text)])
        except DraftdError as error:
            self._signal(to, "Error", "sss", [request, error.code, error.message])

    def _signal(self, to: str, member: str, signature: str, body: list[Any]) -> None:
        message = Message.new_signal(PATH, NAME, member, signature, body)
        message.destination = to or None
        send(self.bus, message)

    def _gone(self, message: Message) -> None:
        """Who left the bus wants no answer."""
        if message.member == "NameOwnerChanged" and message.sender == BUS:
            for to, task in list(self.open.values()):
                if to and to == message.body[0]:
                    task.cancel()


def asked(prompt: str, options: dict[str, Variant]) -> dict[str, Any]:
    """The fields of the `generate` that a call stands for; InvalidRequest for what is not an option."""
    if unknown := sorted(options.keys() - {*PLAIN, *OWN}):
        raise InvalidRequest(f"unknown option {', '.join(unknown)}; there are {', '.join((*OWN, *PLAIN))}")
    given = {name: options[name].value for name in PLAIN if name in options}
    messages = []
    if "system" in options:
        messages.append({"role": "system", "content": options["system"].value})
    if "messages" in options:
        if options["messages"].signature != "a(ss)":
            raise InvalidRequest(
                f"messages is of type {options['messages'].signature}, and should be of a(ss)"
            )
        messages += [{"role": role, "content": content} for role, content in options["messages"].value]
    if "schema" in options:
        try:
            given["grammar"] = {"kind": "json_schema", "source": json.loads(options["schema"].value)}
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"schema is not the text of a JSON schema: {error}") from None
    return {"max_tokens": MAX_TOKENS} | given | {"messages": [*messages, {"role": "user", "content": prompt}]}


def figures(done: Done) -> dict[str, Variant]:
    return {
        "prompt_tokens": Variant("u", done.usage.prompt_tokens),
        "completion_tokens": Variant("u", done.usage.completion_tokens),
        "drafted": Variant("u", done.stats.drafted),
        "accepted": Variant("u", done.stats.accepted),
        "tokens_per_second": Variant("d", done.stats.tokens_per_second),
    }
