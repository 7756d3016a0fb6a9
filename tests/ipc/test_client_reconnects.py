"""Daemons that go away and come back under both clients, and streams that go on where they were."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from pathlib import Path

import pytest

from draftd.ipc import AsyncClient, Client, Done, Tokens, messages, parts
from draftd.ipc.errors import Cancelled, Overloaded, Unreachable
from draftd.ipc.messages import Generate
from tests.ipc import scripted
from tests.ipc.conftest import Connect
from tests.ipc.scripted import Say, ScriptedDaemon, first_tokens_only


def begin(message: Generate, say: Say, *, expires: bool = True) -> None:
    """Two tokens of an answer, and the end of its lease."""
    say(messages.Accepted(id=message.id, seed=77))
    say(scripted.tokens(message.id, "Hél", [1, 2], [False, True], [1, 2]))
    if expires:
        say(messages.Error(id=message.id, code="lease_expired", message="silent"))


def test_a_daemon_that_goes_away_in_mid_stream(daemon: ScriptedDaemon, connect: Connect) -> None:
    daemon.script = first_tokens_only
    stream = connect(daemon.endpoint, patience=0).generate(prompt="Hi")
    next(stream)
    daemon.stop()
    start = time.monotonic()
    with pytest.raises(Unreachable, match="went away"):
        next(stream)
    assert time.monotonic() - start < 2


def test_what_was_sent_before_the_end_still_arrives(tmp_path: Path, connect: Connect) -> None:
    daemon = ScriptedDaemon(tmp_path / "d.sock")
    try:
        stream = connect(daemon.endpoint).generate(prompt="Hi")
        next(stream)
        daemon.wait_for(Generate)
    finally:
        daemon.stop()
    assert [type(event) for event in stream] == [Tokens, Done]


def test_the_next_call_finds_a_restarted_daemon(tmp_path: Path, connect: Connect) -> None:
    with ScriptedDaemon(tmp_path / "d.sock") as first:
        client = connect(first.endpoint)
        client.ping()
    with pytest.raises(Unreachable):
        client.ping()
    with ScriptedDaemon(tmp_path / "d.sock"):
        assert client.complete(prompt="Hi").text == "Hello, Wörld!"


def test_an_idle_client_finds_a_restarted_daemon(tmp_path: Path, connect: Connect) -> None:
    with ScriptedDaemon(tmp_path / "d.sock") as first:
        client = connect(first.endpoint)
        client.ping()
        connection = (client if isinstance(client, Client) else client._client)._connection
        assert connection is not None
    end = time.monotonic() + 10
    while not connection._monitor.poll(10):  # that it is lost, which nobody was there to read
        assert time.monotonic() < end
    with ScriptedDaemon(tmp_path / "d.sock"):
        assert client.ping() < 5


@pytest.mark.parametrize("end", ["the daemon goes", "the lease expires"])
def test_a_stream_goes_on_where_it_was(tmp_path: Path, connect: Connect, end: str) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate) and message.resume is None:
            begin(message, say, expires=end == "the lease expires")
        elif isinstance(message, Generate):
            say(messages.Accepted(id=message.id, seed=77))
            say(scripted.tokens(message.id, "lo", [3], [False], [2]))
            say(scripted.done(message.id))
        else:
            scripted.answer(message, say)

    with ScriptedDaemon(tmp_path / "d.sock", script) as first:
        client = connect(first.endpoint)
        stream = client.generate(prompt="Hi", temperature=0.5, deadline_ms=60_000)
        events = [next(stream)]
        if end == "the daemon goes":
            first.stop()
        second = ScriptedDaemon(tmp_path / "d.sock", script) if end == "the daemon goes" else first
        with second:
            events += stream
            sent = second.wait_for(Generate)
            while sent.resume is None:
                sent = second.wait_for(Generate)
    assert "".join(event.text for event in events if isinstance(event, Tokens)) == "Héllo"
    assert isinstance(events[-1], Done)
    assert (sent.seed, sent.prompt, sent.temperature) == (77, "Hi", 0.5)
    assert sent.resume == parts.Resume(tokens=[1, 2], characters=3)
    assert 0 < sent.deadline_ms <= 60_000


@pytest.mark.parametrize("patience", [0.2, 30.0])
def test_a_stream_that_finds_the_queue_full_comes_again(
    daemon: ScriptedDaemon, connect: Connect, patience: float
) -> None:
    tries: list[float] = []

    def script(message: messages.ClientMessage, say: Say) -> None:
        if not isinstance(message, Generate):
            scripted.answer(message, say)
        elif message.resume is None:
            begin(message, say)
        elif len(tries) < 2:
            tries.append(time.monotonic())
            say(messages.Error(id=message.id, code="overloaded", message="full", retry_after=0.3))
        else:
            tries.append(time.monotonic())
            say(messages.Accepted(id=message.id, seed=77))
            say(scripted.done(message.id))

    daemon.script = script
    stream = connect(daemon.endpoint, patience=patience).generate(prompt="Hi")
    next(stream)
    if patience < 0.3:
        with pytest.raises(Overloaded, match="full"):
            next(stream)
    else:
        assert [type(event) for event in stream] == [Done]
        assert min(after - before for before, after in pairwise(tries)) >= 0.3


def test_closing_an_async_client_ends_a_streams_wait_for_a_full_queue(daemon: ScriptedDaemon) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if not isinstance(message, Generate):
            scripted.answer(message, say)
        elif message.resume is None:
            begin(message, say)
        else:
            say(messages.Error(id=message.id, code="overloaded", message="full", retry_after=20.0))

    async def ask() -> None:
        client = AsyncClient(daemon.endpoint)
        answer = asyncio.create_task(client.complete(prompt="Hi"))
        while (await asyncio.to_thread(daemon.wait_for, Generate)).resume is None:
            pass
        await asyncio.sleep(0.2)  # until it has been told and waits
        await client.close()
        async with asyncio.timeout(5):
            with pytest.raises(Cancelled):
                await answer

    daemon.script = script
    asyncio.run(ask())


def test_several_answers_go_on_where_they_were(daemon: ScriptedDaemon, connect: Connect) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate) and message.resume is None:
            say(messages.Accepted(id=message.id, seed=77))
            say(messages.Tokens(id=message.id, index=0, text="a", tokens=[1], drafted=[False], lengths=[1]))
            say(messages.Tokens(id=message.id, index=0, text="", tokens=[], drafted=[], finish_reason="stop"))
            say(messages.Tokens(id=message.id, index=1, text="bc", tokens=[2, 3], drafted=[False, True]))
            say(messages.Error(id=message.id, code="lease_expired", message="silent"))
        elif isinstance(message, Generate):
            say(scripted.done(message.id))
        else:
            scripted.answer(message, say)

    daemon.script = script
    *_, end = connect(daemon.endpoint).generate(prompt="Hi", n=3)
    assert isinstance(end, Done)
    while (sent := daemon.wait_for(Generate)).resume is None:
        pass
    assert (sent.seed, sent.n) == (77, 3)
    assert sent.resume == [
        parts.Resume(tokens=[1], characters=1, finish_reason="stop"),
        parts.Resume(tokens=[2, 3], characters=2),
        parts.Resume(),
    ]


def test_a_daemon_that_never_comes_back_ends_the_stream_after_a_while(
    daemon: ScriptedDaemon, connect: Connect
) -> None:
    daemon.script = first_tokens_only
    stream = connect(daemon.endpoint, patience=0.3).generate(prompt="Hi")
    next(stream)
    daemon.stop()
    with pytest.raises(Unreachable, match="went away"):
        next(stream)


def test_an_async_client_goes_on_in_another_loop(daemon: ScriptedDaemon) -> None:
    client = AsyncClient(daemon.endpoint)

    async def ask() -> str:
        reply, _ = await asyncio.gather(client.complete(prompt="Hi"), client.ping())
        return reply.text

    for _ in range(2):
        assert asyncio.run(ask()) == "Hello, Wörld!"
    asyncio.run(client.close())


def test_a_stream_asks_for_what_it_was_called_with(tmp_path: Path, connect: Connect) -> None:
    history = [{"role": "user", "content": "Hi"}]
    with ScriptedDaemon(tmp_path / "d.sock", first_tokens_only) as first:
        stream = connect(first.endpoint).generate(messages=history)
        history.append({"role": "assistant", "content": ""})
        history[1]["content"] += next(stream).text
        asked = [first.wait_for(Generate)]
    with ScriptedDaemon(tmp_path / "d.sock") as second:
        list(stream)
        asked.append(second.wait_for(Generate))
    assert [[each.content for each in one.messages] for one in asked] == [["Hi"], ["Hi"]]
