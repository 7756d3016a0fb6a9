"""`load` and `unload`: who waits to hear that the models are in memory, or out of it."""

from __future__ import annotations

import time
from collections.abc import Callable

from draftd.daemon.apps import Apps
from draftd.daemon.lifecycle import Lifecycle
from draftd.daemon.lifetime import Stage
from draftd.ipc import messages
from draftd.ipc.errors import DraftdError, EngineFailed

Waiters = list[tuple[bytes, str]]  # connection and request id


class Loads:
    """Answers each with a status when it is so; a request that runs holds an `unload` up."""

    def __init__(
        self, apps: Apps, life: Lifecycle, status: Callable[[messages.GetStatus], messages.Status]
    ) -> None:
        self.apps = apps
        self.life = life
        self.status = status
        self._loading: Waiters = []
        self._unloading: Waiters = []

    def load(self, client: bytes, message: messages.Load) -> None:
        self.life.lifetime.load(time.monotonic(), message.keep_alive)
        self._loading.append((client, message.id))

    def unload(self, client: bytes, message: messages.Unload) -> None:
        self.life.lifetime.unload(time.monotonic())
        self._unloading.append((client, message.id))

    def tick(self, _: float) -> None:
        """Answer those whose moment has come; run it after the lifecycle's."""
        failure: DraftdError | None = self.life.failure
        if self.life.state == "failed":
            failure = EngineFailed(self.life.detail)
        if failure is not None:
            for client, request_id in self._loading:
                self.apps.send_error(client, request_id, failure)
            self._loading.clear()
        if self.life.state == "ready":
            self._answer(self._loading)
        if self.life.lifetime.stage is Stage.OUT or failure is not None:
            self._answer(self._unloading)

    def _answer(self, waiters: Waiters) -> None:
        for client, request_id in waiters:
            self.apps.send(client, self.status(messages.GetStatus(id=request_id)))
        waiters.clear()
