"""What ends a request from outside: deadlines, leases, an app that takes nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest

from draftd.daemon import expiry
from tests.daemon.desk import SECONDS, Desk, cancelled


def test_an_app_that_gives_no_credit_is_cut_off_after_a_bounded_wait(front: Desk) -> None:
    app = front.app()
    key = front.generate(app, credit=1)
    front.tokens(key, 1)
    front.tokens(key, 2)
    assert app.hear()["tokens"] == [1]
    now = time.monotonic()
    front.front.expiry.tick(now + 59)
    assert key in front.front.jobs.by_key
    front.front.expiry.tick(now + 62)
    error = app.hear()
    assert (error["type"], error["code"]) == ("error", "slow_client")
    assert cancelled(front) == [key]
    assert not front.front.jobs.by_key
    assert not front.front.jobs.by_client


def test_an_app_with_nothing_to_take_is_not_slow(front: Desk) -> None:
    app = front.app()
    key = front.generate(app, credit=1)
    front.tokens(key, 1)  # its credit is spent, and nothing waits
    front.front.expiry.tick(time.monotonic() + 1000)
    assert key in front.front.jobs.by_key


def test_a_silent_app_loses_all_its_requests_and_a_talking_one_none(front: Desk) -> None:
    silent, alive, old = front.app(), front.app(), front.app()
    for app in (silent, alive):
        front.ask(app, "hello", lease_ms=10_000)
    keys = [front.generate(silent, "1"), front.generate(silent, "2")]
    kept = [front.generate(alive)]
    known = list(front.front.apps._known.values())
    for connection in known:
        connection.heard -= 11
    assert front.ask(alive, "ping", "p")["type"] == "pong"
    front.front.expiry.tick(time.monotonic())
    assert [silent.hear()["code"] for _ in keys] == ["lease_expired"] * 2
    assert cancelled(front) == keys
    assert list(front.front.jobs.by_key) == kept
    kept.append(front.generate(old))  # it said no hello, so it has no lease
    front.front.expiry.tick(time.monotonic() + 5)
    assert list(front.front.jobs.by_key) == kept
    assert front.generate(silent, "3")  # the connection goes on


def test_a_sign_of_life_that_waited_while_the_front_was_held_up_counts(front: Desk) -> None:
    app = front.app()
    front.ask(app, "hello", lease_ms=10_000)
    key = front.generate(app)
    for connection in front.front.apps._known.values():
        connection.heard -= 11
    app.say("ping", "p")
    assert front.front.apps.socket.poll(SECONDS)
    front.front._turn()
    assert app.hear()["type"] == "pong"
    assert key in front.front.jobs.by_key


def test_a_deadline_is_the_engines_to_keep_and_the_fronts_if_it_does_not(front: Desk) -> None:
    app = front.app()
    key = front.generate(app, deadline_ms=1000)
    front.tokens(key, 1, 2)
    now = time.monotonic()
    front.front.expiry.tick(now + 0.3)
    assert cancelled(front) == []
    front.front.expiry.tick(now + 1.1)
    assert front.told[-1] == {"type": "cancel", "key": key, "reason": "deadline"}
    assert key in front.front.jobs.by_key
    front.front.expiry.tick(now + 1.5 + expiry.GRACE)
    assert app.hear()["tokens"] == [1, 2]
    done = app.hear()
    assert (done["type"], done["finish_reason"]) == ("done", "deadline")
    assert done["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("state", ["loading", "restarting"])
def test_a_deadline_and_a_cancel_where_there_is_no_engine(front: Desk, state: Any) -> None:
    front.front.life.state = state
    app = front.app()
    front.generate(app, "late", deadline_ms=1)
    front.front.expiry.tick(time.monotonic() + 0.01)
    done = app.hear()
    assert (done["id"], done["finish_reason"], done["usage"]["completion_tokens"]) == ("late", "deadline", 0)
    key = front.generate(app, "begun", resume={"tokens": [5], "characters": 1})
    assert front.told[-1]["emitted"] == [[5]]
    assert front.told[-1]["characters"] == [1]
    assert front.ask(app, "cancel", "begun")["finish_reason"] == "cancelled"
    front.generate(app, "new")
    assert front.ask(app, "cancel", "new")["code"] == "cancelled"
    assert key not in front.front.jobs.by_key
