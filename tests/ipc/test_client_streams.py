"""Streams of both clients: left, closed, paced by credit and kept by a lease."""

from __future__ import annotations

from typing import Any

import pytest

from draftd.ipc import Client, codec, link, messages, progress, session
from draftd.ipc.errors import Cancelled, MalformedFrame
from draftd.ipc.messages import Generate, Hello
from tests.ipc import scripted
from tests.ipc.conftest import Connect
from tests.ipc.scripted import Say, ScriptedDaemon, first_tokens_only


def test_leaving_a_loop_cancels(daemon: ScriptedDaemon, connect: Connect) -> None:
    daemon.script = first_tokens_only
    client = connect(daemon.endpoint)
    for event in client.generate(prompt="Hi"):
        assert event.text == "Hello"
        break
    assert daemon.wait_for(messages.Cancel).id == event.id
    client.ping()  # the late `done` is dropped and the connection goes on


def test_a_stream_never_started_asks_nothing(daemon: ScriptedDaemon, connect: Connect) -> None:
    client = connect(daemon.endpoint)
    client.ping()
    client.generate(prompt="Hi").close()
    client.ping()
    assert Generate not in [type(message) for message in list(daemon.heard.queue)]


def test_closing_the_client_cancels_what_runs(daemon: ScriptedDaemon, connect: Connect) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if not isinstance(message, messages.Cancel):  # its `done` could overtake the closing
            first_tokens_only(message, say)

    daemon.script = script
    client = connect(daemon.endpoint)
    stream = client.generate(prompt="Hi")
    request = next(stream).id
    if isinstance(client, Client):
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.ping()
    else:
        client._runner.run(client._client.close())
    assert daemon.wait_for(messages.Cancel).id == request
    with pytest.raises(Cancelled):
        next(stream)


def test_credit_is_given_as_the_app_reads(daemon: ScriptedDaemon, connect: Connect) -> None:
    asked: list[Generate] = []
    given: list[int] = []

    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate):
            asked.append(message)
        if isinstance(message, messages.Credit):
            given.append(message.credit)
        if isinstance(message, Generate | messages.Credit):
            credit = message.credit or 0
            for index in range(credit):
                say(scripted.tokens(asked[0].id, "x", [index], [False], [1]))
            if len(given) == 5:
                say(scripted.done(asked[0].id))
        else:
            scripted.answer(message, say)

    daemon.script = script
    reply = connect(daemon.endpoint).complete(prompt="Hi", credit=4)
    assert given[:5] == [2, 2, 2, 2, 2]
    assert len(reply.tokens) == 4 + 2 * 5


def test_who_reads_slowly_gives_credit_before_half_of_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = progress.Progress({"prompt": "x"})
    stream.saw(scripted.tokens("1", "x", [1], [False], [1]))
    assert stream.owed() == 0
    monkeypatch.setattr(progress, "PAY_WITHIN", 0.0)
    assert [stream.owed(), stream.owed()] == [1, 0]


def test_the_usual_credit_and_none(daemon: ScriptedDaemon, connect: Connect) -> None:
    client = connect(daemon.endpoint)
    client.complete(prompt="Hi")
    assert daemon.wait_for(Generate).credit == progress.CREDIT
    client.complete(prompt="Hi", credit=None)
    assert daemon.wait_for(Generate).credit is None


def test_the_lease_is_renewed_while_the_app_computes(
    daemon: ScriptedDaemon, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_EVERY", 0.02)
    daemon.script = first_tokens_only
    stream = connect(daemon.endpoint).generate(prompt="Hi")
    next(stream)
    assert daemon.wait_for(Hello).lease_ms == link.LEASE_MS
    for _ in range(3):  # this thread reads nothing, and turns no loop
        daemon.wait_for(messages.Ping)
    stream.close()


def test_the_lease_is_renewed_for_a_prefill_that_nobody_waits_for(
    daemon: ScriptedDaemon, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_EVERY", 0.02)
    daemon.script = scripted.told_late(lambda ping: ping.id != "alive")
    client = connect(daemon.endpoint)
    client.prefill(wait=False, prompt="Hi")
    for _ in range(3):
        assert daemon.wait_for(messages.Ping).id == "alive"
    client.ping()
    connection = (client if isinstance(client, Client) else client._client)._connection
    assert connection is not None
    assert not connection._session.lives()


def test_a_prefill_that_nobody_waits_for_is_given_up_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = session.Session()
    for alone, lives in ((600.0, True), (0.0, False)):
        monkeypatch.setattr(session, "ALONE", alone)
        request, _ = opened.open(messages.Prefill, {"prompt": "x"})
        opened.let_go(request)
        assert opened.lives() is lives
    assert opened.unfinished() == []


@pytest.mark.parametrize(
    "schema", [{"properties": {1: {}}}, {"enum": [0] * codec.MAX_ITEMS}], ids=["key", "size"]
)
def test_what_a_daemon_could_not_read_is_not_sent(schema: Any) -> None:
    opened = session.Session()
    with pytest.raises(MalformedFrame, match="is not MessagePack that draftd reads"):
        opened.open(Generate, {"prompt": "x", "grammar": {"kind": "json_schema", "source": schema}})
    assert opened.unfinished() == []
