"""Credit, slow apps, leases, deadlines and a full queue, over real sockets and without an engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from draftd.daemon import apps as apps_module
from draftd.daemon import expiry
from draftd.daemon.admission import LONGEST, UNKNOWN, Admission
from draftd.daemon.governor import Rung
from draftd.daemon.settings import Settings
from draftd.ipc import codec
from draftd.ipc.errors import Overloaded
from draftd.ipc.messages import Generate
from draftd.ipc.version import CAPABILITIES
from tests.daemon.desk import SECONDS, App, Desk, buried, desk


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Desk]:
    with desk(tmp_path, slots=2, queue=1, credit_wait=60.0) as made:
        yield made


def _cancelled(desk: Desk) -> list[int]:
    return [body["key"] for body in desk.told if body["type"] == "cancel"]


def _tell_until_gone(desk: Desk, key: int) -> None:
    for token in range(100_000):
        desk.tokens(key, token)
        if key not in desk.front.jobs.by_key:
            break
        time.sleep(0.001)  # the connection's end travels through ZeroMQ's own thread


# ---- frames


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
    assert _cancelled(front) == [key]


# ---- hello


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


# ---- credit


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


def test_a_fault_at_a_message_of_no_request_is_answered(front: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault() -> dict[str, int]:
        raise ZeroDivisionError

    monkeypatch.setattr(front.front.jobs, "counts", fault)
    app = front.app()
    assert front.ask(app, "status", "s")["code"] == "internal"
    assert front.ask(app, "ping", "p")["type"] == "pong"


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
    assert _cancelled(front) == [key]
    assert not front.front.jobs.by_key
    assert not front.front.jobs.by_client


def test_an_app_with_nothing_to_take_is_not_slow(front: Desk) -> None:
    app = front.app()
    key = front.generate(app, credit=1)
    front.tokens(key, 1)  # its credit is spent, and nothing waits
    front.front.expiry.tick(time.monotonic() + 1000)
    assert key in front.front.jobs.by_key


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


def test_an_app_that_is_gone_loses_its_request(front: Desk) -> None:
    app = front.app()
    key = front.generate(app)
    app.close()
    _tell_until_gone(front, key)
    assert _cancelled(front) == [key]


# ---- leases


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
    assert _cancelled(front) == keys
    assert list(front.front.jobs.by_key) == kept
    kept.append(front.generate(old))  # it said no hello, so it has no lease
    front.front.expiry.tick(time.monotonic() + 5)
    assert list(front.front.jobs.by_key) == kept
    assert front.generate(silent, "3")  # the connection goes on


# ---- resuming


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


# ---- deadlines and cancels


def test_a_deadline_is_the_engines_to_keep_and_the_fronts_if_it_does_not(front: Desk) -> None:
    app = front.app()
    key = front.generate(app, deadline_ms=1000)
    front.tokens(key, 1, 2)
    now = time.monotonic()
    front.front.expiry.tick(now + 0.3)
    assert _cancelled(front) == []
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


def test_a_new_engine_gets_the_tokens_and_the_text_that_are_out(front: Desk) -> None:
    app = front.app()
    key = front.generate(app, credit=1, seed=3)
    front.tokens(key, 1, 2)
    front.tokens(key, 3)  # waits for credit, and is as good as out
    front.front.jobs.submit_all()
    again = front.told[-1]
    assert (again["emitted"], again["characters"], again["seed"]) == ([[1, 2, 3]], [3], 3)


# ---- admission


def test_a_full_queue_is_refused_with_a_hint(front: Desk) -> None:
    app = front.app()
    for request in "123":
        front.generate(app, request)
    error = front.ask(app, "generate", "4", prompt="x")
    assert (error["code"], error["retry_after"]) == ("overloaded", UNKNOWN)
    front.done(1)
    assert app.hear()["type"] == "done"
    assert front.generate(app, "4")


def test_the_hint_is_the_pace_of_recent_ends() -> None:
    admission, settings = Admission(), Settings.model_validate({"slots": 1, "queue": 0})
    for moment in (0.0, 2.0, 4.0, 6.0):
        admission.ended(moment)
    request = Generate(id="1", prompt="x")

    def refused() -> None:
        with pytest.raises(Overloaded):
            admission.admit(request, settings, 1)

    refused()
    assert admission.retry_after(6.5) == 2.0
    refused()
    assert admission.retry_after(6.5) == 4.0, "the second refused comes after the first"
    admission.ended(8.0)
    refused()
    assert admission.retry_after(8.5) == 2.0, "a place became free: the count begins anew"
    assert admission.retry_after(16.0) == 8.0, "nothing has ended for longer than the pace"
    assert admission.retry_after(1000.0) == LONGEST
    admission.ended(1001.0)
    admission.admit(request, settings, 0)


def test_who_is_refused_for_the_machine_s_sake_is_told_when_to_try_again(front: Desk) -> None:
    governor = front.front.governing.governor
    governor.rung, governor.why = Rung.UNLOAD, "3 % of the memory is available"
    for kind in ("generate", "prefill", "load"):
        wrong = front.ask(front.app(), kind, **({} if kind == "load" else {"prompt": "x"}))
        assert (wrong["code"], wrong["retry_after"]) == ("overloaded", 2 * 4 * governor.marks.dwell)
        assert "since 3 % of the memory is available: try again in 40 s" in wrong["message"]
