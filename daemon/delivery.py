"""What a request's app has yet to be sent: tokens add up while it takes no more, and wait in one message."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from draftd.daemon.apps import Apps, Sending
from draftd.ipc import messages


@dataclass(slots=True)
class Delivery:
    """The way out of one request; it never waits, so no app holds up another."""

    client: bytes
    id: str
    credit: int | None  # `tokens` messages the app will take; None: as many as its connection does
    held: dict[int, dict[str, Any]] = field(default_factory=dict)  # by answer: the next `tokens` message
    last: messages.Done | messages.Error | None = None  # behind it, then nothing more
    since: float | None = None  # monotonic seconds from when the app has taken nothing

    def add(self, fields: dict[str, Any]) -> None:
        """Put a round's tokens behind those that wait."""
        into = self.held.setdefault(fields.get("index", 0), {})
        for name, value in fields.items():
            if name in into and isinstance(value, str | list) and name != "finish_reason":
                into[name] += value
            else:
                into[name] = value

    def push(self, apps: Apps) -> Sending:
        """Send what credit and connection allow: "sent" if that is all there was."""
        outcome: Sending = "sent"
        while self.held and outcome == "sent":
            if self.credit == 0 and self.last is None:  # the last tokens come with the end
                return self._waits("blocked")
            index, fields = next(iter(self.held.items()))
            outcome = apps.send(self.client, messages.Tokens(id=self.id, **fields))
            if outcome == "sent":
                del self.held[index]
                self.credit = self.credit - 1 if self.credit else self.credit
        if outcome == "sent" and self.last is not None:
            outcome = apps.send(self.client, self.last)
        return self._waits(outcome)

    def _waits(self, outcome: Sending) -> Sending:
        """Keep since when the app has taken nothing."""
        if outcome != "blocked":
            self.since = None
        elif self.since is None:
            self.since = time.monotonic()
        return outcome
