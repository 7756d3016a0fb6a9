"""Apps that wait until the history is forgotten: by the engine, which holds and writes it, or here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from draftd.daemon import forget
from draftd.daemon.apps import WAITERS, Apps
from draftd.ipc import messages
from draftd.ipc.errors import DraftdError, InvalidConfig, Overloaded

Waiters = list[tuple[bytes, messages.Clear]]  # connections and what they asked


class Clears:
    """`clear` messages until they are answered; the engine is asked once for all that wait."""

    def __init__(self, apps: Apps, state_dir: Path, tell_engine: Callable[[dict[str, Any]], None]) -> None:
        self.apps = apps
        self.state_dir = state_dir
        self.tell_engine = tell_engine
        self._waiting: Waiters = []  # for their turn: what the engine does now may have passed what they mean
        self._asked: Waiters = []  # for the engine's answer

    def open(self, client: bytes, message: messages.Clear) -> None:
        if len(self._waiting) >= WAITERS:
            raise Overloaded(f"{WAITERS} apps wait for a clear: try again in 1 s", 1.0)
        self._waiting.append((client, message))
        if not self._asked:
            self._submit()

    def submit_all(self) -> None:
        """Ask a new engine what the last one left unanswered."""
        self._waiting = self._take()
        self._submit()

    def clear_here(self) -> bool:
        """There is no engine that holds anything: clear the files and answer; did what was learnt go, too?"""
        if not (waiters := self._take()):
            return False
        learnt = _learnt(waiters)
        try:
            files = forget.clear(self.state_dir, learnt)
        except DraftdError as error:
            self._fail(waiters, error)
            return False
        self._answer(waiters, files)
        return learnt

    def answered(self, body: dict[str, Any]) -> None:
        """The engine's answer to those who asked."""
        waiters, self._asked = self._asked, []
        if "message" in body:
            self._fail(waiters, InvalidConfig(body["message"]))
        else:
            self._answer(waiters, body["files"])
        self._submit()

    def fail_all(self, error: DraftdError) -> None:
        self._fail(self._take(), error)

    def _submit(self) -> None:
        if self._waiting:
            self._asked, self._waiting = self._waiting, []
            self.tell_engine({"type": "clear", "learnt": _learnt(self._asked)})

    def _take(self) -> Waiters:
        """All who wait."""
        waiters, self._asked, self._waiting = self._asked + self._waiting, [], []
        return waiters

    def _answer(self, waiters: Waiters, files: int) -> None:
        for client, asked in waiters:
            self.apps.reply(client, messages.Cleared(id=asked.id, files=files))

    def _fail(self, waiters: Waiters, error: DraftdError) -> None:
        for client, asked in waiters:
            self.apps.send_error(client, asked.id, error)


def _learnt(waiters: Waiters) -> bool:
    """Does one of them mean what was learnt of the pairs too?"""
    return any(asked.learnt for _, asked in waiters)
