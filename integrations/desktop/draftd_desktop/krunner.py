"""`org.kde.krunner1`: one match for whatever is typed, and an answer in a notification once it is chosen."""

from __future__ import annotations

import asyncio
from typing import Any

from dbus_fast import Message, Variant
from dbus_fast.aio import MessageBus

from draftd.ipc import DraftdError
from draftd_desktop import notifications
from draftd_desktop.assistant import Assistant, asked
from draftd_desktop.exported import Exported, export, watch

NAME = "org.kde.krunner1"
PATH = "/krunner"
ICON = "dialog-question"
SHORTEST = 3  # letters of what may be a question
LOW = 30  # KRunner's category relevance: below programs and files
OPTIONS = {
    "system": Variant("s", "Answer in at most four sentences of plain text."),
    "max_tokens": Variant("u", 300),
}


class Runner:
    def __init__(self, bus: MessageBus, assistant: Assistant) -> None:
        self.bus = bus
        self.assistant = assistant
        self.shown: dict[int, asyncio.Task[None]] = {}  # by notification: what will be told in it

    async def export(self) -> None:
        methods = {
            "Actions": self._actions,
            "Match": self._match,
            "Run": self._run,
            "SetActivationToken": self._nothing,
            "Teardown": self._nothing,
        }
        export(self.bus, Exported(PATH, NAME, methods))
        await watch(self.bus, notifications.CLOSED, self._closed)

    async def _actions(self, message: Message) -> list[Any]:
        return [[]]

    async def _match(self, message: Message) -> list[Any]:
        """At each keystroke, so nothing is asked of the daemon here."""
        query = message.body[0].strip()
        if len(query) < SHORTEST:
            return [[]]
        properties = {"subtext": Variant("s", "draftd"), "actions": Variant("as", [])}
        return [[[query, f"Ask: {query}", ICON, LOW, 0.3, properties]]]

    async def _run(self, message: Message) -> list[Any]:
        question = message.body[0]
        if note := await notifications.show(self.bus, question, "…"):
            self.shown[note] = asyncio.create_task(self._answer(question, note))
            self.shown[note].add_done_callback(lambda _: self.shown.pop(note))
        else:
            self.assistant.ask(question, OPTIONS, to="")
        return []

    async def _answer(self, question: str, note: int) -> None:
        try:
            told = (await self.assistant.client.complete(**asked(question, OPTIONS))).text
        except DraftdError as error:
            told = error.message
        await notifications.show(self.bus, question, told.strip(), replaces=note)

    async def _nothing(self, message: Message) -> list[Any]:
        return []

    def _closed(self, message: Message) -> None:
        """A notification that is closed before its answer is there: nobody waits any more."""
        if message.member == "NotificationClosed" and (task := self.shown.get(message.body[0])):
            task.cancel()
