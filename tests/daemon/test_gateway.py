"""The gateway over a real daemon: OpenAI's own client, raw HTTP, and errors in OpenAI's shape."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.daemon.gateways import ASK


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


def test_offsets_of_a_stream_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    create = client.completions.create
    whole = create(model="tiny", prompt="abc", max_tokens=8, n=2, logprobs=0, seed=1).choices
    streamed: list[list[int]] = [[], []]
    for chunk in create(model="tiny", prompt="abc", max_tokens=8, n=2, logprobs=0, seed=1, stream=True):
        choice = chunk.choices[0]
        if choice.logprobs is not None:
            streamed[choice.index] += choice.logprobs.text_offset or []
    assert streamed == [choice.logprobs.text_offset for choice in whole if choice.logprobs is not None]
    assert any(offsets[-1] > 0 for offsets in streamed if offsets)


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
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, 400, "0.type: Field required"),
        (ASK | {"stop": ["x"] * 17}, 400, "should have at most 16 items"),
        (ASK | {"temperature": -1}, 400, "temperature"),
        (ASK | {"response_format": {"type": "json_schema"}}, 400, "json_schema is missing"),
        (ASK | {"functions": [{"name": "f"}]}, 400, "send tools and tool_choice"),
        (ASK | {"tools": [{"type": "custom", "custom": {}}]}, 400, "tools.0.type: should be 'function'"),
        (ASK | {"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "takes no tools"),
        (ASK | {"n": 129}, 400, "n: Input should be less than or equal to 128"),
        (ASK | {"logit_bias": {"97": 1e10}}, 400, "logit_bias.97: should be less than or equal to 1000"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, 400, "the context holds 8192"),
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


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_s_name_that_utf_8_can_not_say_goes_back_as_it_came(base: str, stream: bool) -> None:
    body = json.dumps(ASK | {"model": "\ud800", "max_tokens": 3, "stream": stream})
    kind = {"Content-Type": "application/json"}
    reply = httpx.post(f"{base}/v1/chat/completions", content=body, headers=kind)
    assert reply.status_code == 200
    first = reply.text.partition("\n")[0].removeprefix("data: ")
    assert json.loads(first)["model"] == "\ud800"
    assert not stream or reply.text.endswith("data: [DONE]\n\n")


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
