"""The prefills in flight as the front knows them: one a connection, and the next supersedes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from draftd.daemon.apps import Apps
from draftd.daemon.lifetime import Lifetime
from draftd.ipc import messages
from draftd.ipc.errors import DraftdError, EngineFailed, from_code

FIRST_KEY = 1 << 62  # of prefills: apart from the requests' keys
MAX_ENDS = 2  # engines that may die while one is open: it is a guess, and not worth a third


@dataclass(slots=True)
class Prefill:
    """Enough to send it to another engine."""

    key: int
    client: bytes  # the ROUTER's name of the connection
    id: str
    body: dict[str, Any]  # the prefill message for the engine
    ends: int = 0  # engines that died meanwhile


class Prefills:
    """Prefills by the front's key and by connection."""

    def __init__(self, apps: Apps, lifetime: Lifetime, tell_engine: Callable[[dict[str, Any]], None]) -> None:
        self.apps = apps
        self.lifetime = lifetime  # each holds the engine, by its key below zero
        self.tell_engine = tell_engine
        self.by_key: dict[int, Prefill] = {}
        self.by_client: dict[bytes, Prefill] = {}
        self._next_key = FIRST_KEY

    def __len__(self) -> int:
        return len(self.by_key)

    def open(self, client: bytes, request_id: str, body: dict[str, Any]) -> None:
        """Take a prefill on in the place of the connection's last one."""
        if (last := self.by_client.get(client)) is not None:
            self._stop(last, "superseded")
        self._next_key += 1
        prefill = Prefill(self._next_key, client, request_id, body)
        self.by_key[prefill.key] = self.by_client[client] = prefill
        self.lifetime.acquire(-prefill.key)
        self._submit(prefill)

    def cancel(self, client: bytes, request_id: str) -> None:
        """End the connection's prefill, if it is still this one."""
        prefill = self.by_client.get(client)
        if prefill is not None and prefill.id == request_id:
            self._stop(prefill, "cancelled")

    def abandon(self, client: bytes, request_id: str, error: DraftdError) -> bool:
        """End the connection's prefill with an error, if it is this one."""
        if not self.holds(client, request_id):
            return False
        prefill = self.by_client[client]
        self.tell_engine({"type": "cancel_prefill", "key": prefill.key})
        self._fail(prefill, error)
        return True

    def submit_all(self) -> None:
        """A new engine starts them from the beginning."""
        for prefill in self.by_key.values():
            self._submit(prefill)

    def engine_died(self) -> None:
        """One that was there when two did is given up."""
        for prefill in list(self.by_key.values()):
            prefill.ends += 1
            if prefill.ends == MAX_ENDS:
                self._fail(prefill, EngineFailed("the engine ended twice during this prefill"))

    def relay(self, body: dict[str, Any]) -> None:
        """The engine's `prefilled` to the app that asked."""
        prefill = self.by_key.get(body["key"])
        if prefill is None:
            return  # superseded or cancelled
        if "code" in body:
            self._fail(prefill, from_code(body["code"], body["message"]))
        else:
            self._end(prefill)
            self.apps.reply(prefill.client, messages.Prefilled(id=prefill.id, **body["told"]))

    def fail_all(self, error: DraftdError) -> None:
        for prefill in list(self.by_key.values()):
            self._fail(prefill, error)

    def holds(self, client: bytes, request_id: str) -> bool:
        """Has a prefill of this connection the id?"""
        prefill = self.by_client.get(client)
        return prefill is not None and prefill.id == request_id

    def _fail(self, prefill: Prefill, error: DraftdError) -> None:
        self._end(prefill)
        self.apps.send_error(prefill.client, prefill.id, error)

    def _submit(self, prefill: Prefill) -> None:
        self.tell_engine({"type": "prefill", "key": prefill.key, **prefill.body})

    def _stop(self, prefill: Prefill, state: Literal["superseded", "cancelled"]) -> None:
        self.tell_engine({"type": "cancel_prefill", "key": prefill.key})
        self._end(prefill)
        self.apps.reply(prefill.client, messages.Prefilled(id=prefill.id, state=state))

    def _end(self, prefill: Prefill) -> None:
        del self.by_key[prefill.key]
        del self.by_client[prefill.client]
        self.lifetime.release(-prefill.key, time.monotonic())
