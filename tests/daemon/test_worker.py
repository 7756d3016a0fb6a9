"""The engine process's side of the front's messages, turned in this process over a real socket."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from draftd.daemon import logs, worker
from draftd.daemon.calls import Calls
from draftd.daemon.control import Control
from draftd.daemon.loader import Loaded, Report
from draftd.daemon.pulse import LOADING
from draftd.daemon.retreat import Retreat
from draftd.daemon.settings import Settings
from tests.daemon.test_calls import HERMES
from tests.daemon.workers import GENERATE, PREFILL, VOCAB, Bench, Ending, Letters, bench, ending

__all__ = ["bench", "ending"]


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


def test_the_speed_of_a_resumed_answer_is_that_of_the_tokens_since(ending: Ending) -> None:
    tokens, _, done = ending.ask(max_tokens=20)
    assert done["stats"]["tokens_per_second"] > 0
    rest, _, done = ending.ask(max_tokens=20, emitted=[tokens[:19]], characters=[19])
    assert rest == tokens[19:]
    assert done["stats"]["tokens_per_second"] == 0, "there is none behind the first"


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


def test_what_was_computed_without_cache_prompt_tells_no_other_request_of_it(ending: Ending) -> None:
    asked: dict[str, Any] = {"tokens": [1, 2, 3] * 10, "max_tokens": 3}
    cached = []
    for reuse in (False, True, True, False):
        _, _, done = ending.ask(**asked, cache_prompt=reuse)
        cached.append(done["usage"]["cached_tokens"])
    assert cached == [0, 0, 29, 0]


class Calling:
    """An answer's text that calls a tool."""

    def __init__(self) -> None:
        self.pieces = iter(("<tool_call>", '\n{"name": "', "now", '", "arguments": ', '{"a": 1}'))

    def push(self, token: int) -> str:
        return next(self.pieces)

    def flush(self) -> str:
        return ""


def test_what_a_stop_string_held_back_of_a_call_comes_with_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.worker.loaded.tokenizer, "stream", lambda behind: Calling())
    monkeypatch.setattr(bench.worker.asked, "calls", lambda body: Calls(HERMES))
    bench.target.at = 5
    bench.target.interrupt = lambda: bench.say({"type": "stop"})  # type: ignore[method-assign]
    *tokens, _ = bench.run({**GENERATE, "max_tokens": 5, "stop": ["}."]})
    parts = [part for body in tokens for part in body["tool_calls"]]
    assert "".join(part["arguments"] for part in parts) == '{"a": 1}'


def test_a_prefill_that_lost_its_slot_computed_no_less_than_nothing(bench: Bench) -> None:
    request = bench.worker.asked.prefill(PREFILL)
    request.reused, request.cached = 2, 1  # it began anew, and was overtaken
    bench.worker.prefills[request.key] = request
    bench.worker.prefilled(request)
    (prefilled,) = bench.run({"type": "stop"})
    assert prefilled["told"]["state"] == "superseded"
    assert prefilled["told"]["computed_tokens"] == 0


def test_how_to_log_changes_while_it_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, bool]] = []
    monkeypatch.setattr(logs, "set_up", lambda level, content: heard.append((level, content)))
    assert bench.run({"type": "log", "level": "debug", "content": True}, {"type": "stop"}) == []
    assert heard == [("debug", True)]


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


@pytest.mark.parametrize(
    ("pair", "ran", "backend"),
    [
        ("qwen2.5-coder", None, "auto"),
        ("qwen2.5-coder", "llama_cpp", "llama_cpp"),
        ("smollm2", "llama_cpp", "auto"),
    ],
)
def test_an_engine_keeps_the_backend_of_the_one_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: str, ran: str | None, backend: str
) -> None:
    """Only the first is asked what fits, and to measure both would load the other. A pair's word holds."""
    loaded, chosen = bench.worker.loaded, list[str]()

    def load(settings: Settings, report: Report) -> Loaded:
        chosen.append(settings.backend)
        return loaded

    monkeypatch.setattr(worker, "load", load)
    monkeypatch.setenv("DRAFTD_CATALOG", str(tmp_path / "none.toml"))
    given = {"pair": pair, "state_dir": tmp_path, "check_memory": False, "conversations_mb": 0}
    bench.worker.load(Settings.model_validate(given), ran)
    assert chosen == [backend]


def test_what_the_governor_asks_for_may_take_as_long_as_a_load(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int | str] = []
    monkeypatch.setattr(bench.worker.pulse, "beat", lambda stage: done.append(stage))
    monkeypatch.setattr(bench.worker.retreat, "to", lambda rung: done.append(rung.name))
    assert bench.worker.handle({"type": "govern", "rung": 0})
    assert done == [LOADING, "NORMAL"]


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


def test_a_draft_that_lacks_tokens_is_replaced_behind_an_answer(
    ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    say = ending.worker.say

    def told(body: dict[str, Any]) -> None:
        order.append(body["type"])
        say(body)

    monkeypatch.setattr(ending.worker, "say", told)
    monkeypatch.setattr(Retreat, "incomplete", property(lambda _: "whole" not in order))
    monkeypatch.setattr(ending.worker.retreat, "complete", lambda: order.append("whole"))
    monkeypatch.setattr(ending.worker.pulse, "beat", lambda stage, **_: order.append(f"beat {stage}"))
    ending.ask(max_tokens=3)
    at = order.index("whole")
    assert order[at - 1] == f"beat {LOADING}"
    assert order[at - 3 : at - 1] == ["done", "learnt"], "whoever asked has the answer by then"
    assert order.count("whole") == 1


def test_a_draft_that_is_opened_again_shows_that_it_gets_on_and_no_progress(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The front watches the page, and the models' progress is that of the start."""
    loaded, reports = bench.worker.loaded, list[Report]()

    def load(settings: Settings, report: Report) -> Loaded:
        reports.append(report)
        report(0.9, "loading the draft")
        return loaded

    monkeypatch.setattr(worker, "load", load)
    given = {"state_dir": tmp_path, "check_memory": False, "conversations_mb": 0}
    bench.worker.load(Settings.model_validate(given))
    said = [msgpack.unpackb(bench.front.recv())["type"] for _ in range(2)]
    assert said == ["progress", "ready"]
    before = bench.worker.pulse._count
    reports[0](0.9, "loading the draft")
    assert bench.worker.pulse._count == before + 1
    assert not bench.front.poll(50), "the daemon is ready all the while"
