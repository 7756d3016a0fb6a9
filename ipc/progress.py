"""What a stream has brought so far: enough to ask another daemon for the rest, and to pay as it is read."""

from __future__ import annotations

import time
from typing import Any

from draftd.ipc.messages import Accepted, Message, Resume, Tokens

CREDIT = 64  # `tokens` messages the daemon may send before the app has read the first of them


class Progress:
    """One call of `generate`, over as many connections as it takes."""

    def __init__(self, params: dict[str, Any]) -> None:
        self._params = {"credit": CREDIT, **params}
        self._began = time.monotonic()
        self._unpaid = 0  # `tokens` messages read since credit was given
        self._lost: float | None = None  # monotonic seconds from when no daemon has said anything of it
        given = params.get("resume")
        resume = Resume.model_validate(given) if isinstance(given, dict) else given or Resume()
        self._tokens = list(resume.tokens)
        self._characters = resume.characters

    def fields(self) -> dict[str, Any]:
        """The fields of `generate` that ask for what is still missing."""
        self._unpaid = 0
        fields = dict(self._params)
        if self._tokens:
            fields["resume"] = Resume(tokens=self._tokens, characters=self._characters)
        if (limit := fields.get("deadline_ms")) is not None:
            fields["deadline_ms"] = max(1, limit - int((time.monotonic() - self._began) * 1000))
        return fields

    def saw(self, event: Message) -> None:
        """Take note of an event before the app gets it."""
        self._lost = None
        if isinstance(event, Accepted):
            self._params["seed"] = event.seed
        elif isinstance(event, Tokens):
            self._tokens += event.tokens
            self._characters += event.characters
            self._unpaid += 1

    @property
    def resumable(self) -> bool:
        """Whether another daemon can give the rest: not of several answers at once."""
        return self._params.get("n", 1) == 1 or not self._tokens

    def owed(self) -> int:
        """Credit to give now that the app has come back for more; 0: not yet."""
        window = self._params["credit"]
        if window is None or self._unpaid * 2 < window:
            return 0
        owed, self._unpaid = self._unpaid, 0
        return owed

    def lost(self) -> float:
        """Take note that the connection is lost; monotonic seconds from when on nobody has answered."""
        self._lost = time.monotonic() if self._lost is None else self._lost
        return self._lost
