"""A peer of bench/peers/ as a process: what it offers, and what it answers."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from draftd.daemon.timed import waits

PEERS = Path(__file__).parent / "peers"
LOADING = 1200.0  # seconds until a peer has loaded, and perhaps converted, its models
ANSWERING = 600.0  # seconds an answer may take
NO_FORM = "no such form"  # how a reason begins that is no failure: NONE of bench/peers/lines.py

# text, tokens, first_tokens, first_seconds, seconds; perhaps sentence_seconds, gaps, rounds, drafted and
# accepted
Answer = dict[str, Any]
Ask = Callable[[dict[str, Any]], Answer]


class PeerFailed(RuntimeError):
    """A peer gave no answer; says why, by its last words where its process is gone."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that answers; `memory` reads the resident bytes of the process that holds its models."""

    name: str
    ask: Ask
    memory: Callable[[], int]
    pids: tuple[int, ...]  # all its processes


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer that has begun; all of it is empty where it could not."""

    contenders: list[Contender]  # the modes that were wanted, and that it has
    offered: list[str]  # its modes, wanted or not
    version: str  # of its library


@contextmanager
def peer(name: str, python: str, settings: dict[str, Any], missing: dict[str, str]) -> Iterator[Peer]:
    """A peer with its modes; `missing` gets the reason for each that there is not, or for the whole peer."""
    label = spoken(name)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as aside:
        try:
            child = subprocess.Popen(
                [python, str(PEERS / f"{name}.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=aside,
                text=True,
            )
        except OSError as error:
            leave_out(label, f"{python} can't be run ({error.strerror})", missing)
            yield Peer([], [], "")
            return
        stdin, stdout = child.stdin, child.stdout
        assert stdin is not None
        assert stdout is not None
        memory = resident(psutil.Process(child.pid))
        hung = ""  # said of a peer that was killed

        def exchange(line: dict[str, Any], limit: float) -> dict[str, Any]:
            def kill() -> None:
                nonlocal hung
                hung = f"{label} gave no answer within {limit:g} seconds and was killed"
                child.kill()

            timer = threading.Timer(limit, kill)
            timer.start()
            try:
                with suppress(BrokenPipeError):  # it is gone already; nothing is to be read
                    stdin.write(json.dumps(line) + "\n")
                    stdin.flush()
                answer = stdout.readline()
            finally:
                timer.cancel()
            if hung or not answer:
                status = child.wait()
                aside.seek(0)
                reason = (aside.read().strip().splitlines() or ["without a word"])[-1]
                raise PeerFailed(hung or f"{label} ended with status {status}: {reason}")
            found = dict(json.loads(answer))
            if "error" in found:
                raise PeerFailed(found["error"])
            return found

        def contender(mode: str) -> Contender:
            def answer(body: dict[str, Any]) -> Answer:
                return waited_for(exchange(body | {"mode": mode}, ANSWERING))

            return Contender(f"{label} {mode}", answer, memory, (child.pid,))

        try:
            found = Peer([], [], "")
            try:
                told = exchange(settings, LOADING)
            except PeerFailed as error:
                leave_out(label, str(error), missing)
            else:
                for mode, reason in told["absent"].items():
                    leave_out(f"{label} {mode}", reason, missing)
                built = [contender(mode) for mode in told["modes"]]
                found = Peer(built, told["offered"], told["version"])
            yield found
        finally:
            with suppress(BrokenPipeError):  # a line that a dead peer never read
                stdin.close()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            stdout.close()


def waited_for(answer: Answer) -> Answer:
    """A peer's answer with what its reader waits for in place of its `arrivals`, if it tells them."""
    arrivals = answer.pop("arrivals", None)
    if arrivals is not None:
        sentence, gaps = waits(arrivals, answer["text"], answer["seconds"])
        answer |= {"sentence_seconds": sentence, "gaps": list(gaps)}
    return answer


def resident(process: psutil.Process) -> Callable[[], int]:
    """Reads a process's resident bytes; of one that is gone the last that were read."""
    last = 0

    def read() -> int:
        nonlocal last
        with suppress(psutil.Error):
            last = process.memory_info().rss or last  # one that nobody has waited for yet holds 0
        return last

    return read


def leave_out(name: str, reason: str, missing: dict[str, str]) -> None:
    if missing.get(name) == reason:  # a peer says what it lacks each time that it begins
        return
    missing[name] = reason
    print(f"{name} is left out: {reason}", file=sys.stderr, flush=True)


def never_began(name: str, missing: Mapping[str, str]) -> bool:
    """Whether the whole peer that this contender is of is missing."""
    labels = {spoken(file.stem) for file in PEERS.glob("*.py")}
    return any(name.startswith(f"{label} ") for label in labels & missing.keys())


def spoken(peer: str) -> str:
    """A peer's name as the tables print it."""
    return peer.strip("_").replace("_", " ")
