"""Streams that a client asks for, and the answers that they should be."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from typing import Any

from draftd.ipc import Client, Tokens
from draftd.ipc.errors import DraftdError
from tests.daemon.conftest import Daemon

STREAM = "stream"  # what a client is called that asks for one
PROMPTS = (
    "def add(a, b):",
    "The capital of France is",
    "Once upon a time there was a little",
    "import os\nimport sys\n\n",
    "Dear Sir or Madam,",
)


@dataclass
class Answer:
    """One answer, undisturbed or not."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    problem: str = ""
    margins: list[float] = field(
        default_factory=list
    )  # by token, if asked: how far the likeliest leads, in nats


def questions(count: int, length: int, seed: int = 1) -> list[dict[str, Any]]:
    """Requests of different prompts, temperatures and seeds, that draft in different ways."""
    dice = random.Random(seed)
    return [
        {
            "prompt": dice.choice(PROMPTS),
            "max_tokens": dice.randrange(length // 2, length),
            "temperature": dice.choice((0.0, 0.7, 1.0)),
            "seed": index,
            "speculate": dice.choice(("auto", "model:4", "suffix:8", "off")),
            "ignore_eos": True,
        }
        for index in range(count)
    ]


def settled(daemon: Daemon, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The questions whose undisturbed answer is one, however it is drafted.

    Where two tokens' scores are closer than fp32 rounds, passes of different widths choose differently, with
    kills or without.
    """
    found = []
    for question in asked:
        runs = []
        for speculate in ("off", "model:4", "suffix:8"):
            runs.append(Answer())
            ask(daemon.endpoint, {**question, "speculate": speculate, "cache_prompt": False}, runs[-1])
        if all(run == runs[0] for run in runs):
            found.append(question)
        else:
            print(f"left out: {question}", file=sys.stderr, flush=True)
    return found


def ask(endpoint: str, question: dict[str, Any], answer: Answer) -> None:
    """Stream one answer into `answer`, on a connection of its own."""
    try:
        with Client(endpoint, name=STREAM) as client:
            for event in client.generate(**question):
                if isinstance(event, Tokens):
                    answer.text += event.text
                    answer.tokens += event.tokens
                    answer.margins += [each.top[0].logprob - each.top[1].logprob for each in event.logprobs]
    except DraftdError as error:
        answer.problem = f"{error.code}: {error}"
