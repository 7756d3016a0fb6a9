"""Requests in the front, without an engine: what is refused, faults of ours, what the next engine is told."""

from __future__ import annotations

import time
from typing import Any

import pytest

from draftd.daemon.jobs import MAX_ENDS
from draftd.ipc.parts import Stats
from tests.daemon.desk import Desk


@pytest.mark.parametrize("bias", [float("nan"), float("inf"), float("-inf"), 1e10])
def test_a_bias_that_a_logit_cannot_take_is_refused(front: Desk, bias: float) -> None:
    error = front.ask(front.app(), "generate", prompt="x", logit_bias={"7": bias})
    assert (error["code"], error["message"][:20]) == ("invalid_request", "logit_bias.7: should")


@pytest.mark.parametrize("kind", ["generate", "prefill"])
def test_a_fault_of_ours_at_a_message_ends_its_request_and_not_the_front(
    front: Desk, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app, other = front.app(), front.app()
    key = front.generate(other)
    jobs = front.front.jobs

    def fault(body: dict[str, Any]) -> None:
        if body["type"] == kind:
            raise ZeroDivisionError
        front.told.append(body)

    for part in (jobs, jobs.prefills):
        monkeypatch.setattr(part, "tell_engine", fault)
    app.say(kind, prompt="x")
    front.turn()
    while (error := app.hear())["type"] == "accepted":
        pass
    assert (error["id"], error["code"]) == ("1", "internal")
    assert "ZeroDivisionError" in error["message"]
    assert "test_jobs.py" in caplog.text, "the log says where"
    assert front.told[-1]["type"] == ("cancel" if kind == "generate" else "cancel_prefill")
    assert list(jobs.by_key) == [key]
    assert not jobs.prefills.by_key
    assert jobs.lifetime.leases == {key}
    front.tokens(key, 1)
    assert other.hear()["tokens"] == [1]


@pytest.mark.parametrize("kind", ["generate", "prefill"])
@pytest.mark.parametrize("wrong", [{"type": "credit", "credit": -1}, {"type": "generate", "prompt": "y"}])
def test_an_error_ends_the_open_request_that_it_names(
    front: Desk, kind: str, wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front.front.jobs.prefills, "tell_engine", front.told.append)
    app, other = front.app(), front.app()
    key = front.generate(other)
    app.say(kind, prompt="x")
    front.turn()
    assert kind == "prefill" or app.hear()["type"] == "accepted"
    error = front.ask(app, wrong["type"], **{name: value for name, value in wrong.items() if name != "type"})
    assert (error["type"], error["id"], error["code"]) == ("error", "1", "invalid_request")
    assert front.told[-1]["type"] == ("cancel" if kind == "generate" else "cancel_prefill")
    assert list(front.front.jobs.by_key) == [key], "that of another connection goes on"
    assert not front.front.jobs.prefills.by_key
    assert front.ask(app, "generate", prompt="z")["type"] == "accepted", "its id is free again"


def test_a_fault_at_a_message_of_no_request_is_answered(front: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault() -> dict[str, int]:
        raise ZeroDivisionError

    monkeypatch.setattr(front.front.jobs, "counts", fault)
    app = front.app()
    assert front.ask(app, "status", "s")["code"] == "internal"
    assert front.ask(app, "ping", "p")["type"] == "pong"


def test_what_an_app_has_had_of_several_answers_is_the_engines_to_go_on_from(front: Desk) -> None:
    app = front.app()
    had = [{"tokens": [1], "characters": 1, "finish_reason": "stop"}, {"tokens": [2, 3], "characters": 2}]
    front.generate(app, n=2, seed=5, resume=had)
    told = front.told[-1]
    assert (told["emitted"], told["characters"]) == ([[1], [2, 3]], [1, 2])
    assert told["endings"][0].items() >= {"finish_reason": "stop", "completion_tokens": 1}.items()
    assert told["endings"][0]["stats"]["seed"] == 5
    assert told["endings"][1] is None
    error = front.ask(app, "generate", "2", prompt="x", n=3, resume=had)
    assert error["code"] == "invalid_request"


def test_a_new_engine_gets_the_tokens_and_the_text_that_are_out(front: Desk) -> None:
    app = front.app()
    key = front.generate(app, credit=1, seed=3)
    front.tokens(key, 1, 2)
    front.tokens(key, 3)  # waits for credit, and is as good as out
    front.front.jobs.submit_all()
    again = front.told[-1]
    assert (again["emitted"], again["characters"], again["seed"]) == ([[1, 2, 3]], [3], 3)


@pytest.mark.parametrize("reason", ["cancelled", "deadline"])
def test_what_was_to_end_when_its_engine_died_is_not_begun_again(front: Desk, reason: Any) -> None:
    app = front.app()
    key = front.generate(app)
    front.tokens(key, 1)
    assert app.hear()["tokens"] == [1]
    front.front.jobs.stop(front.front.jobs.by_key[key], reason, answerable=True)
    front.front.jobs.submit_all()
    done = app.hear()
    assert (done["type"], done["finish_reason"]) == ("done", reason)
    assert done["usage"]["completion_tokens"] == 1
    assert [body["type"] for body in front.told] == ["generate", "cancel"]
    assert not front.front.jobs.by_key


def test_an_end_without_an_engine_tells_of_each_answer(front: Desk) -> None:
    app = front.app()
    key = front.generate(app, n=2, seed=5)
    given: dict[str, Any] = {"drafted": [False], "lengths": [1], "rounds": [0, 0], "tool_calls": []}
    for index in range(2):
        front.front.jobs.relay(
            {"type": "tokens", "key": key, "index": index, "text": "a", "tokens": [index], **given}
        )
    ending: dict[str, Any] = {
        "finish_reason": "stop",
        "completion_tokens": 1,
        "cached_tokens": 0,
        "books": {},
    }
    ending["stats"] = Stats.nothing(seed=5).model_dump() | {"rounds": 3}
    front.front.jobs.relay({"type": "ended", "key": key, "index": 0, "ending": ending})
    front.front.jobs.stop(front.front.jobs.by_key[key], "deadline", answerable=False)
    while (done := app.hear())["type"] == "tokens":
        pass
    ends = [(end["finish_reason"], end["completion_tokens"], end["stats"]["seed"]) for end in done["answers"]]
    assert ends == [("stop", 1, 5), ("deadline", 1, 6)]
    assert (done["finish_reason"], done["stats"]["rounds"]) == ("stop", 3), "those of the first answer"
    assert done["usage"]["completion_tokens"] == 2


def test_without_an_engine_each_of_several_answers_has_its_end(front: Desk) -> None:
    had = [{"tokens": [1], "characters": 1, "finish_reason": "stop"}, {"tokens": [2, 3], "characters": 2}]
    app = front.app()
    key = front.generate(app, n=2, seed=5, resume=had)
    front.front.jobs.stop(front.front.jobs.by_key[key], "deadline", answerable=False)
    done = app.hear()
    ends = [(end["finish_reason"], end["completion_tokens"], end["stats"]["seed"]) for end in done["answers"]]
    assert ends == [("stop", 1, 5), ("deadline", 2, 6)]
    assert (done["finish_reason"], done["usage"]["completion_tokens"]) == ("stop", 3)


def test_the_pace_of_a_resumed_request_is_that_of_its_tokens_since(front: Desk) -> None:
    key = front.generate(front.app(), resume={"tokens": list(range(1000)), "characters": 1000})
    front.tokens(key, 1)
    jobs = front.front.jobs
    jobs.by_key[key].first = time.monotonic() - 10
    (active,) = jobs.active()
    assert active["tokens"] == 1001
    assert active["tokens_per_second"] == pytest.approx(0.1, rel=0.1)


def test_a_prefill_is_given_up_when_two_engines_have_died_and_not_before(front: Desk) -> None:
    app, jobs = front.app(), front.front.jobs
    app.say("prefill", "p", prompt="x")
    front.turn()
    jobs.submit_all()  # it came before there was an engine
    jobs.submit_all()  # a reload replaced that
    jobs.blame([], "ended with status 1")
    jobs.submit_all()
    assert jobs.prefills.by_key
    jobs.blame([], "ended with status 1")
    jobs.submit_all()
    error = app.hear()
    assert (error["id"], error["code"]) == ("p", "engine_failed")
    assert not jobs.prefills.by_key


def test_several_answers_at_work_when_an_engine_ends_are_one_end_of_their_request(front: Desk) -> None:
    app, jobs = front.app(), front.front.jobs
    key = front.generate(app, n=4)
    for _ in range(MAX_ENDS - 1):
        jobs.blame([key] * 4, "was ended by SIGKILL")
    assert not jobs.by_key[key].ended
    jobs.blame([key] * 4, "was ended by SIGKILL")
    error = app.hear()
    assert (error["type"], error["code"]) == ("error", "engine_failed")
    assert error["message"].startswith(f"{MAX_ENDS} engines ended at this request")
    assert not jobs.by_key
