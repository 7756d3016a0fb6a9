"""A request with its times, as its client sees them (bench, demo)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from draftd.ipc.client import Client
from draftd.ipc.messages import Tokens
from draftd.ipc.parts import Stats

# The end of one: in scripts that put a blank behind it, seen once that is there.
SENTENCE = re.compile(r"\w[^.!?。]*(?:[.!?](?=\s)|。)|\S\s*\n")


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished request; times in seconds from the sending of the request."""

    text: str
    tokens: int
    first_tokens: int  # how many came with the first message
    first_seconds: float
    seconds: float
    finish_reason: str
    stats: Stats
    sentence_seconds: float = 0.0  # to the end of the first sentence, or of an answer that is none
    gaps: tuple[float, ...] = ()  # between one message with text and the next
    prompt_tokens: int = 0

    @property
    def made(self) -> int:
        """Tokens that the target made, the one that ended the answer included."""
        return self.tokens + (self.finish_reason == "stop")

    @property
    def model_seconds(self) -> float:
        """What the two models took, as the engine measured it."""
        return self.stats.draft_seconds + self.stats.verify_seconds + self.stats.prefill_seconds


def waits(
    arrivals: Sequence[tuple[float, int]], text: str, seconds: float
) -> tuple[float, tuple[float, ...]]:
    """Seconds to the end of the first sentence, else of the answer, and those from each piece to the next.

    `arrivals`: the seconds of each piece, and how many characters of `text` were there then.
    """
    ends = (when for when, length in arrivals if SENTENCE.search(text[:length]))
    gaps = tuple(after - before for (before, _), (after, _) in pairwise(arrivals))
    return next(ends, seconds), gaps


def ask(
    client: Client, show: Callable[[Tokens], None] | None = None, *, anew: bool = True, **request: Any
) -> Answer:
    """Wait for a whole answer, showing each message as it comes.

    The prompt is computed anew, unless told otherwise: of two equal requests the second would have it easier.
    """
    began = time.perf_counter()
    first_tokens = 0
    text = ""
    arrivals: list[tuple[float, int]] = []
    for event in client.generate(**request, cache_prompt=not anew):
        if isinstance(event, Tokens):
            when = time.perf_counter() - began
            if not arrivals:
                first_tokens = len(event.tokens)
            text += event.text
            arrivals.append((when, len(text)))
            if show is not None:
                show(event)
            continue
        seconds = time.perf_counter() - began
        sentence, gaps = waits(arrivals, text, seconds)
        return Answer(
            text=text,
            tokens=event.usage.completion_tokens,
            first_tokens=first_tokens,
            first_seconds=arrivals[0][0] if arrivals else seconds,
            seconds=seconds,
            finish_reason=event.finish_reason,
            stats=event.stats,
            sentence_seconds=sentence,
            gaps=gaps,
            prompt_tokens=event.usage.prompt_tokens,
        )
    raise AssertionError("a stream ends with Done or an error")
