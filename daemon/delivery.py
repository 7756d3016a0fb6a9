"""What a request's app has yet to be sent: tokens add up while it takes no more, in few messages."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from draftd.daemon.apps import Apps, Sending
from draftd.ipc import messages

MOST = 1024  # tokens of a message; with 20 log-probabilities each they are a tenth of what a frame may hold
BY_TOKEN = ("tokens", "drafted", "lengths", "logprobs")  # the fields with an entry for each token


@dataclass(slots=True)
class Delivery:
    """The way out of one request; it never waits, so no app holds up another."""

    client: bytes
    id: str
    credit: int | None  # `tokens` messages the app will take; None: as many as its connection does
    held: list[dict[str, Any]] = field(default_factory=list)  # the next `tokens` messages
    last: messages.Done | messages.Error | None = None  # behind them, then nothing more
    since: float | None = None  # monotonic seconds from when the app has taken nothing

    def add(self, fields: dict[str, Any]) -> None:
        """Put a round's tokens behind those that wait."""
        index = fields.get("index", 0)
        into = next((each for each in reversed(self.held) if each.get("index", 0) == index), None)
        if into is None or len(into["tokens"]) + len(fields["tokens"]) > MOST:
            self.held += _pieces(fields)
            return
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
            outcome = apps.send(self.client, messages.Tokens(id=self.id, **self.held[0]))
            if outcome == "sent":
                del self.held[0]
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


def _pieces(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """A round's tokens in pieces of MOST, each with the text that its tokens released.

    A beam search gives a whole answer at once.
    """
    pieces = []
    while len(fields["tokens"]) > MOST:
        end = sum(fields["lengths"][:MOST])
        first = {name: fields[name][:MOST] for name in BY_TOKEN if name in fields}
        rest = {name: fields[name][MOST:] for name in BY_TOKEN if name in fields}
        pieces.append({**fields, **first, "text": fields["text"][:end], "tool_calls": []})
        fields = {**fields, **rest, "text": fields["text"][end:]}
    return [*pieces, dict(fields)]
