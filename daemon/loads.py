"""`load` and `unload`: who waits to hear that the models are in memory, or out of it."""

from __future__ import annotations

import time
from collections.abc import Callable

from draftd.daemon.apps import WAITERS, Apps
from draftd.daemon.lifecycle import Lifecycle
from draftd.daemon.lifetime import Stage
from draftd.ipc import messages
from draftd.ipc.errors import Cancelled, DraftdError, EngineFailed, Overloaded

Waiters = list[tuple[bytes, str]]  # connection and request id


class Loads:
    """Answers each with a status when it is so, or says why not; a request that runs holds an `unload` up."""

    def __init__(
        self, apps: Apps, life: Lifecycle, status: Callable[[messages.GetStatus], messages.Status]
    ) -> None:
        self.apps = apps
        self.life = life
        self.status = status
        self._loading: Waiters = []
        self._unloading: Waiters = []

    def load(self, client: bytes, message: messages.Load) -> None:
        self._add(self._loading, client, message.id)
        if self.life.lifetime.stage in (Stage.LOADING, Stage.IN):
            self._fail(self._unloading, Cancelled("the models are to stay after all: another app loads them"))
        self.life.lifetime.load(time.monotonic(), message.keep_alive)

    def unload(self, client: bytes, message: messages.Unload) -> None:
        self._add(self._unloading, client, message.id)
        self.life.lifetime.unload(time.monotonic())

    def tick(self, now: float) -> None:
        """Answer those whose moment has come.

        Run it before the lifecycle's, which may send away an engine that is ready or bring one that is not
        there, and behind it.
        """
        lifetime = self.life.lifetime
        if self.life.state == "ready":
            self._answer(self._loading)
        elif self.life.state == "failed":
            self.refuse(EngineFailed(self.life.detail))
            if lifetime.look_at() > now:  # else it goes out at once, and they are told of that
                self._answer(self._unloading)
        elif lifetime.stage in (Stage.LEAVING, Stage.OUT) and not lifetime.wanted:
            self.refuse(Cancelled("the models were unloaded before they were in memory: load them again"))
        if lifetime.stage is Stage.OUT:
            self._answer(self._unloading)

    def refuse(self, error: DraftdError) -> None:
        """Tell those who wait for a load that it is not to be."""
        self._fail(self._loading, error)

    def fail_all(self, error: DraftdError) -> None:
        self._fail(self._loading, error)
        self._fail(self._unloading, error)

    def _add(self, waiters: Waiters, client: bytes, request_id: str) -> None:
        if len(waiters) >= WAITERS:
            raise Overloaded(f"{WAITERS} apps wait for the same: try again in 1 s", 1.0)
        waiters.append((client, request_id))

    def _answer(self, waiters: Waiters) -> None:
        for client, request_id in waiters:
            self.apps.reply(client, self.status(messages.GetStatus(id=request_id)))
        waiters.clear()

    def _fail(self, waiters: Waiters, error: DraftdError) -> None:
        for client, request_id in waiters:
            self.apps.send_error(client, request_id, error)
        waiters.clear()
