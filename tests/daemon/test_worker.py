"""The engine process's side of the front's messages, turned in this process over a real socket."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
import zmq

from draftd.daemon import logs, worker
from draftd.daemon.asked import Asked
from draftd.daemon.control import Control
from draftd.daemon.drafting import Drafting
from draftd.daemon.engine import Engine
from draftd.daemon.keeping import Keeping
from draftd.daemon.loader import Loaded
from draftd.daemon.pulse import SIZE, Pulse
from draftd.daemon.retreat import Retreat
from draftd.daemon.settings import Settings
from draftd.daemon.worker import Worker
from draftd.ipc.errors import InvalidRequest
from draftd.models.base import Rows, Span
from draftd.models.processors import Penalties, Processors, Row
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


@pytest.mark.parametrize("reason", ["cancelled", "deadline"])
def test_a_cancel_takes_effect_before_the_next_pass(bench: Bench, reason: str) -> None:
    def cancel() -> None:
        bench.say({"type": "cancel", "key": 1, "reason": reason})
        bench.say({"type": "stop"})

    bench.target.at, bench.target.interrupt = 5, cancel  # type: ignore[method-assign]
    *tokens, done = bench.run(GENERATE)
    assert bench.target.passes == 5
    assert sum(len(body["tokens"]) for body in tokens) == 5
    assert done["finish_reason"] == reason
    assert done["usage"]["completion_tokens"] == 5
    assert not bench.worker.engine.busy


@pytest.mark.parametrize("reason", ["cancelled", "deadline"])
def test_a_cancel_within_a_long_prompt_takes_effect_behind_one_chunk(bench: Bench, reason: str) -> None:
    def cancel() -> None:
        bench.say({"type": "cancel", "key": 1, "reason": reason})
        bench.say({"type": "stop"})

    bench.worker.engine.scheduler.chunk = 16
    bench.target.at, bench.target.interrupt = 3, cancel  # type: ignore[method-assign]
    (done,) = bench.run({**GENERATE, "tokens": [1, 2] * 100})
    assert bench.target.fed == 3 * 16
    assert done["finish_reason"] == reason
    assert not bench.worker.engine.busy


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


@pytest.mark.parametrize("stop", [[], ["zz"], ["ab"], ["fc"]])
def test_a_request_resumed_at_any_token_ends_as_it_would_have(ending: Ending, stop: list[str]) -> None:
    tokens, text, done = ending.ask(max_tokens=20, stop=stop)
    for cut in range(len(tokens) + 1):
        known = "".join(chr(97 + token) for token in tokens[:cut])[: len(text)]
        had: dict[str, Any] = {"emitted": [tokens[:cut]], "characters": [len(known)]}
        rest, more, end = ending.ask(max_tokens=20, stop=stop, **had)
        assert tokens[:cut] + rest == tokens
        assert known + more == text
        assert (end["finish_reason"], end["usage"]["completion_tokens"]) == (
            done["finish_reason"],
            len(tokens),
        )


@pytest.mark.parametrize("room", [0, 8], ids=["with its limit", "before its limit"])
def test_an_answer_that_a_stop_string_ends_has_ended_by_itself_once(
    ending: Ending, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    _, text, _ = ending.ask(max_tokens=20, speculate=True)
    stop, learn, heard = text[:12], Control.ended, list[bool]()

    def hear(control: Control, stopped: bool) -> None:
        heard.append(stopped)
        learn(control, stopped)

    monkeypatch.setattr(Control, "ended", hear)
    answer = ending.worker.loaded.drafting.controller.answer()
    tokens, _, done = ending.ask(max_tokens=12 + room, speculate=True, stop=[stop])
    assert (len(tokens), done["finish_reason"]) == (12, "stop")
    assert len(heard) == 1
    if room:
        assert heard == [True]
        assert ending.worker.loaded.drafting.controller.answer() < answer


def test_a_resumed_token_outside_the_vocabulary_is_refused(bench: Bench) -> None:
    (error,) = bench.run({**GENERATE, "emitted": [[VOCAB]]}, {"type": "stop"})
    assert error["code"] == "invalid_request"


@pytest.mark.parametrize("emitted", [[], [1]], ids=["new", "sent again"])
def test_a_search_wider_than_the_engine_s_slots_is_refused(bench: Bench, emitted: list[int]) -> None:
    """The front asks only what the configuration was when the request came."""
    wide = {"beams": bench.target.slots + 1, "temperature": 0.0, "emitted": [emitted]}
    (error,) = bench.run({**GENERATE, **wide}, {"type": "stop"})
    assert error["code"] == "invalid_request"
    assert "beams=5 needs as many slots, this daemon has 4: ask for 4 at most" in error["message"]
    assert not bench.worker.engine.busy


def test_a_fault_of_ours_ends_one_request_and_not_the_engine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(body: dict[str, Any]) -> list[int]:
        raise ZeroDivisionError

    monkeypatch.setattr(bench.worker.asked, "prompt", fault)
    (error,) = bench.run(GENERATE, {"type": "stop"})
    assert (error["key"], error["code"]) == (1, "internal")
    assert "ZeroDivisionError" in error["message"]


PREFILL = {name: GENERATE[name] for name in ("messages", "prompt", "tokens", "client", "cache_owner")}
PREFILL |= {"type": "prefill", "key": 2, "user": "", "app": "", "conversation": None}


def test_a_fault_of_ours_ends_one_prefill_and_not_the_engine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(body: dict[str, Any]) -> list[int]:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(bench.worker.asked, "prompt", fault)
        (error,) = bench.run(PREFILL, {"type": "stop"})
    assert (error["type"], error["key"], error["code"]) == ("prefilled", 2, "internal")


@pytest.mark.parametrize("body", [GENERATE, PREFILL], ids=["generate", "prefill"])
def test_a_fault_in_a_round_ends_the_request_that_it_was_for(ending: Ending, body: dict[str, Any]) -> None:
    prompt = [1, 2, 3] * 10
    whole = ending.ask(tokens=prompt, max_tokens=20)
    ending.target.fails_at = ending.target.passes + 1
    ending.target.failing = lambda: ending.say({"type": "stop"})
    other = (whole[0][0] + 1) % VOCAB  # not what stands there behind the prompt
    (error,) = ending.run({**body, "tokens": [*prompt, other], "key": 2})
    assert (error["key"], error["code"]) == (2, "internal")
    assert not ending.worker.engine.busy
    assert [ending.worker.jobs, ending.worker.choices, ending.worker.prefills] == [{}, {}, {}]
    tokens, text, done = ending.ask(tokens=prompt, max_tokens=20)
    assert (tokens, text) == whole[:2]
    assert done["usage"]["cached_tokens"] == 0, "what the failed round may have left is not trusted"


def test_a_fault_that_could_be_of_several_requests_ends_the_engine(bench: Bench) -> None:
    bench.target.fails_at = 1
    with pytest.raises(ZeroDivisionError):
        bench.run(GENERATE, {**GENERATE, "key": 2})


def test_how_to_log_changes_while_it_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, bool]] = []
    monkeypatch.setattr(logs, "set_up", lambda level, content: heard.append((level, content)))
    assert bench.run({"type": "log", "level": "debug", "content": True}, {"type": "stop"}) == []
    assert heard == [("debug", True)]


NO_MEMORY = {
    "python": MemoryError(),
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "torch": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
}


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY)
@pytest.mark.parametrize("body", [GENERATE, PREFILL], ids=["generate", "prefill"])
def test_want_of_memory_in_a_round_ends_the_engine(
    bench: Bench, body: dict[str, Any], error: Exception
) -> None:
    def fail() -> None:
        bench.say({"type": "stop"})
        raise error

    bench.target.fails_at, bench.target.failing = 1, fail
    with pytest.raises(type(error)):
        bench.run(body)
    assert not bench.front.poll(0), "no request hears of it: the next engine goes on"


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY)
@pytest.mark.parametrize("body", [GENERATE, PREFILL], ids=["generate", "prefill"])
def test_want_of_memory_at_a_message_ends_the_engine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], error: Exception
) -> None:
    def fail(body: dict[str, Any]) -> list[int]:
        raise error

    monkeypatch.setattr(bench.worker.asked, "prompt", fail)
    with pytest.raises(type(error)):
        bench.run(body, {"type": "stop"})
    assert not bench.front.poll(0)


def test_a_second_fault_in_a_row_ends_the_engine(bench: Bench) -> None:
    bench.target.fails_at = 1

    def next_one() -> None:
        bench.target.fails_at = 2
        bench.say({**GENERATE, "key": 2})

    bench.target.failing = next_one
    with pytest.raises(ZeroDivisionError):
        bench.run(GENERATE)


@pytest.mark.parametrize(("parent", "begins"), [(1, True), (2, False)])
def test_it_runs_only_under_the_front_that_started_it_be_that_process_1(
    monkeypatch: pytest.MonkeyPatch, parent: int, begins: bool
) -> None:
    class BeginsError(Exception):
        pass

    def guard() -> None:
        raise BeginsError

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(prctl=lambda *_: 0))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "getppid", lambda: parent)
    monkeypatch.setattr(logs, "guard", guard)
    monkeypatch.setattr(sys, "argv", ["worker", "ipc:///nowhere", "0", "1"])
    with pytest.raises(BeginsError if begins else SystemExit):
        worker.main()


def test_a_beam_search_resumed_behind_its_stop_string_gives_nothing_more(ending: Ending) -> None:
    _, text, _ = ending.ask(max_tokens=12, beams=2)
    asked: dict[str, Any] = {"max_tokens": 12, "beams": 2, "stop": [text[4:6]]}
    tokens, before, done = ending.ask(**asked)
    assert 0 < len(tokens) < 12
    for cut in (len(tokens) - 1, len(tokens)):
        known = "".join(chr(97 + token) for token in tokens[:cut])[: len(before)]
        rest, more, end = ending.ask(**asked, emitted=[tokens[:cut]], characters=[len(known)])
        assert tokens[:cut] + rest == tokens
        assert known + more == before
        assert end["finish_reason"] == done["finish_reason"] == "stop"
        assert end["usage"]["completion_tokens"] == len(tokens)


class Stuck(Processors):
    def apply(self, row: Row, drafted: Sequence[int] = ()) -> None:
        raise InvalidRequest("grammar: the answer can't go on")


def test_a_grammar_that_errs_ends_its_request_with_all_its_answers_and_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def processors(body: dict[str, Any], prompt: list[int]) -> Processors | None:
        return Stuck(Penalties(), prompt) if body["key"] == 1 else None

    monkeypatch.setattr(bench.worker.asked, "processors", processors)
    bench.target.at = 5
    bench.target.interrupt = lambda: bench.say({"type": "stop"})  # type: ignore[method-assign]
    two = {"emitted": [[], []], "characters": [0, 0], "endings": [None, None]}
    said = bench.run({**GENERATE, **two}, {**GENERATE, "key": 2, "max_tokens": 5})
    (error,) = [body for body in said if body["key"] == 1]
    assert (error["type"], error["code"]) == ("error", "invalid_request")
    assert error["message"] == "grammar: the answer can't go on"
    assert said[-1]["type"] == "done"
    assert said[-1]["usage"]["completion_tokens"] == 5
    assert [bench.worker.jobs, bench.worker.choices] == [{}, {}]
    assert len(bench.worker.engine.scheduler.places.free) == 4


def test_logits_that_are_no_numbers_end_a_request_and_what_it_started_from_is_forgotten(
    ending: Ending, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = [1, 2, 3] * 10
    whole = ending.ask(tokens=prompt, max_tokens=20)
    ending.target.at = ending.target.passes + 1
    ending.target.interrupt = lambda: ending.say({"type": "stop"})  # type: ignore[method-assign]
    with monkeypatch.context() as patched:
        patched.setattr(ending.target, "row", lambda tokens: np.full(VOCAB, np.nan, np.float32))
        (error,) = ending.run({**GENERATE, "tokens": [*prompt, 4], "key": 2})
    assert (error["key"], error["code"]) == (2, "engine_failed")
    assert "are not numbers" in error["message"]
    assert "request 2: the model's logits" in caplog.text
    tokens, text, done = ending.ask(tokens=prompt, max_tokens=20)
    assert (tokens, text) == whole[:2]
    assert done["usage"]["cached_tokens"] == 0


@pytest.mark.parametrize(
    "body",
    [
        {"tokens": [1, VOCAB]},
        {"tokens": None, "prompt": "x"},
        {"tokens": None, "messages": [{"role": "user", "content": "x", "tool_calls": None}]},
    ],
    ids=lambda body: list(body)[-1],
)
@pytest.mark.parametrize("kind", ["generate", "prefill"])
def test_a_prompt_with_a_token_that_the_model_lacks_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str, body: dict[str, Any]
) -> None:
    """A tokenizer may have tokens, added ones, that the model has no place for."""

    def encode(*_: object) -> list[int]:
        return [1, VOCAB]

    for name in ("encode", "chat"):
        monkeypatch.setattr(Letters, name, encode, raising=False)
    asked = GENERATE if kind == "generate" else PREFILL | {"tools": []}
    (error,) = bench.run({**asked, **body}, {"type": "stop"})
    assert error["code"] == "invalid_request"
    assert "token 8 of the prompt is outside the vocabulary of 8" in error["message"]
