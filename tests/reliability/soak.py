"""Eight clients that ask, cancel, vanish and flood: memory stays flat, no slot is lost and no answer wrong.

python -m tests.reliability.soak [--seconds 900]
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import zmq

from draftd.ipc import Client, Tokens
from draftd.ipc.codec import decode, encode
from draftd.ipc.errors import DraftdError, Overloaded, Unreachable
from draftd.ipc.messages import Done, Error, Generate, Hello
from draftd.ipc.parse import parse_daemon
from tests.daemon.conftest import Daemon, serving
from tests.reliability.daemons import make_files
from tests.reliability.record import here, record
from tests.reliability.streams import Answer, ask, questions

CLIENTS = 8
FLOOD = 24  # requests at once from one client: more than slots and queue take
SHORT = 8  # tokens of each of these
SETTLED = 120.0  # seconds after which memory must not grow


@dataclass
class Soak:
    """What eight clients did and met."""

    daemon: Daemon
    asked: list[dict[str, Any]]
    undisturbed: list[Answer]
    did: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[tuple[float, int, int]] = field(default_factory=list)  # seconds, bytes of front and engine

    def check(self, index: int, tokens: list[int], count: int | None = None) -> None:
        """The first so many tokens of an answer, or all of them, against its undisturbed run."""
        if tokens != self.undisturbed[index].tokens[:count]:
            self.wrong.append(f"question {index}: {len(tokens)} tokens, not those of the undisturbed run")

    def act(self, client: Client, dice: random.Random) -> None:
        """One thing that a client does."""
        index = dice.randrange(len(self.asked))
        question = self.asked[index]
        match dice.choice(("ask", "ask", "cancel", "cancel", "vanish", "flood")):
            case "ask":
                reply = client.complete(**question)
                self.check(index, reply.tokens)
                self.did["answers read to their end"] += 1
            case "cancel":
                tokens: list[int] = []
                stream = client.generate(**question)
                for event in stream:
                    tokens += event.tokens if isinstance(event, Tokens) else []
                    if len(tokens) >= question["max_tokens"] * dice.random():
                        break
                stream.close()
                self.check(index, tokens, len(tokens))
                self.did["cancelled"] += 1
            case "vanish":
                vanish(self.daemon.endpoint, question, wait=dice.random() < 0.5)
                self.did["vanished"] += 1
            case "flood":
                self.flood(dice)

    def flood(self, dice: random.Random) -> None:
        """Many requests at once on one connection; those that are let in are read to their end."""
        indices = [dice.randrange(len(self.asked)) for _ in range(FLOOD)]
        tokens: dict[str, list[int]] = {str(number): [] for number in range(FLOOD)}
        with connected(self.daemon.endpoint) as socket:
            for number, index in enumerate(indices):
                short = {**self.asked[index], "max_tokens": SHORT}
                socket.send(encode(Generate(id=str(number), **short)))
            open_requests = set(tokens)
            while open_requests:
                if not socket.poll(60_000):
                    self.wrong.append(f"no word for 60 s about {len(open_requests)} requests of a flood")
                    return
                message = parse_daemon(decode(socket.recv()))
                match message:
                    case Tokens():
                        tokens[message.id] += message.tokens
                    case Done():
                        open_requests.remove(message.id)
                        self.check(indices[int(message.id)], tokens[message.id], SHORT)
                        self.did["answers in floods"] += 1
                    case Error():
                        open_requests.remove(message.id)
                        self.did[f"refused: {message.code}"] += 1

    def client(self, number: int, end: float) -> None:
        dice = random.Random(number)
        while time.monotonic() < end:
            try:
                with Client(self.daemon.endpoint, name=f"soak {number}") as client:
                    for _ in range(20):
                        if time.monotonic() < end:
                            self.act(client, dice)
            except Overloaded:
                self.did["refused as overloaded"] += 1
            except DraftdError as error:
                self.wrong.append(f"{error.code}: {error}")

    def sample(self, began: float) -> None:
        front, engine = psutil.Process(self.daemon.process.pid), self.daemon.engine()
        self.samples.append((time.monotonic() - began, front.memory_info().rss, engine.memory_info().rss))

    def growth(self, settled: float) -> dict[str, float]:
        """By process: the share by which it grew, from the first tenth of the time after `settled` on."""
        later = [sample for sample in self.samples if sample[0] >= settled]
        tenth = max(1, len(later) // 10)
        found = {}
        for name, at in (("front", 1), ("engine", 2)):
            first = statistics.median(sample[at] for sample in later[:tenth])
            found[name] = statistics.median(sample[at] for sample in later[-tenth:]) / first - 1.0
        return found


@contextlib.contextmanager
def connected(endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    """A bare connection that has said hello; it ends without a word."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(endpoint)
        socket.send(encode(Hello(id="h")))
        if not socket.poll(30_000):
            raise Unreachable("no welcome within 30 s")
        socket.recv()
        yield socket


def vanish(endpoint: str, question: dict[str, Any], *, wait: bool) -> None:
    """Ask and leave without a word, before or after the first tokens."""
    with connected(endpoint) as socket:
        socket.send(encode(Generate(id="1", **question)))
        socket.poll(30_000)  # accepted, or not: it has arrived
        socket.recv()
        if wait:
            socket.poll(30_000)


def soak(daemon: Daemon, seconds: float, every: float = 1.0) -> Soak:
    """Run the clients, then make sure that every slot still answers."""
    asked = questions(16, 60, seed=3)
    undisturbed = [Answer() for _ in asked]
    for question, answer in zip(asked, undisturbed, strict=True):
        ask(daemon.endpoint, question, answer)
    run = Soak(daemon, asked, undisturbed)
    began = time.monotonic()
    threads = [
        threading.Thread(target=run.client, args=(number, began + seconds)) for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        run.sample(began)
        time.sleep(every)
    for thread in threads:
        thread.join()
    daemon.wait_for(lambda status: status.requests["running"] + status.requests["waiting"] == 0)
    every_slot(run)
    return run


def every_slot(run: Soak) -> None:
    """As many requests at once as there are slots, which must all be at work together."""
    slots = run.daemon.status().engine["slots"]
    with Client(run.daemon.endpoint) as client:
        long = {**run.asked[0], "max_tokens": 400}
        streams = [client.generate(**{**long, "seed": seed}) for seed in range(slots)]
        for stream in streams:
            while not isinstance(next(stream), Tokens):
                pass
        for stream in streams:
            stream.close()
    for index, question in enumerate(run.asked):
        answer = Answer()
        ask(run.daemon.endpoint, question, answer)
        run.check(index, answer.tokens)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900.0)
    seconds = parser.parse_args().seconds
    settled = min(SETTLED, seconds / 3)
    with tempfile.TemporaryDirectory(prefix="draftd-") as folder, serving(*make_files(folder)) as serve:
        # The history is meant to grow up to its bound (docs/suffix.md): without it growth would be a leak.
        daemon = serve(target="same.gguf", backend="llama_cpp", queue="16", history="false")
        engine = daemon.engine().pid
        run = soak(daemon, seconds)
        restarts = int(daemon.engine().pid != engine)
    grew = run.growth(settled)
    _, front, child = run.samples[-1]
    record(
        "soak",
        [
            here(),
            (f"{CLIENTS} clients for", f"{seconds:.0f} s"),
            *((what, str(count)) for what, count in sorted(run.did.items())),
            ("answers that differ from their undisturbed run, and errors", str(len(run.wrong))),
            ("engines replaced", str(restarts)),
            (
                f"resident memory of the front, at the end and since second {settled:.0f}",
                size(front, grew["front"]),
            ),
            (
                f"resident memory of the engine, at the end and since second {settled:.0f}",
                size(child, grew["engine"]),
            ),
        ],
    )
    for line in run.wrong[:20]:
        print(line, file=sys.stderr)
    return 1 if run.wrong or restarts or max(grew.values()) >= 0.01 else 0


def size(used: int, grew: float) -> str:
    return f"{used / 2**20:.1f} MiB, {grew:+.2%}"


if __name__ == "__main__":
    sys.exit(main())
