"""End the engine in mid-stream, again and again, and hold every answer to its undisturbed run.

    python -m tests.reliability.kills [--count 100] [--pair smollm2]

Without --pair a tiny model in fp32, whose answers must be equal to the token; questions whose undisturbed
answer depends on how it is drafted (a tie within the rounding of fp32) are left out and counted. With --pair
the pair in the user's cache in bf16, where a near tie may flip when a cache is recomputed at another width:
the answers that part are counted, with the lead of the likeliest token at the place where they do.

It fails unless each kill ended an engine that had a stream to go on with: the front's counters tell.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from draftd.ipc import Client, Tokens
from draftd.ipc.errors import DraftdError
from draftd.ipc.messages import Status
from tests.daemon.conftest import Daemon, serving, write_models
from tests.reliability.record import here, record

STREAMS = 3  # opened before each kill
WAIT = 60.0  # seconds in which an engine must have ended
STREAM = "stream"  # what a client is called that asks for one
CAUSES = ("SIGKILL", "SIGSEGV", "SIGILL", "out of memory")
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--pair", help="a pair in the cache, in bf16, in place of the tiny fp32 model")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="draftd-") as folder:
        if given.pair is None:
            with serving(*make_files(folder)) as serve:
                daemon = serve(target="same.gguf", backend="llama_cpp")
                asked = questions(12, 400)
                sure = settled(daemon, asked)
                return report(len(asked) - len(sure), kill_often(daemon, given.count, sure))
        with serving_pair(Path(folder), given.pair) as daemon:
            asked = questions(12, 120)
            for question in asked:
                question["logprobs"] = 2
            return report_bf16(given.pair, kill_often(daemon, given.count, asked))


def make_files(folder: str) -> tuple[Path, Path]:
    """A folder for the daemon and one with the tiny models."""
    root = Path(folder) / "tiny"
    root.mkdir()
    write_models(root)
    return Path(folder), root


@contextlib.contextmanager
def serving_pair(folder: Path, pair: str) -> Iterator[Daemon]:
    """A daemon over a pair of the cache, with the target in transformers and bf16."""
    endpoint = f"ipc://{folder}/d.sock"
    command = [sys.executable, "-m", "draftd.daemon.cli", "serve", "--pair", pair, "--endpoint", endpoint]
    environment = {
        **os.environ,
        "DRAFTD_BACKEND": "transformers",
        "DRAFTD_CONTEXT": "1024",
        "DRAFTD_THREADS": "1",
        "DRAFTD_STATE_DIR": str(folder / "state"),
    }
    lines = folder / "log"
    with lines.open("w") as out:

        def launch() -> subprocess.Popen[str]:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=out, text=True)

        process = launch()
    try:
        daemon = Daemon(process, endpoint, lines, launch)
        daemon.wait_ready()
        yield daemon
    finally:
        process.terminate()
        process.wait(30)


def counted(kills: list[Kill]) -> list[tuple[str, str]]:
    """Rows: what the kills were, by the front's own counters."""
    some = sum(kill.left_open > 0 for kill in kills)
    return [
        ("kills that ended one engine each", f"{sum(kill.ends == 1 for kill in kills)} of {len(kills)}"),
        ("kills with at least one stream open", f"{some} of {len(kills)}"),
        ("streams open then", f"{sum(kill.left_open for kill in kills)} of {STREAMS * len(kills)}"),
    ]


def report(left_out: int, killing: Iterator[Kill]) -> int:
    """The table of the fp32 run; a failure is shown as it comes."""
    kills = []
    bad = 0
    equal: Counter[str] = Counter()
    for kill in killing:
        kills.append(kill)
        differ = [case for case in kill.cases if not case.equal]
        equal[kill.cause] += len(kill.cases) - len(differ)
        bad += bool(differ)
        tell(kill, differ)
    by_cause = Counter(kill.cause for kill in kills)
    record(
        "kills",
        [
            here(),
            ("questions left out: their undisturbed runs part", str(left_out)),
            *counted(kills),
            ("kills whose every stream went on and was equal", f"{len(kills) - bad} of {len(kills)}"),
            *(
                (f"streams equal after {cause}", f"{equal[cause]} of {STREAMS * by_cause[cause]}")
                for cause in CAUSES
            ),
        ],
    )
    return 1 if bad or not all(kill.counts for kill in kills) else 0


def report_bf16(pair: str, killing: Iterator[Kill]) -> int:
    """The table of the bf16 run: how many parted, and how far the likeliest token led where they did."""
    kills = []
    total: Counter[bool] = Counter()
    parted: Counter[bool] = Counter()
    margins = []
    broken = 0
    for kill in killing:
        kills.append(kill)
        lost = []
        for case in kill.cases:
            sampled = case.temperature > 0
            total[sampled] += 1
            if case.answer.problem or len(case.answer.tokens) != len(case.undisturbed.tokens):
                lost.append(case)
            elif not case.equal:
                parted[sampled] += 1
                if not sampled:
                    margins.append(case.undisturbed.margins[case.parts_at])
        broken += len(lost)
        tell(kill, lost)
    shown = ", ".join(f"{margin:.3f}" for margin in sorted(margins)) or "none"
    record(
        "kills-bf16",
        [
            here(),
            ("pair", f"{pair}, target in transformers, bf16"),
            *counted(kills),
            ("streams that did not go on to their end", str(broken)),
            ("greedy streams equal to the token", f"{total[False] - parted[False]} of {total[False]}"),
            ("sampled streams equal to the token", f"{total[True] - parted[True]} of {total[True]}"),
            ("where greedy ones part: lead of the likeliest token, in nats", shown),
        ],
    )
    return 1 if broken or not all(kill.counts for kill in kills) else 0


def tell(kill: Kill, cases: list[Case]) -> None:
    """What was wrong with a kill, as it comes."""
    if not kill.counts:
        print(kill.problem, file=sys.stderr, flush=True)
    for case in cases:
        print(f"kill {kill.number}, {kill.cause}: {case.problem}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
