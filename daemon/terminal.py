"""What `run` and `chat` show beside the answer, and names as a terminal may have them."""

from __future__ import annotations

import os
import sys
import time

from draftd.ipc.client import Client
from draftd.ipc.messages import Tokens
from draftd.ipc.parts import Logprob, Stats

GREEN, PLAIN = "\x1b[32m", "\x1b[0m"
LOOK_EVERY = 0.1  # seconds between looks at a daemon that loads


def wait_until_ready(client: Client) -> None:
    """While the models load, say on a terminal how far they are; elsewhere the request itself waits."""
    if not sys.stderr.isatty():
        return
    shown = False
    while (status := client.status()).state in ("loading", "restarting"):
        shown = True
        print(f"\r\x1b[K{status.detail or status.state}", end="", file=sys.stderr, flush=True)
        time.sleep(LOOK_EVERY)
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def shown(name: str) -> str:
    """What an app named itself or a conversation, without what would steer the terminal."""
    return name if name.isprintable() else ascii(name)


def summary(tokens: int, stats: Stats) -> str:
    """How an answer of so many tokens went, in a line."""
    drafts = f"{stats.accepted} of {stats.drafted} drafted tokens accepted" if stats.drafted else "no drafts"
    return (
        f"{tokens} tokens in {stats.rounds} passes, {drafts}, "
        f"{stats.tokens_per_second:.1f} tokens a second, first after {stats.time_to_first_token:.2f} s, "
        f"seed {stats.seed}"
    )


def table(logprobs: list[Logprob]) -> str:
    """A line a token: its log-probability, its text, and the alternatives."""
    lines = []
    for each in logprobs:
        others = "  ".join(f"{other.text!r} {other.logprob:.3f}" for other in each.top)
        lines.append(f"{each.logprob:9.3f}  {each.text!r:<16}  {others}".rstrip())
    return "\n".join(lines)


def colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def marked(event: Tokens) -> str:
    """The text with what the draft had proposed in green."""
    if len(event.lengths) != len(event.tokens):  # a daemon that does not tell which text is whose
        return f"{GREEN}{event.text}{PLAIN}" if event.text and all(event.drafted) else event.text
    parts = []
    start = 0
    for drafted, length in zip(event.drafted, event.lengths, strict=True):
        piece = event.text[start : start + length]
        parts.append(f"{GREEN}{piece}{PLAIN}" if drafted and piece else piece)
        start += length
    return "".join(parts) + event.text[start:]
