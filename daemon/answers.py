"""A request's answers in the engine process: their tokens as text, and what the front is told of them."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

from draftd.daemon.calls import CallPart
from draftd.daemon.engine import Emission
from draftd.daemon.request import Request
from draftd.daemon.text import Answer
from draftd.models.base import Tokenizer
from draftd.models.logprobs import Logprob

SEEDS = 2**64


@dataclass(slots=True)
class Pending:
    """A token that the front has yet to be told."""

    token: int
    drafted: bool
    length: int  # characters of text that it released
    logprob: dict[str, Any] | None


@dataclass(slots=True, eq=False)
class Choice:
    """One of a request's answers, on its way."""

    job: Job
    index: int
    request: Request
    text: Answer
    found: int = 0  # tokens the front already has of what a beam search finds again
    given: int = 0  # tokens of its own: one sent again has others from before
    first_token: float | None = None  # monotonic seconds
    pending: list[Pending] = field(default_factory=list)

    def push(self, emission: Emission, tokenizer: Tokenizer) -> str:
        """A round's tokens as text; behind a complete stop string the rest is dropped."""
        self.first_token = self.first_token or time.monotonic()
        text = ""
        told: list[dict[str, Any] | None] = [_told(each, tokenizer) for each in emission.logprobs]
        told = told or [None] * len(emission.tokens)
        each = list(zip(emission.tokens, emission.drafted, told, strict=True))
        count = self.found
        while count < len(each) and not self.text.stopped:
            token, drafted, logprob = each[count]
            count += 1
            released = self.text.push(token)
            text += released
            self.pending.append(Pending(token, drafted, len(released), logprob))
        self.given += count - self.found
        surplus = max(0, len(each) - count)
        del self.request.tokens[len(self.request.tokens) - surplus :]
        return text

    def flush(self) -> str:
        """The text held back, at the end; it belongs to the last token if that is still to be told."""
        text = self.text.flush()
        if self.pending:
            self.pending[-1].length += len(text)
        return text

    def take(self, text: str) -> dict[str, Any]:
        """The front's message about all that is pending and the text that it released."""
        pending, self.pending = self.pending, []
        return {
            "type": "tokens",
            "key": self.job.key,
            "index": self.index,
            "text": text,
            "tokens": [each.token for each in pending],
            "drafted": [each.drafted for each in pending],
            "lengths": [each.length for each in pending],
            "logprobs": [each.logprob for each in pending if each.logprob is not None],
            "tool_calls": [self._named(part) for part in self.text.take()],
            "rounds": self.job.rounds(),
        }

    def _named(self, part: CallPart) -> dict[str, Any]:
        """A piece of a call as the protocol has it; an engine that goes on with it gives it the same id."""
        told = {"index": part.index, "name": part.name, "arguments": part.arguments, "id": None}
        if part.name is not None:
            whose = f"{self.request.sampling.seed} {self.request.prompt} {part.index}"
            told["id"] = f"call_{blake2b(whose.encode(), digest_size=12).hexdigest()}"
        return told

    def ending(self, reason: str) -> dict[str, Any]:
        """How it ended: the protocol's `AnswerEnd`."""
        now = time.monotonic()
        first = self.first_token or now
        completion = len(self.request.tokens) - self.request.prompt
        tally = asdict(self.request.tally)
        books = {  # what the front's counters need beside the `stats` (daemon/counters.py)
            "positions": tally.pop("positions"),
            "queue_seconds": (self.request.started or now) - self.job.received,
            "seconds": now - self.job.received,
        }
        stats = {
            "seed": self.request.sampling.seed,
            **tally,
            "sources": dict(self.request.control.rounds) if self.request.control else {},
            "time_to_first_token": first - self.job.received,
            "tokens_per_second": (self.given - 1) / (now - first) if self.given > 1 and now > first else 0.0,
        }
        return {
            "finish_reason": reason,
            "completion_tokens": completion,
            "cached_tokens": self.request.reused,
            "stats": stats,
            "books": books,
        }


@dataclass(slots=True, eq=False)
class Job:
    """A request and its answers."""

    key: int
    prompt: int  # tokens
    received: float  # monotonic seconds, when the front got it
    endings: list[dict[str, Any] | None]  # by index, of those that have ended
    choices: list[Choice] = field(default_factory=list)  # that this engine began
    live: list[Choice] = field(default_factory=list)  # of these, those that have not ended

    def rounds(self) -> tuple[int, int]:
        """Tokens drafted so far, and of these accepted."""
        tallies = [choice.request.tally for choice in self.choices]
        return sum(each.drafted for each in tallies), sum(each.accepted for each in tallies)

    def done(self) -> dict[str, Any]:
        """The front's message once every answer has ended."""
        endings = [ending for ending in self.endings if ending is not None]
        usage = {
            "prompt_tokens": self.prompt,
            "completion_tokens": sum(ending["completion_tokens"] for ending in endings),
            # What the others copied from the first was computed for this very request.
            "cached_tokens": min(ending["cached_tokens"] for ending in endings),
        }
        first = {name: endings[0][name] for name in ("finish_reason", "stats", "books")}
        return {"type": "done", "key": self.key, "usage": usage, **first, "answers": endings}


def seed_of(seed: int, index: int) -> int:
    """The seed of one of several answers: asked for alone with it, the same answer comes."""
    return (seed + index) % SEEDS


def _told(logprob: Logprob, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token's log-probability as the protocol has it."""
    top = [_named(token, value, tokenizer) for token, value in logprob.top]
    return {**_named(logprob.token, logprob.logprob, tokenizer), "top": top}


def _named(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    added = tokenizer.bytes_of(token)
    text = added.decode("utf-8", "replace") or tokenizer.piece(token)
    return {"token": token, "text": text, "bytes": list(added), "logprob": logprob}
