"""An app's connection: frames that are none, hello, and who is remembered, over real sockets."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import pytest
import zmq

from draftd.daemon import apps as apps_module
from draftd.ipc import codec, messages
from draftd.ipc.version import CAPABILITIES
from tests.daemon.desk import QUOTED, SECONDS, App, Desk, buried, cancelled


def _tell_until_gone(desk: Desk, key: int) -> None:
    for token in range(100_000):
        desk.tokens(key, token)
        if key not in desk.front.jobs.by_key:
            break
        time.sleep(0.001)  # the connection's end travels through ZeroMQ's own thread


def test_a_frame_of_too_many_bytes_drops_the_connection_and_a_whole_one_does_not(front: Desk) -> None:
    app, other = front.app(reconnect_ivl=-1), front.app()
    key = front.generate(app)
    monitor = app.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    app.socket.send(b"\x93" * codec.MAX_FRAME)
    front.turn()
    assert app.hear()["code"] == "malformed_frame"
    app.socket.send(b"\x93" * (codec.MAX_FRAME + 1))
    assert monitor.poll(SECONDS), "the connection goes on"
    assert front.ask(other, "ping")["type"] == "pong"
    assert not app.socket.poll(0)  # no word about it
    _tell_until_gone(front, key)
    assert cancelled(front) == [key]


@pytest.mark.parametrize("levels", [codec.MAX_DEPTH - 1, 600, 1000, 1100])
def test_a_frame_nested_too_deeply_is_refused_and_nobody_else_hears_of_it(front: Desk, levels: int) -> None:
    app, other = front.app(), front.app()
    key = front.generate(other)
    app.socket.send(buried(levels))
    front.turn()
    error = app.hear()
    assert (error["code"], "nested too deeply" in error["message"]) == ("malformed_frame", True)
    assert len(front.told) == 1
    front.tokens(key, 1)
    assert other.hear()["tokens"] == [1]


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["1.0"], "1.0"), (["3.0", "1.9"], "1.0"), (["0.1"], "0.1")], ids=str
)
def test_hello_is_answered_with_a_version_capabilities_and_the_lease(
    front: Desk, offered: list[str], chosen: str
) -> None:
    welcome = front.ask(front.app(), "hello", versions=offered, lease_ms=500, new_field=[1])
    assert welcome["version"] == chosen
    assert tuple(welcome["capabilities"]) == CAPABILITIES
    assert welcome["lease_ms"] == 500


@pytest.mark.parametrize("offered", [[], ["2.0"], ["x"]])
def test_a_peer_without_a_common_version_is_told_both(front: Desk, offered: list[str]) -> None:
    error = front.ask(front.app(), "hello", versions=offered)
    assert error["code"] == "unsupported_version"
    assert "speaks protocol 1.0" in error["message"]


@pytest.mark.parametrize("kind", ["generate", "prefill"])
def test_an_app_with_open_requests_is_never_forgotten_and_of_the_others_the_silent_first(
    front: Desk, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apps_module, "KNOWN", 3)
    apps = front.front.apps

    def come(name: str) -> tuple[App, bytes]:
        app = front.app()
        front.ask(app, "hello", client=name, lease_ms=100)
        return app, next(reversed(apps._known))

    busy, works = come("busy")
    busy.say(kind, prompt="x")
    front.turn()
    alive, talks = come("alive")
    _, silent = come("silent")
    front.ask(alive, "ping")
    seen = [come(f"visitor {number}")[1] for number in range(4)]
    assert [apps.name(each) for each in (works, silent)] == ["busy", ""]
    assert [apps.name(each) for each in seen] == ["", "", "visitor 2", "visitor 3"]
    assert apps.name(talks) == ""
    assert apps.expired(works, time.monotonic() + 1)


def test_who_says_something_is_remembered_before_those_who_do_not(
    front: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apps_module, "KNOWN", 2)
    talks = front.app()
    front.ask(talks, "hello", client="talks")
    for _ in range(4):
        front.ask(front.app(), "hello", client="visitor")
        front.ask(talks, "ping")
    front.generate(talks)
    assert front.told[-1]["app"] == "talks"


def test_an_app_that_is_gone_loses_its_request(front: Desk) -> None:
    app = front.app()
    key = front.generate(app)
    app.close()
    _tell_until_gone(front, key)
    assert cancelled(front) == [key]


@pytest.mark.parametrize("message", QUOTED, ids=["load", "logit_bias", "parameters"])
def test_an_error_that_quotes_too_much_for_a_frame_is_cut(front: Desk, message: dict[str, Any]) -> None:
    app = front.app()
    app.socket.send(msgpack.packb({"id": "1", **message}))
    front.turn()
    error = app.hear()
    assert (error["type"], error["id"], error["code"]) == ("error", "1", "invalid_request")
    assert len(error["message"]) <= messages.MAX_WORDS + 2
    assert front.ask(app, "ping", "p")["type"] == "pong"


def test_a_reply_that_no_frame_can_hold_is_an_error_of_its_request(front: Desk) -> None:
    front.front.life.detail = "x" * codec.MAX_FRAME
    app = front.app()
    error = front.ask(app, "status", "s")
    assert (error["type"], error["id"], error["code"]) == ("error", "s", "internal")
    assert front.ask(app, "ping", "p")["type"] == "pong"


def test_replies_wait_until_a_full_connection_has_room(front: Desk) -> None:
    stuck = front.app(rcvhwm=1, rcvbuf=4096)
    first = front.generate(stuck)
    front.stuff(first)
    stuck.say("load", "l", model="other")
    front.turn()
    stuck.say("prefill", "p", prompt="x")
    front.turn()
    (prefill,) = front.front.jobs.prefills.by_key
    front.front.jobs.prefills.relay({"key": prefill, "told": {"state": "complete"}})
    stuck.say("generate", "2", prompt="x")
    front.turn()
    second = front.told[-1]["key"]
    front.tokens(second, 7)
    front.done(first)
    front.done(second)
    assert front.front.apps.waits
    heard = []
    while ("done", "2") not in heard:
        message = front.hear(stuck)
        if message["id"] != "1":
            heard.append((message["type"], message["id"]))
    replies = [("error", "l"), ("prefilled", "p"), ("accepted", "2")]
    assert heard == [*replies, ("tokens", "2"), ("done", "2")]
    assert not front.front.apps.waits


def test_of_the_replies_that_wait_there_is_a_bounded_number(
    front: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    apps = front.front.apps
    sent: list[str] = []
    monkeypatch.setattr(apps, "_put", lambda client, frame: "blocked")
    for number in range(apps_module.OUTBOX + 10):
        apps.reply(b"full", messages.Cleared(id=str(number), files=0))
        apps.reply(b"gone", messages.Cleared(id=str(number), files=0))

    def put(client: bytes, frame: bytes) -> str:
        if client == b"gone":
            return "gone"
        sent.append(codec.decode(frame)["id"])
        return "sent"

    monkeypatch.setattr(apps, "_put", put)
    front.front.expiry.tick(time.monotonic())
    assert sent == [str(number) for number in range(apps_module.OUTBOX)]
    assert not apps.waits
    assert front.front.expiry.tick(time.monotonic()) is None
