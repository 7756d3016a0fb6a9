"""Clients of the gateway that leave, break off or send what is none, and a queue that is full."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator, Iterator, MutableMapping
from typing import Any, cast

import httpx
import pytest
from starlette.requests import ClientDisconnect

from draftd.daemon.gateway import _event, _respond, _stream, _unless_gone, create_app
from draftd.daemon.gateway_answers import Head
from draftd.daemon.gateway_guard import Guard
from draftd.daemon.gateway_types import Chat
from draftd.ipc.errors import Cancelled
from draftd.ipc.messages import Status, Tokens
from tests.daemon.conftest import ROOMY, Daemon, Serve, cancelling
from tests.daemon.gateways import ASK, gateway

LONG = {"max_tokens": 8000, "speculate": False, "logit_bias": {"256": -100, "258": -100}}  # no end of its own
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_a_client_that_leaves_cancels(base: str, shared: Daemon) -> None:
    body = ASK | LONG | {"stream": True, "stop": ["never said"], "temperature": 1}
    with cancelling(shared), httpx.stream("POST", f"{base}/v1/chat/completions", json=body) as reply:
        next(reply.iter_lines())
    idle = shared.wait_for(lambda status: not status.requests["running"])
    assert idle.state == "ready"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x00\xff\x16\x03\x01\r\n\r\n",
        b"GET /v1/mod",
        b"GET /v1/models HTTP/9.9\r\n\r\n",
        POST + b"Content-Length: 99\r\n\r\n{",
        POST + b"Content-Length: -1\r\n\r\n{}",
        POST + b"Content-Length: 5\r\n\r\n" + b"x" * 500,
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
        POST + b"Content-Length: 99999999999\r\n\r\n{",
        POST + b"X: " + b"x" * 200_000,
    ],
    ids=lambda sent: sent[-20:].hex() or "nothing",
)
def test_a_broken_client_harms_nobody(base: str, sent: bytes) -> None:
    host, port = base.removeprefix("http://").split(":")
    broken = socket.create_connection((host, int(port)), timeout=30)
    with broken, contextlib.suppress(OSError):  # it may be refused before it has said all
        broken.sendall(sent)
        broken.shutdown(socket.SHUT_WR)
        answer = broken.recv(4096)
        assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer
    assert httpx.get(f"{base}/health").status_code == 200


@pytest.mark.parametrize(
    "content", [b"{not json", b"[]", b"\xff", b"[" * 100_000, b"null", b'{"messages": 1}']
)
def test_a_body_that_is_none(base: str, content: bytes) -> None:
    reply = httpx.post(f"{base}/v1/chat/completions", content=content)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_what_is_wrong_with_a_body_s_json_is_told(base: str) -> None:
    kind = {"Content-Type": "application/json"}
    reply = httpx.post(f"{base}/v1/chat/completions", content=b'{"model": nope}', headers=kind)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, None)
    assert error["message"] == "the body is no JSON: Expecting value at character 10"
    plain = httpx.post(f"{base}/v1/chat/completions", content=b"{}", headers={"Content-Type": "text/plain"})
    assert plain.json()["error"]["message"].startswith("the body is no JSON object: send one")


async def _endless(begun: asyncio.Event) -> AsyncGenerator[Any, None]:
    """A stream that nothing comes from; `begun`: somebody waits for it."""
    begun.set()
    await asyncio.Event().wait()
    yield None


def test_a_request_that_is_cancelled_leaves_nothing_at_work() -> None:
    """As all are at the gateway's shutdown."""

    class Here:
        async def is_disconnected(self) -> bool:
            return False

    async def cancelled() -> None:
        begun = asyncio.Event()

        stream, here = _endless(begun), Here()
        waiting = asyncio.create_task(_unless_gone(anext(stream), cast(Any, here)))
        await begun.wait()
        waiting.cancel()
        with pytest.raises(Cancelled, match="the gateway is stopping"):  # told as 503, not as a fault of ours
            await waiting
        await stream.aclose()  # RuntimeError if it still runs

    asyncio.run(cancelled())


def test_a_stream_that_is_cancelled_says_why() -> None:
    """The app may still be there: it is the gateway that ends."""
    came: list[bytes] = []

    async def cancelled() -> None:
        begun = asyncio.Event()

        async def read() -> None:
            first = Tokens(id="1", text="a", tokens=[97], drafted=[False])
            head = Head("chat", "chatcmpl-1", 0, "tiny")
            async for chunk in _stream(head, first, _endless(begun), Chat.model_validate(ASK)):
                came.append(chunk)

        reading = asyncio.create_task(read())
        await begun.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(cancelled())
    error = json.loads(came[-1].removeprefix(b"data: "))["error"]
    assert error["message"].startswith("the gateway is stopping")


def test_no_line_end_of_unicode_s_ends_a_chunk() -> None:
    """As for who reads a stream by httpx's iter_lines."""
    chunk = {"text": "a\x85b\u2028c\u2029d\x1ee"}
    line, *rest = _event(chunk).decode().splitlines()
    assert json.loads(line.removeprefix("data: ")) == chunk
    assert rest == [""]


def test_a_client_that_leaves_between_two_tokens_cancels() -> None:
    """However fast they come: of a whole answer nothing is sent before its end."""
    closed: list[bool] = []

    class Endless:
        async def generate(self, **_: object) -> AsyncGenerator[Tokens, None]:
            try:
                while True:
                    await asyncio.sleep(0.01)
                    yield Tokens(id="1", text="a", tokens=[97], drafted=[False])
            finally:
                closed.append(True)

    class Gone:
        async def is_disconnected(self) -> bool:
            return True

    async def ask() -> None:
        async with asyncio.timeout(20):
            await _respond(cast(Any, Endless()), "chat", Chat.model_validate(ASK), cast(Any, Gone()))

    with pytest.raises(ClientDisconnect):
        asyncio.run(ask())
    assert closed == [True]


def test_who_leaves_is_no_fault_of_the_gateway_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uvicorn writes what an application raises into the log, as an error of it."""
    heard = [{"type": "http.request", "body": json.dumps(ASK).encode()}]
    said: list[MutableMapping[str, Any]] = []

    class Silent:
        def __init__(self, *_: object, **__: object) -> None: ...

        async def generate(self, **_: object) -> AsyncGenerator[Tokens, None]:
            await asyncio.Event().wait()
            yield Tokens(id="1", text="", tokens=[], drafted=[])

    async def receive() -> MutableMapping[str, Any]:
        return heard.pop() if heard else {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        said.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    monkeypatch.setattr("draftd.daemon.gateway.AsyncClient", Silent)
    asyncio.run(create_app(None)(scope, receive, send))
    assert [message.get("status") for message in said] == [499, None]


def test_no_more_of_a_body_is_kept_than_a_prompt_needs(base: str) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 1_000_000

    async def app(*_: object) -> None: ...

    told = Guard(app).refusal({"host": "localhost", "content-length": "17000000"}, "/")
    assert told is not None
    assert told[0] == 413
    # of a length that was not told
    reply = httpx.post(f"{base}/v1/chat/completions", content=body(), timeout=60)
    assert (reply.status_code, told[1] in reply.json()["error"]["message"]) == (413, True), reply.text


def test_a_client_that_leaves_before_its_answer_cancels(base: str, shared: Daemon) -> None:
    host, port = base.removeprefix("http://").split(":")
    body = json.dumps(ASK | LONG).encode()
    with cancelling(shared), socket.create_connection((host, int(port))) as leaving:
        leaving.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        shared.wait_for(lambda status: status.requests["running"] == 1)


def test_a_full_queue_is_503_with_retry_after(serve: Serve) -> None:
    daemon = serve("--slots", "1", queue="0", **ROOMY)
    daemon.wait_ready()
    with gateway(daemon.endpoint) as base:
        with daemon.client() as busy:
            running = busy.generate(prompt="x", max_tokens=8000, ignore_eos=True)
            next(running)
            refused = httpx.post(f"{base}/v1/chat/completions", json=ASK)
            running.close()
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(
    ("state", "code", "word"),
    [("ready", 200, "ok"), ("unloaded", 200, "ok"), ("loading", 503, "loading"), ("failed", 503, "failed")],
)
def test_a_daemon_is_well_if_it_would_answer(
    monkeypatch: pytest.MonkeyPatch, state: str, code: int, word: str
) -> None:
    class Told:
        def __init__(self, *_: object, **__: object) -> None: ...

        async def status(self, full: bool = False) -> Status:
            return Status.model_validate({"id": "1", "state": state, "pair": "tiny"})

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(None))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.get("/health")

    monkeypatch.setattr("draftd.daemon.gateway.AsyncClient", Told)
    told = asyncio.run(ask())
    assert (told.status_code, told.json()["status"]) == (code, word)
