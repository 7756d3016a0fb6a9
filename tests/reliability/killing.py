"""Ends of the engine in mid-stream, and what its streams came to."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from draftd.ipc import Client
from draftd.ipc.errors import DraftdError
from draftd.ipc.messages import Status
from tests.daemon.conftest import Daemon
from tests.reliability.streams import STREAM, Answer, ask

STREAMS = 3  # opened before each kill
WAIT = 60.0  # seconds in which an engine must have ended
CAUSES = ("SIGKILL", "SIGSEGV", "SIGILL", "out of memory")


@dataclass(frozen=True)
class Case:
    """One stream that was open when the engine ended."""

    temperature: float
    undisturbed: Answer
    answer: Answer

    @property
    def equal(self) -> bool:
        return (self.answer.tokens, self.answer.text) == (self.undisturbed.tokens, self.undisturbed.text)

    @property
    def parts_at(self) -> int:
        """The first token that differs."""
        pairs = zip(self.undisturbed.tokens, self.answer.tokens, strict=False)
        return next((at for at, (one, other) in enumerate(pairs) if one != other), len(self.answer.tokens))

    @property
    def problem(self) -> str:
        at, count = self.parts_at, len(self.undisturbed.tokens)
        return self.answer.problem or f"token {at} of {count} differs, {len(self.answer.tokens)} came"


@dataclass(frozen=True)
class Kill:
    """One end of the engine, and the streams that it met."""

    number: int
    cause: str
    ends: int  # engines that the front saw end: one, or the kill was none
    left_open: int  # streams that the front had to go on with, once the ended engine's last words were heard
    cases: list[Case]

    @property
    def counts(self) -> bool:
        return self.ends == 1 and self.left_open > 0

    @property
    def problem(self) -> str:
        met = f"{self.ends} engines ended, {self.left_open} streams were open"
        return f"kill {self.number}, {self.cause}: {met}"


@contextlib.contextmanager
def ending(daemon: Daemon, engine: psutil.Process, cause: str) -> Iterator[None]:
    """End the engine: by a signal, or by having it ask, from now on, for memory where there is no more."""
    if cause != "out of memory":
        engine.send_signal(getattr(signal, cause))
        yield
        return
    used = engine.memory_info().vms
    resource.prlimit(engine.pid, resource.RLIMIT_AS, (used, used))
    thread = threading.Thread(target=ask_for_memory, args=(daemon.endpoint, engine))
    thread.start()
    yield
    thread.join(WAIT)


def ask_for_memory(endpoint: str, engine: psutil.Process) -> None:
    """Prompts of more than any context, which an engine that lives refuses."""
    stop = time.monotonic() + WAIT
    with Client(endpoint, name="memory") as client:
        while alive(engine) and time.monotonic() < stop:
            with contextlib.suppress(DraftdError):
                client.complete(prompt="x" * 12_000_000, max_tokens=1)


def alive(engine: psutil.Process) -> bool:
    try:
        return engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def restarts(status: Status) -> int:
    """Engines that ended, since the front's start."""
    return sum(status.counters["restarts"].values())


def open_at_the_end(client: Client, before: int) -> int:
    """Streams that are open as soon as the front has counted another end than those `before`."""
    stop = time.monotonic() + WAIT
    while True:
        status = client.status(full=True)
        if restarts(status) > before:
            return sum(each["app"] == STREAM for each in status.active)
        if time.monotonic() > stop:
            return 0
        time.sleep(0.001)


def one_kill(
    daemon: Daemon, asked: list[dict[str, Any]], cause: str, dice: random.Random
) -> tuple[int, int, list[Answer]]:
    """Open streams, end the engine after a random share of their tokens, and wait for the answers."""
    answers = [Answer() for _ in asked]
    engine = daemon.engine()
    threads = [
        threading.Thread(target=ask, args=(daemon.endpoint, question, answer))
        for question, answer in zip(asked, answers, strict=True)
    ]
    with Client(daemon.endpoint) as client:
        before = restarts(client.status(full=True))
        for thread in threads:
            thread.start()
        share = 0.5 if cause == "out of memory" else 0.75  # that one takes a while on its way
        wanted = dice.randrange(1, int(sum(question["max_tokens"] for question in asked) * share))
        while sum(len(answer.tokens) for answer in answers) < wanted and any(t.is_alive() for t in threads):
            time.sleep(0.001)
        time.sleep(dice.random() * 0.01)
        with ending(daemon, engine, cause):
            left_open = open_at_the_end(client, before)
        for thread in threads:
            thread.join(300)
        ends = restarts(client.status(full=True)) - before
    for thread, answer in zip(threads, answers, strict=True):
        if thread.is_alive():
            answer.problem = "no end within 300 s"
    return ends, left_open, answers


def kill_often(
    daemon: Daemon, count: int, asked: list[dict[str, Any]], causes: Sequence[str] = CAUSES
) -> Iterator[Kill]:
    """End the engine `count` times, in the midst of streams."""
    dice = random.Random(2)
    undisturbed = [Answer() for _ in asked]
    for question, answer in zip(asked, undisturbed, strict=True):
        ask(daemon.endpoint, question, answer)
        assert not answer.problem, answer.problem
    for number in range(count):
        daemon.wait_ready()
        cause = causes[number % len(causes)]
        chosen = dice.sample(range(len(asked)), STREAMS)
        ends, left_open, got = one_kill(daemon, [asked[index] for index in chosen], cause, dice)
        cases = [
            Case(asked[index]["temperature"], undisturbed[index], answer)
            for index, answer in zip(chosen, got, strict=True)
        ]
        yield Kill(number, cause, ends, left_open, cases)
