"""What both clients make of errors, of other versions and of messages that they do not know."""

from __future__ import annotations

from typing import Any

import pytest

from draftd.ipc import codec, messages
from draftd.ipc.errors import ContextOverflow, DraftdError, MalformedFrame, Overloaded, UnsupportedVersion
from draftd.ipc.messages import Generate
from draftd.ipc.progress import Progress
from draftd.ipc.session import Session
from tests.ipc import scripted
from tests.ipc.conftest import Connect
from tests.ipc.scripted import Say, ScriptedDaemon


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
    asked = [each for each in list(daemon.heard.queue) if isinstance(each, Generate)]
    assert len(asked) == 1, "only an answer that was begun comes again by itself"


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


def test_states_and_ends_from_the_future_are_told(daemon: ScriptedDaemon, connect: Connect) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate):
            say(scripted.done(message.id).model_copy(update={"finish_reason": "filtered"}))
        elif isinstance(message, messages.GetStatus):
            say(messages.Status.model_construct(id=message.id, state="asleep"))
        elif isinstance(message, messages.Prefill):
            say(messages.Prefilled.model_construct(id=message.id, state="postponed"))
        else:
            scripted.answer(message, say)

    daemon.script = script
    client = connect(daemon.endpoint)
    assert client.status().state == "asleep"
    assert client.prefill(prompt="Hi").state == "postponed"
    assert client.complete(prompt="Hi").finish_reason == "filtered"


def test_an_answer_with_an_end_from_the_future_is_resumed() -> None:
    stream = Progress({"prompt": "Hi", "n": 2})
    stream.saw(messages.Tokens(id="1", text="", tokens=[], drafted=[], finish_reason="filtered"))
    _, frame = Session().open(Generate, stream.fields())
    resume = codec.decode(frame)["resume"]
    assert [each["finish_reason"] for each in resume] == ["filtered", None]


def test_a_daemon_that_speaks_nonsense(daemon: ScriptedDaemon, connect: Connect) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate):
            say(messages.Tokens.model_construct(id=message.id, text=5, tokens=[], drafted=[]))
        else:
            scripted.answer(message, say)

    daemon.script = script
    with pytest.raises(MalformedFrame, match="text: should be a valid string"):
        connect(daemon.endpoint).complete(prompt="Hi")
