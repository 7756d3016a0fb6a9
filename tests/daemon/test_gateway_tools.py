"""Tools over HTTP with the programs that apps use: OpenAI's own client, and LangChain's ChatOpenAI."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.daemon.conftest import serving
from tests.daemon.gateways import gateway
from tests.daemon.test_tools import NOW, OPEN, WEATHER, fits

Create = dict[str, Any]
ASK: Create = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Cold?"}],
    "tools": [WEATHER | {"function": WEATHER["function"] | {"strict": True}}, NOW],
    "max_completion_tokens": 300,
    "temperature": 0.9,
    "seed": 4,
}
CHOICES: list[Create] = [
    {"tool_choice": "required", "parallel_tool_calls": False},
    {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
    {"tool_choice": "auto", "parallel_tool_calls": False, "logit_bias": OPEN},
]


@pytest.fixture(scope="module")
def base(tool_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("run"), tool_files) as start:
        daemon = start("--slots", "2", context="1024")
        with gateway(daemon.endpoint) as address:
            yield f"{address}/v1"


@pytest.fixture
def client(base: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base, api_key="any", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("choice", CHOICES, ids=["required", "one", "auto"])
def test_calls_whole_and_streamed_are_the_same(client: openai.OpenAI, choice: Create) -> None:
    whole = client.chat.completions.create(**ASK, **choice)
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].message.content is None
    calls = whole.choices[0].message.tool_calls
    assert calls
    for call in calls:
        assert call.type == "function"
        assert fits(call.function.name, json.loads(call.function.arguments))
    # The client's own way of adding chunks up; `stream` also parses what is whole
    with client.chat.completions.stream(**ASK, **choice) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    streamed = final.choices[0].message.tool_calls
    assert streamed
    assert [(each.id, each.function.name, each.function.arguments) for each in streamed] == [
        (each.id, each.function.name, each.function.arguments) for each in calls if each.type == "function"
    ]


def test_a_stream_s_deltas_are_as_openai_sends_them(client: openai.OpenAI) -> None:
    choice = CHOICES[1] | {"extra_body": {"speculate": False}}
    chunks = list(client.chat.completions.create(**ASK, **choice, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    *between, last = [chunk.choices[0] for chunk in chunks[1:]]
    assert last.finish_reason == "tool_calls"
    assert last.delta.tool_calls is None
    deltas = [each for choice in between for each in choice.delta.tool_calls or []]
    assert deltas[0].id
    assert deltas[0].type == "function"
    assert deltas[0].function
    assert deltas[0].function.name == "weather"
    assert len(deltas) > 3
    for delta in deltas[1:]:
        assert delta.index == 0
        assert delta.id is None
        assert delta.function
        assert delta.function.name is None
        assert delta.function.arguments


def test_a_result_goes_back(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**ASK, **CHOICES[1]).choices[0].message
    assert first.tool_calls
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "-3"}
    messages = [*ASK["messages"], first.model_dump(), result]
    again = client.chat.completions.create(**{**ASK, "messages": messages, "max_completion_tokens": 5})
    assert again.usage
    assert again.usage.prompt_tokens_details
    assert again.usage.prompt_tokens_details.cached_tokens


def test_several_answers_call_each_for_itself(client: openai.OpenAI) -> None:
    asked = {**ASK, **CHOICES[1], "n": 2, "temperature": 2.0}
    several = client.chat.completions.create(**asked)
    alone = client.chat.completions.create(**{**asked, "n": 1, "seed": ASK["seed"] + 1})
    calls = [choice.message.tool_calls or [] for choice in several.choices]
    again = alone.choices[0].message.tool_calls or []
    assert [each.model_dump() for each in calls[1]] == [each.model_dump() for each in again]
    assert calls[0][0].id != calls[1][0].id


class Place(BaseModel):
    """Where it is."""

    city: Literal["Rome", "Oslo"]
    capital: bool


def test_parsed_answers(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": ASK["messages"],
        "max_tokens": 200,
        "seed": ASK["seed"],
    }
    parsed = client.chat.completions.parse(**asked, response_format=Place)
    assert isinstance(parsed.choices[0].message.parsed, Place)
    tool = openai.pydantic_function_tool(Place)
    asked |= {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    called = client.chat.completions.parse(**asked)
    assert called.choices[0].message.tool_calls
    assert isinstance(called.choices[0].message.tool_calls[0].function.parsed_arguments, Place)


def test_the_async_client_calls_the_same(base: str, client: openai.OpenAI) -> None:
    async def ask() -> tuple[Any, str]:
        async with openai.AsyncOpenAI(base_url=base, api_key="any", max_retries=0) as made:
            whole = await made.chat.completions.create(**ASK, **CHOICES[0])
            arguments = ""
            async for chunk in await made.chat.completions.create(**ASK, **CHOICES[0], stream=True):
                for delta in chunk.choices[0].delta.tool_calls or []:
                    assert delta.function
                    arguments += delta.function.arguments or ""
        return whole, arguments

    whole, arguments = asyncio.run(ask())
    sync = client.chat.completions.create(**ASK, **CHOICES[0])
    assert whole.choices[0].message == sync.choices[0].message
    assert arguments == "".join(each.function.arguments for each in whole.choices[0].message.tool_calls)


# ---- LangChain


def chat(base: str, **options: Any) -> ChatOpenAI:
    given: dict[str, Any] = {"model": "tiny", "api_key": "any", "max_retries": 0, "seed": 4}
    given |= {"max_completion_tokens": 300}
    return ChatOpenAI(base_url=base, **given, **options)


def test_langchain_invokes_and_streams(base: str) -> None:
    model = chat(base, temperature=0.0).bind(max_tokens=10)
    whole = model.invoke("Cold?")
    assert isinstance(whole, AIMessage)
    assert whole.usage_metadata
    assert whole.usage_metadata["output_tokens"] <= 10
    chunks = list(model.stream("Cold?"))
    assert "".join(chunk.text for chunk in chunks) == whole.text != ""

    async def streamed() -> str:
        return "".join([chunk.text async for chunk in model.astream("Cold?")])

    assert asyncio.run(streamed()) == whole.text


def test_langchain_binds_tools(base: str) -> None:
    forced = chat(base, temperature=0.9).bind_tools([WEATHER, NOW], tool_choice="weather")
    called = forced.invoke([HumanMessage("Cold?")])
    assert fits(called.tool_calls[0]["name"], called.tool_calls[0]["args"])
    total: Any = None
    for chunk in forced.stream([HumanMessage("Cold?")]):
        total = chunk if total is None else total + chunk
    assert isinstance(total, AIMessageChunk)
    assert total.tool_calls == called.tool_calls
    free = chat(base, logit_bias=OPEN).bind_tools([WEATHER, NOW], parallel_tool_calls=False)
    first = free.invoke([HumanMessage("Cold?")])
    assert first.tool_calls
    result = ToolMessage("-3", tool_call_id=first.tool_calls[0]["id"])
    plain = chat(base, logit_bias={"259": -100, str(ord("<")): -100}).bind_tools([WEATHER, NOW])
    assert not plain.bind(max_tokens=5).invoke([HumanMessage("Cold?"), first, result]).tool_calls


@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
def test_langchain_s_structured_output(base: str, method: Any) -> None:
    if method == "json_mode":  # any object is one: only its braces are sure of a tiny model
        bias = {str(ord("}")): 100.0}
        found = chat(base, logit_bias=bias).with_structured_output(None, method=method).invoke("Where?")
        assert isinstance(found, dict)
        return
    found = chat(base).with_structured_output(Place, method=method).invoke("Where?")
    assert isinstance(found, Place)
