"""Who asked for a load or an unload hears how it went, whatever comes between; no engine."""

from __future__ import annotations

import time
from typing import Any

import pytest

from draftd.daemon.lifetime import Stage
from tests.daemon.desk import App, Desk


@pytest.fixture
def loading(front: Desk) -> Desk:
    """A front whose engine loads."""
    front.front.life.state = "loading"
    front.front.life.lifetime.stage = Stage.LOADING
    return front


def _ask(front: Desk, kind: str, **fields: Any) -> App:
    app = front.app()
    app.say(kind, **fields)
    front.turn()
    return app


@pytest.mark.parametrize("was_ready", [False, True])
def test_a_load_that_fails_says_why(loading: Desk, was_ready: bool) -> None:
    life = loading.front.life
    life._was_ready = was_ready
    app = _ask(loading, "load")
    life._on_message({"type": "failed", "code": "model_not_found", "message": "the file is gone"})
    error = app.hear()
    assert (error["code"], error["message"]) == ("model_not_found", "the file is gone")
    assert (life.failure is None) == was_ready


@pytest.mark.parametrize("by", ["an app", "the governor"])
def test_a_load_that_an_unload_overtakes_hears_of_it(loading: Desk, by: str) -> None:
    app = _ask(loading, "load")
    if by == "an app":
        other = _ask(loading, "unload")
    else:
        loading.front.life.lifetime.unload(time.monotonic())
    loading.front._run_timers()
    assert app.hear()["code"] == "cancelled"
    if by == "an app":
        assert other.hear()["state"] == "unloaded"


def test_an_unload_that_a_load_overtakes_hears_of_it(front: Desk) -> None:
    front.generate(front.app())  # it holds the unload up
    app = _ask(front, "unload")
    other = _ask(front, "load")
    front.front._run_timers()
    assert app.hear()["code"] == "cancelled"
    assert other.hear()["state"] == "ready"


@pytest.mark.parametrize("held", [False, True])
def test_an_unload_takes_back_a_daemon_whose_engine_failed(loading: Desk, held: bool) -> None:
    if held:  # by a request whose app has yet to take its end
        loading.front.life.lifetime.acquire(1)
    loading.front.life.state = "failed"
    app = _ask(loading, "unload")
    loading.front._run_timers()
    assert app.hear()["state"] == ("failed" if held else "unloaded")


def test_a_load_for_no_time_at_all_is_answered(front: Desk) -> None:
    app = _ask(front, "load", keep_alive=0)
    front.front._run_timers()
    assert app.hear()["state"] == "ready"
    assert front.front.life.lifetime.stage is Stage.OUT


def test_an_unload_is_answered_though_a_request_brings_the_models_back(
    front: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = front.front.life
    monkeypatch.setattr(life, "start", lambda: None)
    life.state, life.lifetime.stage = "unloaded", Stage.LEAVING
    app = _ask(front, "unload")
    front.generate(front.app())
    life.lifetime.gone()
    front.front._run_timers()
    assert app.hear()["state"] == "unloaded"
    assert life.lifetime.stage is Stage.LOADING


def test_a_load_that_comes_while_the_models_leave_waits_for_them(
    front: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = front.front.life
    monkeypatch.setattr(life, "start", lambda: None)
    life.state, life.lifetime.stage = "unloaded", Stage.LEAVING
    app = _ask(front, "load")
    front.front._run_timers()
    life.lifetime.gone()
    front.front._run_timers()
    assert life.lifetime.stage is Stage.LOADING
    life.state = "ready"
    front.front._run_timers()
    assert app.hear()["state"] == "ready"


def test_of_those_that_wait_there_is_a_bounded_number(loading: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftd.daemon.loads.WAITERS", 2)
    for kind in ("load", "unload"):
        app = loading.app()
        for request in ("1", "2"):
            app.say(kind, request)
            loading.turn()
        error = loading.ask(app, kind, "3")
        assert (error["id"], error["code"], error["retry_after"]) == ("3", "overloaded", 1.0)
