"""The gateway over a real daemon: OpenAI's own client, raw HTTP, and clients that misbehave."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from draftd.daemon.gateway_cli import read_keys
from draftd.daemon.gateway_guard import Guard
from draftd.daemon.listening import bound, hostname
from draftd.ipc.errors import InvalidConfig
from tests.daemon.conftest import Daemon, Serve
from tests.daemon.gateways import gateway

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def base(shared: Daemon) -> Iterator[str]:
    shared.wait_ready()
    with gateway(shared.endpoint) as address:
        yield address


@pytest.fixture
def client(base: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base}/v1", api_key="any", max_retries=0) as made:
        yield made


def test_models_and_health(client: openai.OpenAI, base: str) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "draftd"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert httpx.get(f"{base}/health").json()["status"] == "ok"
    assert "draftd_up 1.0" in httpx.get(f"{base}/metrics").text


def test_a_stream_and_a_whole_answer_are_the_same(client: openai.OpenAI) -> None:
    chat = client.chat.completions
    whole = chat.create(**ASK, max_completion_tokens=12, temperature=0.7, seed=5)  # type: ignore[call-overload]
    chunks = list(chat.create(**ASK, max_completion_tokens=12, temperature=0.7, seed=5, stream=True))  # type: ignore[call-overload]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    finishes = [chunk.choices[0].finish_reason for chunk in chunks]
    assert finishes[-1] == whole.choices[0].finish_reason
    assert not any(finishes[:-1])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content != ""
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.timings["draft_n"] >= whole.timings["draft_n_accepted"] >= 0
    assert whole.timings["seed"] == 5


def test_usage_comes_last_and_only_if_asked(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(  # type: ignore[call-overload]
            **ASK, max_tokens=4, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens <= 4
    assert all(chunk.choices and chunk.usage is None for chunk in chunks[:-1])
    assert all("usage" in chunk.model_fields_set for chunk in chunks)  # as OpenAI: null until the last
    without = client.chat.completions.create(**ASK, max_tokens=4, stream=True)  # type: ignore[call-overload]
    assert not any("usage" in chunk.model_fields_set for chunk in without)


def test_the_raw_stream_is_data_lines_and_ends_with_done(base: str) -> None:
    body = ASK | {"max_tokens": 4, "stream": True, "a field of tomorrow": 1}
    reply = httpx.post(f"{base}/v1/chat/completions", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in reply.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert "draftd" not in reply.text


def test_who_asks_is_told_which_tokens_were_drafted(base: str) -> None:
    body = ASK | {"max_tokens": 20, "stream": True, "mark_drafted": True, "speculate": "model:4"}
    lines = httpx.post(f"{base}/v1/chat/completions", json=body | {"temperature": 0}).text.split("\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    told = [chunk["draftd"] for chunk in chunks if chunk["choices"][0]["delta"].get("content")]
    assert sum(len(each["tokens"]) for each in told) <= 20
    assert all(len(each["tokens"]) == len(each["drafted"]) == len(each["lengths"]) for each in told)
    drafted = sum(sum(each["drafted"]) for each in told)
    assert 0 < drafted <= chunks[-1]["timings"]["draft_n_accepted"]


def test_several_answers_can_be_had_again_alone(client: openai.OpenAI) -> None:
    create = client.completions.create
    several = create(model="tiny", prompt="abc", max_tokens=8, n=3, seed=10, temperature=1.5)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    alone = [create(model="tiny", prompt="abc", max_tokens=8, seed=10 + i, temperature=1.5) for i in range(3)]
    assert [choice.text for choice in several.choices] == [one.choices[0].text for one in alone]
    assert several.usage is not None
    assert several.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone if one.usage)
    streamed = ["", "", ""]
    ends = [""] * 3
    for chunk in create(model="tiny", prompt="abc", max_tokens=8, n=3, seed=10, temperature=1.5, stream=True):
        choice = chunk.choices[0]
        streamed[choice.index] += choice.text
        ends[choice.index] += choice.finish_reason or ""
    assert streamed == [choice.text for choice in several.choices]
    assert ends == [choice.finish_reason for choice in several.choices]


def test_logprobs_in_both_shapes(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(**ASK, max_tokens=3, logprobs=True, top_logprobs=2)  # type: ignore[call-overload]
    content = chat.choices[0].logprobs.content
    assert len(content) == chat.usage.completion_tokens
    assert all(len(each.top_logprobs) == 2 and each.logprob <= 0 for each in content)
    old = client.completions.create(model="tiny", prompt="abc", max_tokens=3, logprobs=1)
    assert old.choices[0].logprobs is not None
    assert len(old.choices[0].logprobs.token_logprobs or []) == old.usage.completion_tokens  # type: ignore[union-attr]


def test_a_schema_holds(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    made = client.chat.completions.create(**ASK, max_tokens=200, response_format=wanted, temperature=0)  # type: ignore[call-overload]
    assert isinstance(json.loads(made.choices[0].message.content)["ok"], bool)


async def _ask_async(base: str) -> tuple[str, str]:
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="any") as made:
        whole = await made.chat.completions.create(**ASK, max_tokens=6, temperature=0)  # type: ignore[call-overload]
        stream = await made.chat.completions.create(**ASK, max_tokens=6, temperature=0, stream=True)  # type: ignore[call-overload]
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    return whole.choices[0].message.content, "".join(parts)


def test_the_async_client(base: str) -> None:
    import asyncio

    whole, streamed = asyncio.run(_ask_async(base))
    assert whole == streamed


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "reads text only"),
        (ASK | {"temperature": -1}, 400, "temperature"),
        (ASK | {"response_format": {"type": "json_schema"}}, 400, "json_schema is missing"),
        (ASK | {"functions": [{"name": "f"}]}, 400, "send tools and tool_choice"),
        (ASK | {"tools": [{"type": "custom", "custom": {}}]}, 400, "tools.0.type: should be 'function'"),
        (ASK | {"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "takes no tools"),
        (ASK | {"n": 129}, 400, "n: Input should be less than or equal to 128"),
        (ASK | {"logit_bias": {"97": 1e10}}, 400, "logit_bias.97: should be less than or equal to 1000"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "the context holds 512"),
    ],
)
def test_wrong_requests_are_told_in_openai_s_shape(base: str, body: object, status: int, words: str) -> None:
    reply = httpx.post(f"{base}/v1/chat/completions", json=body)
    assert reply.status_code == status, reply.text
    assert words in reply.json()["error"]["message"]


def test_a_number_that_json_does_not_have_is_refused(base: str) -> None:
    body = json.dumps(ASK | {"logit_bias": {"97": float("nan")}})
    kind = {"Content-Type": "application/json"}
    reply = httpx.post(f"{base}/v1/chat/completions", content=body, headers=kind)
    assert reply.status_code == 400
    assert "logit_bias.97: should be a finite number" in reply.json()["error"]["message"]


def test_what_is_not_here_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="no embeddings") as caught:
        client.embeddings.create(model="tiny", input="x")
    assert caught.value.status_code == 501


def test_a_wrong_method_or_path_is_told_in_openai_s_shape(base: str) -> None:
    wrong = httpx.get(f"{base}/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert "takes POST only" in wrong.json()["error"]["message"]
    assert httpx.post(f"{base}/v1/responses", json={}).status_code == 501
    away = httpx.get(f"{base}/v2/models")
    assert away.status_code == 404
    assert "/v2/models" in away.json()["error"]["message"]


def test_a_schema_nested_too_deeply_is_the_caller_s_error(base: str) -> None:
    schema: dict[str, object] = {}
    for _ in range(100):
        schema = {"items": schema}
    wanted = {"type": "json_schema", "json_schema": {"name": "deep", "schema": schema}}
    reply = httpx.post(f"{base}/v1/chat/completions", json=ASK | {"response_format": wanted})
    assert reply.status_code == 400
    assert "nested too deeply" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Host": "localhost:1"}, 200),
        ({}, 200),
    ],
)
def test_web_pages_of_others_get_nothing(base: str, headers: dict[str, str], status: int) -> None:
    assert httpx.get(f"{base}/v1/models", headers=headers).status_code == status


def test_its_own_page_may_ask(base: str) -> None:
    assert httpx.get(f"{base}/v1/models", headers={"Origin": base}).status_code == 200


def test_a_client_that_leaves_cancels(base: str, shared: Daemon) -> None:
    body = ASK | {"max_tokens": 400, "stream": True, "stop": ["never said"], "temperature": 1}
    with httpx.stream("POST", f"{base}/v1/chat/completions", json=body) as reply:
        next(reply.iter_lines())
    idle = shared.wait_for(lambda status: not status.requests["running"])
    assert idle.state == "ready"


POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


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
    assert reply.status_code == 400


def test_a_client_that_leaves_before_its_answer_cancels(base: str, shared: Daemon) -> None:
    host, port = base.removeprefix("http://").split(":")
    body = json.dumps(ASK | {"max_tokens": 400, "logit_bias": {"256": -100, "258": -100}}).encode()
    with socket.create_connection((host, int(port))) as leaving:
        leaving.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        shared.wait_for(lambda status: status.requests["running"] == 1)
    shared.wait_for(lambda status: not status.requests["running"])


def test_keys_and_a_daemon_that_is_away(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nsecret-1\n")
    keys.chmod(0o600)
    nowhere = f"ipc://{tmp_path}/none.sock"
    with gateway(nowhere, "--api-keys", str(keys)) as base:
        assert httpx.get(f"{base}/v1/models").status_code == 401
        reply = httpx.get(f"{base}/v1/models", headers={"Authorization": "Bearer secret-1"})
        assert reply.status_code == 503
        assert reply.headers["Retry-After"]
        assert "draftd serve" in reply.json()["error"]["message"]


def test_a_full_queue_is_503_with_retry_after(serve: Serve) -> None:
    daemon = serve("--slots", "1", queue="0", context="8192")
    daemon.wait_ready()
    with gateway(daemon.endpoint) as base:
        with daemon.client() as busy:
            running = busy.generate(prompt="x", max_tokens=8000, ignore_eos=True)
            next(running)
            refused = httpx.post(f"{base}/v1/chat/completions", json=ASK)
            running.close()
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1


def test_a_unix_socket_is_its_owner_s(tmp_path: Path, shared: Daemon) -> None:
    path = tmp_path / "gateway.sock"
    with gateway(shared.endpoint, listen=f"unix:{path}"):
        assert path.stat().st_mode & 0o077 == 0
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as http:
            assert http.get("http://draftd/v1/models").json()["data"][0]["id"] == "tiny"
    assert not path.exists()


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("0.0.0.0:80", "can be reached from other machines"),
        ("8080", "give 127.0.0.1:port or unix:/path"),
        ("127.0.0.1:99999", "give 127.0.0.1:port or unix:/path"),
        ("unix:/proc/no/x.sock", "cannot listen at"),
    ],
)
def test_addresses_that_can_not_be(listen: str, words: str) -> None:
    with pytest.raises(InvalidConfig, match=words), bound(listen, umask=0o077):
        pass


def test_a_keys_file_that_others_can_read(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    os.chmod(keys, 0o644)
    with pytest.raises(InvalidConfig, match="chmod 600"):
        read_keys(keys)


def test_host_names() -> None:
    assert [hostname(host) for host in ("localhost:80", "[::1]:80", "EXAMPLE.org", "")] == [
        "localhost",
        "::1",
        "example.org",
        "",
    ]


def test_an_origin_that_is_allowed() -> None:
    async def app(*_: object) -> None: ...

    guard = Guard(app, origins=frozenset({"https://chat.example"}))
    assert guard.refusal({"host": "localhost", "origin": "https://chat.example"}, "/v1/models") is None
    assert guard.refusal({"host": "localhost", "origin": "null"}, "/v1/models") is not None


def test_a_page_of_an_allowed_origin_gets_at_the_answer(tmp_path: Path, shared: Daemon) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o600)
    options = ("--origin", "https://chat.example", "--api-keys", str(keys))
    with gateway(shared.endpoint, *options) as address:
        base = f"{address}/v1/models"
        origin = {"Origin": "https://chat.example"}
        asks_first = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        allowed = httpx.options(base, headers=origin | asks_first)
        assert allowed.status_code == 200
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        got = httpx.get(base, headers=origin | {"Authorization": "Bearer secret"})
        assert got.headers["access-control-allow-origin"] == "https://chat.example"
        assert got.status_code == 200
        other = httpx.options(base, headers={"Origin": "https://evil.example"} | asks_first)
        assert "access-control-allow-origin" not in other.headers


def test_keys_that_systemd_hands_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_keys(keys) == {"secret"}
