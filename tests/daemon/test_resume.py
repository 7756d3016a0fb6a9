"""The real front killed in mid-stream: both clients find the next one and go on where they were."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from draftd.ipc import AsyncClient, Client, Tokens
from draftd.ipc.messages import Done
from draftd.ipc.session import Reply, reply
from tests.daemon.conftest import EXACT, Daemon, Serve

DAEMON = EXACT

PROMPT = "def add(a, b):"
OPTIONS: dict[str, Any] = {
    "prompt": PROMPT,
    "max_tokens": 120,
    "temperature": 1.0,
    "seed": 9,
    "ignore_eos": True,
    "credit": 4,  # so that the daemon can't have sent it all before it dies
}


class Reader:
    """Reads a stream in a thread; after 20 tokens, or one of several answers, it stops until it may go on."""

    def __init__(self, address: str, **more: Any) -> None:
        self.address = address
        self.options = {**OPTIONS, **more}
        self.parts: list[Tokens] = []
        self.reply: Reply
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.failed: list[BaseException] = []
        self.thread = threading.Thread(target=self._guarded)
        self.thread.start()

    def take(self, event: Tokens | Done) -> None:
        if isinstance(event, Done):
            self.reply = reply(self.parts, event)
            return
        self.parts.append(event)
        count = sum(len(part.tokens) for part in self.parts)
        enough = event.finish_reason if "n" in self.options else count > 20
        if enough and not self.begun.is_set():
            self.begun.set()
            assert self.go_on.wait(100)

    def _guarded(self) -> None:
        try:
            self.run()
        except BaseException as error:
            self.failed.append(error)
            self.begun.set()

    def run(self) -> None:
        with Client(self.address, patience=100) as client:
            for event in client.generate(**self.options):
                self.take(event)


class AsyncReader(Reader):
    def run(self) -> None:
        asyncio.run(self.read())

    async def read(self) -> None:
        async with AsyncClient(self.address, patience=100) as client:
            async for event in client.generate(**self.options):
                self.take(event)


def test_the_front_killed_in_mid_stream_and_started_again(serve: Serve) -> None:
    daemon = serve("--slots", "2")
    several = {"n": 3, "stop": ["a"]}
    undisturbed = daemon.client().complete(**OPTIONS)
    three = daemon.client().complete(**OPTIONS, **several)
    assert len(undisturbed.tokens) == OPTIONS["max_tokens"]
    readers = [
        Reader(daemon.endpoint),
        AsyncReader(daemon.endpoint),
        Reader(daemon.endpoint, **several),
        AsyncReader(daemon.endpoint, **several),
    ]
    for reader in readers:
        assert reader.begun.wait(60)
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait(20)
    for reader in readers:
        assert not hasattr(reader, "reply")
        reader.go_on.set()
    daemon.start_again()
    for reader, expected in zip(readers, (undisturbed, undisturbed, three, three), strict=True):
        reader.thread.join(100)
        assert reader.failed == []
        assert [(each.tokens, each.text, each.finish_reason) for each in reader.reply.answers] == [
            (each.tokens, each.text, each.finish_reason) for each in expected.answers
        ]
        assert reader.reply.usage.completion_tokens == expected.usage.completion_tokens


def test_resuming_by_hand_and_a_deadline(shared: Daemon) -> None:
    client = shared.client()
    whole = client.complete(**OPTIONS)
    events = [event for event in client.generate(**OPTIONS) if isinstance(event, Tokens)]
    for cut in (1, len(events) // 2, len(events)):
        had = [token for event in events[:cut] for token in event.tokens]
        text = "".join(event.text for event in events[:cut])
        rest = client.complete(**OPTIONS, resume={"tokens": had, "characters": len(text)})
        assert had + rest.tokens == whole.tokens
        assert text + rest.text == whole.text
        assert rest.usage == whole.usage.model_copy(update={"cached_tokens": rest.usage.cached_tokens})
    late = client.complete(**{**OPTIONS, "max_tokens": 450}, deadline_ms=1)
    assert late.finish_reason == "deadline"
    assert late.tokens == whole.tokens[: len(late.tokens)]


def test_the_minimal_client(shared: Daemon) -> None:
    reply = shared.client().complete(messages=[{"role": "user", "content": "Hi"}], max_tokens=200)
    example = Path(__file__).parents[2] / "examples" / "minimal_client.py"
    done = subprocess.run(
        [sys.executable, str(example), "Hi"],
        env={**os.environ, "DRAFTD_ENDPOINT": shared.endpoint},
        capture_output=True,
        timeout=60,
    )
    assert done.stdout.decode() == reply.text
    assert f"({reply.usage.completion_tokens} tokens, {reply.finish_reason})" in done.stderr.decode()
    assert len(example.read_text().splitlines()) <= 40
