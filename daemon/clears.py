"""Apps that wait until the history is forgotten: by the engine, which holds and writes it, or here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from draftd.daemon import forget
from draftd.daemon.apps import Apps
from draftd.ipc import messages
from draftd.ipc.errors import DraftdError, InvalidConfig


class Clears:
    """`clear` messages by the front's key, until the engine has answered."""

    def __init__(self, apps: Apps, state_dir: Path, tell_engine: Callable[[dict[str, Any]], None]) -> None:
        self.apps = apps
        self.state_dir = state_dir
        self.tell_engine = tell_engine
        self._waiting: dict[int, tuple[bytes, messages.Clear]] = {}
        self._next_key = 0

    def open(self, client: bytes, message: messages.Clear) -> None:
        self._next_key += 1
        self._waiting[self._next_key] = client, message
        self._submit(self._next_key)

    def submit_all(self) -> None:
        """Ask a new engine what the last one left unanswered."""
        for key in self._waiting:
            self._submit(key)

    def clear_here(self) -> None:
        """There is no engine that holds anything: clear the files and answer."""
        for client, asked in self._waiting.values():
            try:
                files = forget.clear(self.state_dir, asked.learnt)
            except DraftdError as error:
                self.apps.send_error(client, asked.id, error)
            else:
                self.apps.send(client, messages.Cleared(id=asked.id, files=files))
        self._waiting.clear()

    def answered(self, body: dict[str, Any]) -> None:
        """The engine's answer to the app that asked."""
        client, asked = self._waiting.pop(body["key"])
        if "message" in body:
            self.apps.send_error(client, asked.id, InvalidConfig(body["message"]))
        else:
            self.apps.send(client, messages.Cleared(id=asked.id, files=body["files"]))

    def fail_all(self, error: DraftdError) -> None:
        for client, asked in self._waiting.values():
            self.apps.send_error(client, asked.id, error)
        self._waiting.clear()

    def _submit(self, key: int) -> None:
        self.tell_engine({"type": "clear", "key": key, "learnt": self._waiting[key][1].learnt})
