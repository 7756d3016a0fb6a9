"""A request with its times, as its client sees them (bench, demo)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
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


def ask(
    client: Client, show: Callable[[Tokens], None] | None = None, *, anew: bool = True, **request: Any
) -> Answer:
    """Wait for a whole answer, showing each message as it comes.

    The prompt is computed anew, unless told otherwise: of two equal requests the second would have it easier.
    """
    began = time.perf_counter()
    first: float | None = None
    first_tokens = 0
    sentence: float | None = None
    parts: list[str] = []
    arrivals: list[float] = []
    for event in client.generate(**request, cache_prompt=not anew):
        if isinstance(event, Tokens):
            arrivals.append(time.perf_counter() - began)
            if first is None:
                first, first_tokens = arrivals[0], len(event.tokens)
            parts.append(event.text)
            if sentence is None and SENTENCE.search("".join(parts)):
                sentence = arrivals[-1]
            if show is not None:
                show(event)
            continue
        seconds = time.perf_counter() - began
        return Answer(
            text="".join(parts),
            tokens=event.usage.completion_tokens,
            first_tokens=first_tokens,
            first_seconds=seconds if first is None else first,
            seconds=seconds,
            finish_reason=event.finish_reason,
            stats=event.stats,
            sentence_seconds=seconds if sentence is None else sentence,
            gaps=tuple(after - before for before, after in pairwise(arrivals)),
            prompt_tokens=event.usage.prompt_tokens,
        )
    raise AssertionError("a stream ends with Done or an error")
