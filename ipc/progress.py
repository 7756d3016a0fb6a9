"""What a stream has brought so far: enough to ask another daemon for the rest, and to pay as it is read."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from draftd.ipc.errors import DraftdError, LeaseExpired, Overloaded, Unreachable
from draftd.ipc.messages import Accepted, Generate, Message, Tokens
from draftd.ipc.parts import Resume

CREDIT = 64  # `tokens` messages the daemon may send before the app has read the first of them
PAY_WITHIN = 5.0  # seconds until little is paid for too: at zero credit the daemon's patience is bounded


@dataclass
class Had:
    """What the app has had of one answer, as `Resume` says it."""

    tokens: list[int]
    characters: int
    finish_reason: str | None


class Progress:
    """One call of `generate`, over as many connections as it takes."""

    def __init__(self, params: dict[str, Any]) -> None:
        self._params = {"credit": CREDIT, **params}
        self._began = time.monotonic()
        self._unpaid = 0  # `tokens` messages read since credit was given
        self._owes_since = 0.0  # monotonic seconds: when the first of them came
        self._lost: float | None = None  # monotonic seconds from when no daemon has said anything of it
        given = {name: params[name] for name in ("n", "resume") if name in params}
        asked = Generate(id="0", tokens=[0], **given)  # id and prompt only make it whole
        self._had = [Had(list(each.tokens), each.characters, each.finish_reason) for each in asked.had()]

    def fields(self) -> dict[str, Any]:
        """The fields of `generate` that ask for what is still missing."""
        self._unpaid = 0
        fields = dict(self._params)
        if any(each.tokens or each.finish_reason for each in self._had):
            resume = [Resume.model_construct(**vars(each)) for each in self._had]
            fields["resume"] = resume if len(resume) > 1 else resume[0]
        if (limit := fields.get("deadline_ms")) is not None:
            fields["deadline_ms"] = max(1, limit - int((time.monotonic() - self._began) * 1000))
        return fields

    def saw(self, event: Message) -> None:
        """Take note of an event before the app gets it."""
        self._lost = None
        if isinstance(event, Accepted):
            self._params["seed"] = event.seed
        elif isinstance(event, Tokens):
            had = self._had[event.index]
            had.tokens += event.tokens
            had.characters += event.characters
            had.finish_reason = event.finish_reason or had.finish_reason
            self._owes_since = self._owes_since if self._unpaid else time.monotonic()
            self._unpaid += 1

    def owed(self) -> int:
        """Credit to give now that the app has come back for more; 0: not yet."""
        window = self._params["credit"]
        if window is None or not self._unpaid:
            return 0
        if self._unpaid * 2 < window and time.monotonic() - self._owes_since < PAY_WITHIN:
            return 0
        owed, self._unpaid = self._unpaid, 0
        return owed

    def goes_on_after(self, error: DraftdError) -> bool:
        """Whether another try may bring the rest: no daemon, or one whose queue others have filled since."""
        full = isinstance(error, Overloaded) and self._lost is not None
        return full or isinstance(error, Unreachable | LeaseExpired)

    def lost(self) -> float:
        """Take note that the connection is lost; monotonic seconds from when on nobody has answered."""
        self._lost = time.monotonic() if self._lost is None else self._lost
        return self._lost


def pause_after(error: DraftdError) -> float:
    """Seconds to wait before the first try after what ended a stream."""
    return error.retry_after or 1.0 if isinstance(error, Overloaded) else 0.0
