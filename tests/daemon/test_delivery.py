"""Credit: what an app takes comes at once, and what it doesn't waits in one message."""

from __future__ import annotations

import time
from typing import Any

import pytest

from draftd.daemon import apps as apps_module
from tests.daemon.desk import Desk


def test_without_credit_tokens_wait_and_come_in_one_message(front: Desk) -> None:
    slow, quick = front.app(), front.app()
    first = front.generate(slow, credit=2)
    second = front.generate(quick)
    for token in range(5):
        front.tokens(first, token)
        front.tokens(second, token)
    assert [quick.hear()["tokens"] for _ in range(5)] == [[0], [1], [2], [3], [4]]
    assert [slow.hear()["tokens"] for _ in range(2)] == [[0], [1]]
    assert front.ask(slow, "ping", "p")["type"] == "pong", "a third message came before more credit"
    message = front.ask(slow, "credit", credit=1)
    assert (message["tokens"], message["text"], message["lengths"]) == ([2, 3, 4], "cde", [1, 1, 1])
    front.tokens(first, 5, 6)
    front.done(first)
    assert slow.hear()["tokens"] == [5, 6]
    assert slow.hear()["type"] == "done"
    assert first not in front.front.jobs.by_key


def test_credit_for_an_unknown_request_is_ignored(front: Desk) -> None:
    app = front.app()
    app.say("credit", "gone", credit=1)
    assert front.ask(app, "ping", "p")["type"] == "pong"


def test_what_waits_of_several_answers_is_kept_apart(front: Desk) -> None:
    app = front.app()
    key = front.generate(app, n=2, credit=1)
    for index, letter in ((0, "a"), (1, "b"), (0, "c"), (1, "d")):
        part = {"index": index, "text": letter, "tokens": [index], "drafted": [False], "lengths": [1]}
        front.front.jobs.relay({"type": "tokens", "key": key, "rounds": [0, 0], "tool_calls": [], **part})
    ending = {"finish_reason": "length", "completion_tokens": 2, "stats": {}, "books": {}}
    front.front.jobs.relay({"type": "ended", "key": key, "index": 1, "ending": ending})
    assert app.hear()["text"] == "a"
    assert front.ask(app, "credit", credit=2)["text"] == "bd"
    assert app.hear()["text"] == "c"
    (job,) = front.front.jobs.by_key.values()
    assert (job.emitted, job.characters) == ([[0, 0], [1, 1]], [2, 2])
    assert [end is not None for end in job.endings] == [False, True]


def test_an_app_that_does_not_read_loses_nothing_and_holds_up_nobody(
    front: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, quick = front.app(rcvhwm=1, rcvbuf=4096), front.app()
    key, other = front.generate(stuck), front.generate(quick)
    count = 0
    while front.front.jobs.by_key[key].delivery.since is None:
        front.tokens(key, count)
        count += 1
        assert count < 1_000_000
    assert count >= apps_module.SEND_QUEUE
    for extra in range(count, count + 100):
        front.tokens(key, extra)
    front.tokens(other, 7)
    assert quick.hear()["tokens"] == [7]
    front.done(key)
    got: list[int] = []
    now = time.monotonic()
    while (message := _hear(front, stuck, now))["type"] == "tokens":
        got += message["tokens"]
    assert got == list(range(count + 100))
    assert message["type"] == "done"


def _hear(front: Desk, app: Any, now: float) -> Any:
    """The next message, while the front looks now and then whether the app's connection has room."""
    for look in range(2000):
        if app.socket.poll(5):
            return app.hear()
        front.front.expiry.tick(now + look / 100)
    raise AssertionError("nothing came")
