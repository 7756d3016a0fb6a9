"""One request as the front knows it: what was asked, and what an engine has given of each answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from draftd.daemon.delivery import Delivery
from draftd.ipc import messages, parts

Reason = Literal["cancelled", "deadline"]


@dataclass(slots=True, eq=False)
class Job:
    """A request: enough to send it to another engine where the last one left it."""

    key: int
    delivery: Delivery
    body: dict[str, Any]  # the generate message for the engine
    deadline: float | None  # monotonic seconds
    keep_alive: float | None  # seconds that the models stay in memory after it; None: the setting's
    emitted: list[list[int]]  # by answer: its tokens so far
    characters: list[int]  # and how much text they are
    endings: list[dict[str, Any] | None]  # by answer, of those that have ended
    stopping: Reason | None = None  # it is to end before its time, and the engine was told
    told: bool = False  # the engine knows that the deadline has passed
    text: str = ""  # of the answers, kept only to be logged
    first: float | None = None  # monotonic seconds of the first token
    drafted: int = 0  # so far, and of these
    accepted: int = 0
    ends: int = 0  # engines that ended while at work on it, since it last got tokens
    brought: int = field(init=False)  # tokens that its app had from another daemon

    def __post_init__(self) -> None:
        self.brought = self.tokens

    @property
    def ended(self) -> bool:
        """The engine has no more to do with it; its app has yet to take the end."""
        return self.delivery.last is not None

    @property
    def tokens(self) -> int:
        """How many tokens it has been given."""
        return sum(map(len, self.emitted))

    def pace(self, now: float) -> float:
        """Tokens a second since the first that it was given here."""
        return (self.tokens - self.brought) / max(now - self.first, 1e-3) if self.first else 0.0

    def took(self, body: dict[str, Any], *, keep_text: bool) -> None:
        """Count what the engine's `tokens` brings, less what of it is not for the app."""
        index = body.get("index", 0)
        self.emitted[index] += body["tokens"]
        self.characters[index] += len(body["text"]) + sum(map(_characters, body["tool_calls"]))
        self.first = self.first or time.monotonic()
        self.drafted, self.accepted = body.pop("rounds")
        if keep_text:
            self.text += body["text"] + "".join(map(_written, body["tool_calls"]))
        self.ends = 0

    def cut(self, reason: Reason) -> messages.Done:
        """Its end without an engine: answers that had ended keep theirs, the others end as `reason`."""
        seed = self.body["seed"]
        answers = [
            parts.AnswerEnd.model_validate(ending or _without_figures(reason, seed + index, len(tokens)))
            for index, (ending, tokens) in enumerate(zip(self.endings, self.emitted, strict=True))
        ]
        first, usage = answers[0], parts.Usage(prompt_tokens=0, completion_tokens=self.tokens)
        return messages.Done(
            id=self.delivery.id,
            finish_reason=first.finish_reason,
            usage=usage,
            stats=first.stats,
            answers=answers,
        )


def _characters(part: dict[str, Any]) -> int:
    return len(part["name"] or "") + len(part["arguments"])


def _written(part: dict[str, Any]) -> str:
    """A piece of a call as the log shows it."""
    return (f"\n{part['name']} " if part["name"] else "") + str(part["arguments"])


def ended_before(had: parts.Resume, seed: int) -> dict[str, Any] | None:
    """The ending of an answer that another daemon ended, in the engine's form; None if it has yet to end."""
    if had.finish_reason is None:
        return None
    return _without_figures(had.finish_reason, seed, len(had.tokens)) | {
        "books": {"positions": {}, "queue_seconds": 0.0, "seconds": 0.0}
    }


def _without_figures(reason: parts.FinishReason, seed: int, tokens: int) -> dict[str, Any]:
    """An ending of which no figures are known."""
    return {
        "finish_reason": reason,
        "completion_tokens": tokens,
        "cached_tokens": 0,
        "stats": parts.Stats.nothing(seed=seed % 2**64).model_dump(),
    }
