"""Both clients against one scripted daemon: every test runs over Client and over AsyncClient."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from draftd.ipc import AsyncClient, Client, Done, Reply, Tokens, link, messages, parts, progress
from draftd.ipc.errors import (
    Cancelled,
    ContextOverflow,
    DraftdError,
    InvalidEndpoint,
    InvalidRequest,
    MalformedFrame,
    Overloaded,
    Unreachable,
    UnsupportedVersion,
)
from draftd.ipc.messages import Generate, Hello
from draftd.ipc.version import VERSION
from tests.ipc import scripted
from tests.ipc.scripted import Say, ScriptedDaemon


class Sync:
    """The calls of AsyncClient as blocking ones, so that a test reads the same for both."""

    def __init__(self, endpoint: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(_make(endpoint, **options))

    def generate(self, **params: Any) -> Iterator[Tokens | Done]:
        stream = self._client.generate(**params)

        def events() -> Iterator[Tokens | Done]:
            try:
                while True:
                    yield self._runner.run(stream.__anext__())
            except StopAsyncIteration:
                return
            finally:
                self._runner.run(stream.aclose())

        return events()

    def complete(self, **params: Any) -> Reply:
        return self._runner.run(self._client.complete(**params))

    def status(self) -> messages.Status:
        return self._runner.run(self._client.status())

    def clear(self, learnt: bool = False) -> int:
        return self._runner.run(self._client.clear(learnt))

    def prefill(self, *, wait: bool = True, **params: Any) -> messages.Prefilled | None:
        return self._runner.run(self._client.prefill(wait=wait, **params))

    def ping(self) -> float:
        return self._runner.run(self._client.ping())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


async def _make(endpoint: str, **options: Any) -> AsyncClient:
    return AsyncClient(endpoint, **options)


Connect = Callable[..., Any]


@pytest.fixture(params=[Client, Sync], ids=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    made = []

    def make(endpoint: str, **options: Any) -> Any:
        made.append(request.param(endpoint, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    with ScriptedDaemon(tmp_path / "d.sock") as running:
        yield running


def test_streams_tokens_then_done(daemon: ScriptedDaemon, connect: Connect) -> None:
    events = list(connect(daemon.endpoint).generate(prompt="Hi", max_tokens=8, temperature=0, stop=["\n"]))
    assert [type(event) for event in events] == [Tokens, Tokens, Done]
    assert events[0].text == "Hello, "
    assert events[0].drafted == [True, False]
    assert events[2].stats == scripted.STATS
    hello = daemon.wait_for(Hello)
    assert hello.versions == [VERSION]
    sent = daemon.wait_for(Generate)
    assert (sent.prompt, sent.max_tokens, sent.stop) == ("Hi", 8, ["\n"])


def test_complete_joins_the_stream(daemon: ScriptedDaemon, connect: Connect) -> None:
    reply = connect(daemon.endpoint).complete(messages=[{"role": "user", "content": "Hi"}])
    assert reply.text == "Hello, Wörld!"
    assert reply.tokens == [1, 2, 3, 4]
    assert reply.drafted == [True, False, True, True]
    assert reply.finish_reason == "stop"
    assert reply.usage == scripted.USAGE
    assert reply.stats == scripted.STATS


def test_status_and_ping(daemon: ScriptedDaemon, connect: Connect) -> None:
    client = connect(daemon.endpoint)
    assert client.status().pair == "tiny"
    assert 0 < client.ping() < 5


def test_prefill(daemon: ScriptedDaemon, connect: Connect) -> None:
    client = connect(daemon.endpoint)
    told = client.prefill(prompt="to be or n")
    assert told is not None
    assert (told.state, told.prompt_tokens, told.computed_tokens) == ("complete", 9, 5)
    assert client.prefill(wait=False, prompt="to be or not t") is None
    assert (
        client.complete(prompt="to be or not to be").text == "Hello, Wörld!"
    )  # the late answer disturbs nobody
    with pytest.raises(InvalidRequest, match="exactly one of messages, prompt, tokens"):
        client.prefill()
    with pytest.raises(InvalidRequest, match="unknown parameter max_tokens"):
        client.prefill(prompt="x", max_tokens=3)


def test_clear(daemon: ScriptedDaemon, connect: Connect) -> None:
    client = connect(daemon.endpoint)
    assert [client.clear(), client.clear(learnt=True)] == [1, 2]


def test_one_hello_a_connection(daemon: ScriptedDaemon, connect: Connect) -> None:
    client = connect(daemon.endpoint)
    client.ping()
    client.ping()
    client.status()
    kinds = [type(message) for message in list(daemon.heard.queue)]
    assert kinds == [messages.Hello, messages.Ping, messages.Ping, messages.GetStatus]


def test_streams_side_by_side(daemon: ScriptedDaemon, connect: Connect) -> None:
    client = connect(daemon.endpoint)
    pairs = list(zip(client.generate(prompt="a"), client.generate(prompt="b"), strict=True))
    assert [(a.id != b.id, type(a) is type(b)) for a, b in pairs] == [(True, True)] * 3


def test_wrong_parameters_are_refused_at_the_call(daemon: ScriptedDaemon, connect: Connect) -> None:
    client = connect(daemon.endpoint)
    with pytest.raises(InvalidRequest, match="unknown parameter max_token; there are messages, prompt, "):
        client.generate(prompt="Hi", max_token=8)
    with pytest.raises(InvalidRequest, match="exactly one of messages, prompt, tokens"):
        client.generate()
    with pytest.raises(InvalidRequest, match="temperature: should be greater than or equal to 0"):
        client.generate(prompt="Hi", temperature=-1)
    assert daemon.heard.empty()


def test_an_error_ends_its_stream_only(daemon: ScriptedDaemon, connect: Connect) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate) and message.prompt == "long":
            say(messages.Error(id=message.id, code="context_overflow", message="too long: shorten it"))
        else:
            scripted.answer(message, say)

    daemon.script = script
    client = connect(daemon.endpoint)
    other = client.generate(prompt="Hi")
    next(other)
    with pytest.raises(ContextOverflow, match="too long: shorten it"):
        client.complete(prompt="long")
    assert len(list(other)) == 2


def test_an_unknown_code_keeps_its_name(daemon: ScriptedDaemon, connect: Connect) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate):
            say(messages.Error(id=message.id, code="from_the_future", message="later"))
        else:
            scripted.answer(message, say)

    daemon.script = script
    with pytest.raises(DraftdError, match="later") as caught:
        connect(daemon.endpoint).complete(prompt="Hi")
    assert caught.value.code == "from_the_future"


def test_an_error_without_id_reaches_the_waiting(daemon: ScriptedDaemon, connect: Connect) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate):
            say(messages.Error(code="malformed_frame", message="what?"))
        else:
            scripted.answer(message, say)

    daemon.script = script
    with pytest.raises(MalformedFrame, match=r"what\?"):
        connect(daemon.endpoint).complete(prompt="Hi")


def _first_tokens_only(message: messages.ClientMessage, say: Say) -> None:
    if isinstance(message, Generate):
        say(scripted.tokens(message.id, "Hello", [1], [False], [5]))
    elif isinstance(message, messages.Cancel):
        say(scripted.done(message.id, "cancelled"))
    else:
        scripted.answer(message, say)


def test_leaving_a_loop_cancels(daemon: ScriptedDaemon, connect: Connect) -> None:
    daemon.script = _first_tokens_only
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
            _first_tokens_only(message, say)

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


def test_no_daemon_is_said_at_once(tmp_path: Path, connect: Connect) -> None:
    endpoint = f"ipc://{tmp_path}/none.sock"
    start = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        connect(endpoint).ping()
    assert str(caught.value) == f"no daemon answers at {endpoint}; start it with `draftd serve`"
    assert time.monotonic() - start < 2


def test_a_socket_of_somebody_else(tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", forbidden)
    with pytest.raises(Unreachable, match="no permission to reach"):
        connect(f"ipc://{tmp_path}/d.sock").ping()
    monkeypatch.undo()


def test_a_stale_socket_file_is_no_daemon(tmp_path: Path, connect: Connect) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "d.sock"))
    start = time.monotonic()
    with pytest.raises(Unreachable, match="no daemon answers"):
        connect(f"ipc://{tmp_path}/d.sock").ping()
    assert time.monotonic() - start < 2


def test_something_else_at_the_socket(tmp_path: Path, connect: Connect) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "d.sock"))
        other.listen()
        with pytest.raises(Unreachable, match="no daemon answers"):
            connect(f"ipc://{tmp_path}/d.sock", timeout=0.2).ping()


def test_a_daemon_that_turns_connections_away(tmp_path: Path, connect: Connect) -> None:
    def turn_away() -> None:
        while True:
            try:
                gate.accept()[0].close()
            except OSError:  # shut down
                return

    with socket.socket(socket.AF_UNIX) as gate:
        gate.bind(str(tmp_path / "d.sock"))
        gate.listen()
        thread = threading.Thread(target=turn_away)
        thread.start()
        try:
            with pytest.raises(Unreachable, match="takes no further connections; its log says why"):
                connect(f"ipc://{tmp_path}/d.sock").ping()
        finally:
            gate.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def test_a_daemon_that_never_answers(daemon: ScriptedDaemon, connect: Connect) -> None:
    daemon.script = lambda message, say: None
    with pytest.raises(Unreachable, match="has not answered"):
        connect(daemon.endpoint, timeout=0.2).ping()


def test_a_daemon_that_goes_away_in_mid_stream(daemon: ScriptedDaemon, connect: Connect) -> None:
    daemon.script = _first_tokens_only
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


def test_a_stuck_daemon_is_noticed(
    daemon: ScriptedDaemon, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_EVERY", 0.05)
    monkeypatch.setattr(link, "SILENCE", 0.3)
    daemon.script = lambda message, say: scripted.answer(message, say) if isinstance(message, Hello) else None
    with pytest.raises(Unreachable, match="has not answered"):
        connect(daemon.endpoint, patience=0).complete(prompt="Hi")
    daemon.wait_for(messages.Ping)


def test_a_slow_daemon_is_waited_for(
    daemon: ScriptedDaemon, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_EVERY", 0.05)
    monkeypatch.setattr(link, "SILENCE", 0.2)
    asked: list[Any] = []
    pings: list[int] = []

    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate):
            asked.append(message)
        elif isinstance(message, messages.Ping) and len(pings) < 10:  # half a second, longer than SILENCE
            pings.append(1)
            say(messages.Pong(id=message.id))
        else:
            scripted.answer(asked[0] if asked else message, say)

    daemon.script = script
    assert connect(daemon.endpoint).complete(prompt="Hi").text == "Hello, Wörld!"


@pytest.mark.parametrize(
    "welcome",
    [
        lambda request: messages.Welcome(id=request, version="9.0", daemon="new"),
        lambda request: messages.Error(id=request, code="unsupported_version", message="too old"),
    ],
)
def test_another_version(daemon: ScriptedDaemon, connect: Connect, welcome: Any) -> None:
    daemon.script = lambda message, say: say(welcome(message.id))
    with pytest.raises(UnsupportedVersion, match=r"9\.0|too old"):
        connect(daemon.endpoint).ping()


def test_unknown_messages_and_fields_are_tolerated(daemon: ScriptedDaemon, connect: Connect) -> None:
    class Newer(messages.Tokens):
        extra: str = "?"

    class News(messages.Message):
        type: str = "news"

    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate):
            say(News(id=message.id))
            say(Newer(id=message.id, text="Hello", tokens=[1], drafted=[False]))
            say(scripted.done(message.id))
        else:
            scripted.answer(message, say)

    daemon.script = script
    assert connect(daemon.endpoint).complete(prompt="Hi").text == "Hello"


def test_a_daemon_that_speaks_nonsense(daemon: ScriptedDaemon, connect: Connect) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate):
            say(messages.Tokens.model_construct(id=message.id, text=5, tokens=[], drafted=[]))
        else:
            scripted.answer(message, say)

    daemon.script = script
    with pytest.raises(MalformedFrame, match="text: should be a valid string"):
        connect(daemon.endpoint).complete(prompt="Hi")


def test_a_wrong_endpoint_is_refused_before_connecting() -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidEndpoint):
            kind("tcp://127.0.0.1:0")
        with pytest.raises(InvalidEndpoint, match="tcp needs keys"):
            kind("tcp://127.0.0.1:5555")


# ---- credit, leases, resuming


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
    daemon.script = _first_tokens_only
    stream = connect(daemon.endpoint).generate(prompt="Hi")
    next(stream)
    assert daemon.wait_for(Hello).lease_ms == link.LEASE_MS
    for _ in range(3):  # this thread reads nothing, and turns no loop
        daemon.wait_for(messages.Ping)
    stream.close()


@pytest.mark.parametrize("end", ["the daemon goes", "the lease expires"])
def test_a_stream_goes_on_where_it_was(tmp_path: Path, connect: Connect, end: str) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate) and message.resume is None:
            say(messages.Accepted(id=message.id, seed=77))
            say(scripted.tokens(message.id, "Hél", [1, 2], [False, True], [1, 2]))
            if end == "the lease expires":
                say(messages.Error(id=message.id, code="lease_expired", message="silent"))
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
    daemon.script = _first_tokens_only
    stream = connect(daemon.endpoint, patience=0.3).generate(prompt="Hi")
    next(stream)
    daemon.stop()
    with pytest.raises(Unreachable, match="went away"):
        next(stream)


def test_the_hint_of_a_full_queue_reaches_the_app(daemon: ScriptedDaemon, connect: Connect) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate):
            say(messages.Error(id=message.id, code="overloaded", message="full", retry_after=2.5))
        else:
            scripted.answer(message, say)

    daemon.script = script
    with pytest.raises(Overloaded) as caught:
        connect(daemon.endpoint).complete(prompt="Hi")
    assert caught.value.retry_after == 2.5


# ---- Client alone: threads and signals


def test_threads_share_a_client(daemon: ScriptedDaemon) -> None:
    def work() -> None:
        for _ in range(50):
            assert client.complete(prompt="Hi").text == "Hello, Wörld!"
            client.ping()
        finished.append(1)

    finished: list[int] = []
    with Client(daemon.endpoint) as client:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(finished) == 4


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_thread_that_waits_does_not_hold_up_another(daemon: ScriptedDaemon) -> None:
    daemon.script = _first_tokens_only
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            client.complete(prompt="Hi")
        except Cancelled as error:
            caught.append(error)

    with Client(daemon.endpoint) as client:
        thread = threading.Thread(target=wait)
        thread.start()
        _until(
            lambda: client._connection is not None and client._connection._busy and daemon.heard.qsize() > 1
        )
        for _ in range(20):
            assert client.ping() < 2
        start = time.monotonic()
    assert time.monotonic() - start < 2  # the closing wakes the thread at the socket
    thread.join(5)
    assert len(caught) == 1


def test_a_signal_ends_the_wait_and_cancels(daemon: ScriptedDaemon) -> None:
    daemon.script = _first_tokens_only
    program = (
        "import sys; from draftd.ipc import Client\n"
        "with Client(sys.argv[1]) as client:\n"
        "    for event in client.generate(prompt='Hi'): print(event.text, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, daemon.endpoint], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"Hello\n"
    os.kill(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=10)
    assert b"KeyboardInterrupt" in errors
    daemon.wait_for(messages.Cancel)
