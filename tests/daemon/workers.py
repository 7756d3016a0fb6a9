"""An engine process's worker in this process, over a target of chosen logits; the test is the front."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from draftd.daemon.asked import Asked
from draftd.daemon.drafting import Drafting
from draftd.daemon.engine import Engine
from draftd.daemon.keeping import Keeping
from draftd.daemon.loader import Loaded
from draftd.daemon.pulse import SIZE, Pulse
from draftd.daemon.retreat import Retreat
from draftd.daemon.settings import Settings
from draftd.daemon.worker import Worker
from draftd.models.base import Rows, Span
from tests.fakes import TableTarget

VOCAB = 8
GENERATE: dict[str, Any] = {
    "type": "generate",
    "key": 1,
    "emitted": [[]],
    "characters": [0],
    "endings": [None],
    "beams": 1,
    "messages": None,
    "prompt": None,
    "tokens": [1, 2, 3],
    "max_tokens": 100,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "seed": 5,
    "stop": [],
    "stop_tokens": [],
    "grammar": None,
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "logprobs": None,
    "ignore_eos": True,
    "speculate": False,
    "verify": "coupled",
    "cache_prompt": True,
    "priority": "interactive",
    "client": "",
    "cache_owner": "",
    "scope": "",
    "user": "",
    "app": "",
    "conversation": None,
    "received": 0.0,
}


class Letters:
    """A tokenizer whose tokens are letters."""

    stop_ids = frozenset[int]()

    def stream(self, behind: Sequence[int] = ()) -> Letters:
        return self

    def push(self, token: int) -> str:
        return chr(97 + token)

    def flush(self) -> str:
        return ""


class Interrupted(TableTarget):
    """Runs a function in the middle of its n-th pass, when a message of the front may well come; or fails."""

    at = 0
    fails_at = 0
    failing: Callable[[], None] = staticmethod(lambda: None)  # called before it fails

    def interrupt(self) -> None: ...

    def forward(self, spans: Sequence[Span]) -> list[Rows]:
        if self.passes + 1 == self.at:
            self.interrupt()
        rows = super().forward(spans)
        if self.passes == self.fails_at:
            self.failing()
            raise ZeroDivisionError
        return rows


class Bench:
    def __init__(self, directory: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.front = self.context.socket(zmq.PAIR)
        socket = self.context.socket(zmq.PAIR)
        socket.bind("inproc://engine")
        self.front.connect("inproc://engine")
        self.target = Interrupted(VOCAB)
        page = os.memfd_create("pulse")
        os.truncate(page, SIZE)
        self.worker = Worker(socket, Pulse(page, 60.0))
        drafting = Drafting()
        tokenizer: Any = Letters()
        self.worker.loaded = Loaded(self.target, tokenizer, drafting, directory / "learnt.json", {})
        self.worker.engine = Engine(self.target, drafting)
        self.worker.retreat = Retreat(self.worker.loaded, self.worker.engine)
        self.worker.asked = Asked(self.worker.loaded)
        settings = Settings.model_validate({"state_dir": directory, "conversations_mb": 0})
        self.worker.keeping = Keeping(settings, {}, self.worker.engine)
        self.worker.saved = time.monotonic()

    def say(self, body: dict[str, Any]) -> None:
        self.front.send(msgpack.packb(body))

    def run(self, *bodies: dict[str, Any]) -> list[dict[str, Any]]:
        """Work until told to stop; what the engine said."""
        for body in bodies:
            self.say(body)
        self.worker.run()
        said = []
        while self.front.poll(0):
            said.append(msgpack.unpackb(self.front.recv()))
        return [body for body in said if body["type"] != "learnt"]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.context.destroy(linger=0)


def _whole(bodies: list[dict[str, Any]]) -> tuple[list[int], str, dict[str, Any]]:
    *tokens, done = bodies
    ids = [token for body in tokens for token in body["tokens"]]
    return ids, "".join(body["text"] for body in tokens), done


class Ending(Bench):
    """Stops once the request it was given has ended."""

    def ask(self, **fields: Any) -> tuple[list[int], str, dict[str, Any]]:
        end, finish = {"type": "stop"}, self.worker.finish

        def last(job: Any, reason: str) -> None:
            finish(job, reason)
            self.say(end)

        self.worker.finish = last  # type: ignore[method-assign, assignment]
        answer = _whole(self.run({**GENERATE, **fields}))
        self.worker.finish = finish  # type: ignore[method-assign]
        return answer


@pytest.fixture
def ending(tmp_path: Path) -> Iterator[Ending]:
    made = Ending(tmp_path)
    yield made
    made.context.destroy(linger=0)


PREFILL = {name: GENERATE[name] for name in ("messages", "prompt", "tokens", "client", "cache_owner")}
PREFILL |= {"type": "prefill", "key": 2, "user": "", "app": "", "conversation": None}
