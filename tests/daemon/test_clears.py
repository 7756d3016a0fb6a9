"""Apps that wait for a `clear`: the front without an engine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from draftd.daemon.lifetime import Stage
from tests.daemon.desk import Desk

Told = list[dict[str, Any]]


@pytest.fixture
def told(front: Desk, monkeypatch: pytest.MonkeyPatch) -> Told:
    """What the engine was asked."""
    asked: Told = []
    monkeypatch.setattr(front.front.clears, "tell_engine", asked.append)
    return asked


def test_the_engine_is_asked_once_at_a_time_and_for_all_that_wait(front: Desk, told: Told) -> None:
    apps = [front.app() for _ in range(4)]
    for app, learnt in zip(apps, (False, False, True, False), strict=True):
        app.say("clear", learnt=learnt)
        front.turn()
    assert [body["learnt"] for body in told] == [False]
    front.front.clears.answered({"files": 2})
    assert apps[0].hear()["files"] == 2
    assert [body["learnt"] for body in told] == [False, True]
    assert not apps[1].socket.poll(0), "what the engine did before it was asked is not meant"
    front.front.clears.answered({"files": 3})
    assert [app.hear()["files"] for app in apps[1:]] == [3, 3, 3]
    assert front.ask(apps[0], "ping", "p")["type"] == "pong"
    assert len(told) == 2


def test_a_new_engine_is_asked_what_the_last_one_left(front: Desk, told: Told) -> None:
    apps = [front.app(), front.app()]
    for app in apps:
        app.say("clear")
        front.turn()
    front.front.clears.submit_all()
    assert len(told) == 2
    front.front.clears.answered({"message": "no permission"})
    assert [app.hear()["message"] for app in apps] == ["no permission"] * 2
    assert len(told) == 2


def test_of_those_that_wait_there_is_a_bounded_number(
    front: Desk, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draftd.daemon.clears.WAITERS", 2)
    app = front.app()
    for request in ("1", "2", "3"):  # the first is at the engine
        app.say("clear", request)
        front.turn()
    error = front.ask(app, "clear", "4")
    assert (error["id"], error["code"]) == ("4", "overloaded")
    assert len(told) == 1


@pytest.mark.parametrize(("state", "stage"), [("unloaded", Stage.OUT), ("failed", Stage.LOADING)])
def test_a_daemon_without_an_engine_forgets_by_itself(
    front: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: Any, stage: Stage
) -> None:
    """It tells no longer what was learnt, either; of its state directory the app may know nothing."""
    life, app = front.front.life, front.app()
    monkeypatch.setattr(front.front.clears, "state_dir", tmp_path / "state")
    life.learnt = {"target_ms": {"1": 40.0}}
    life.state, life.lifetime.stage = state, stage
    for learnt in (False, True):
        app.say("clear", learnt=learnt)
        front.turn()
        life.tick(time.monotonic())
        assert app.hear()["type"] == "cleared"
        assert bool(life.learnt) is not learnt
