"""Both clients against one scripted daemon: every test runs over Client and over AsyncClient."""

from __future__ import annotations

import pytest

from draftd.ipc import AsyncClient, Client, Done, Tokens, link, messages
from draftd.ipc.errors import InvalidEndpoint, InvalidRequest
from draftd.ipc.messages import Generate, Hello
from draftd.ipc.version import VERSION
from tests.ipc import scripted
from tests.ipc.conftest import Connect
from tests.ipc.scripted import Say, ScriptedDaemon


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


def test_a_clear_may_wait_until_the_models_are_loaded(
    daemon: ScriptedDaemon, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_EVERY", 0.3)
    asked: list[str] = []

    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, messages.Clear | messages.Ping):
            asked.append(message.id)
        if len(asked) == 6:
            say(messages.Cleared(id=asked[0], files=1))
        elif not isinstance(message, messages.Clear):
            scripted.answer(message, say)

    daemon.script = script
    assert connect(daemon.endpoint, timeout=1.0).clear() == 1
    assert asked[1:] == ["alive"] * 5


def test_one_hello_a_connection(daemon: ScriptedDaemon, connect: Connect) -> None:
    client = connect(daemon.endpoint)
    client.ping()
    client.ping()
    client.status()
    kinds = [type(message) for message in list(daemon.heard.queue)]
    assert kinds == [messages.Hello, messages.Ping, messages.Ping, messages.GetStatus]


def test_a_program_whose_file_name_is_no_text_has_a_name(
    daemon: ScriptedDaemon, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/opt/caf\udce9.py"])  # as Python decodes Latin-1
    connect(daemon.endpoint).ping()
    assert daemon.wait_for(Hello).client == "caf?.py"


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


def test_a_wrong_endpoint_is_refused_before_connecting() -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidEndpoint):
            kind("tcp://127.0.0.1:0")
        with pytest.raises(InvalidEndpoint, match="tcp needs keys"):
            kind("tcp://127.0.0.1:5555")
