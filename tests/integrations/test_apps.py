"""docs/apps.md, step by step: what each program sends with the settings there, and what the gateway answers.

The requests are those that the programs' sources make, with the settings that the page shows.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml  # type: ignore[import-untyped]  # it comes with transformers

from tests.daemon.conftest import Daemon
from tests.daemon.gateways import gateway
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "apps.md"
SHOWN = "http://127.0.0.1:8765"
MODEL = "qwen2.5-coder"
TOOL = {
    "type": "function",
    "function": {
        "name": "HassTurnOn",
        "description": "Turns on a device.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}},
    },
}
CALLED = {"id": "c1", "type": "function", "function": {"name": "HassTurnOn", "arguments": '{"name": "lamp"}'}}
SEED = 1  # these programs send none: without it a tiny model now and then ends at once
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "You control a house."},
    {"role": "user", "content": "Light, please."},
]


def shown(language: str) -> str:
    """The one block of a language on the page."""
    (found,) = [block.text for block in blocks(PAGE) if block.language == language]
    return found


@pytest.fixture(scope="module")
def base(shared: Daemon) -> Iterator[str]:
    with gateway(shared.endpoint) as address:
        yield address


def chunks(reply: httpx.Response) -> list[dict[str, Any]]:
    """A stream as these programs read it: lines of data up to [DONE], anything else an error."""
    assert reply.status_code == 200, reply.text
    lines = [line for line in reply.text.split("\n") if line]
    assert lines.pop() == "data: [DONE]"
    found = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert all(type(chunk["choices"]) is list for chunk in found)
    return found


def ended(found: list[dict[str, Any]]) -> bool:
    """Did a chat's stream begin with the role, give text and end with a reason and the usage?"""
    first, *_, last, usage = found
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert last["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls")
    assert usage["choices"] == []
    assert {"prompt_tokens", "completion_tokens", "total_tokens"} <= usage["usage"].keys()
    return any(chunk["choices"][0]["delta"].get("content") for chunk in found[:-1])


def test_home_assistant(base: str) -> None:
    """Its llama.cpp integration: the model's step of the set-up, then a turn with a tool that was called."""
    assert f"URL: `{SHOWN}/v1`" in PAGE.read_text("utf-8")

    async def work() -> None:
        key = "sk-0000000000000000000"  # what it sends where none is given
        async with openai.AsyncOpenAI(api_key=key, base_url=f"{base}/v1", max_retries=0) as client:
            create: Any = client.chat.completions.create
            (model,) = [each.id async for each in await client.with_options(timeout=10.0).models.list()]
            tried = await create(model=model, messages=TALK, tools=[TOOL], max_tokens=3, stream=False)
            assert tried.choices[0].finish_reason in ("length", "stop", "tool_calls")
            stream = await create(model=model, messages=TALK, tools=[TOOL], max_tokens=3, stream=True)
            assert [each async for each in stream][-1].choices[0].finish_reason is not None
            turn = {"role": "assistant", "content": None, "tool_calls": [CALLED]}
            result = {"role": "tool", "tool_call_id": "c1", "content": '{"data": {}, "error": null}'}
            options = {"max_tokens": 3000, "top_p": 1.0, "temperature": 0.7, "user": "01J", "stream": True}
            told = await create(model=model, messages=[*TALK, turn, result], tools=[TOOL], **options)
            parts = [each async for each in told]
            assert parts[0].choices[0].delta.role == "assistant"
            assert parts[-1].choices[0].finish_reason in ("length", "stop", "tool_calls")

    asyncio.run(work())


def test_home_assistant_on_another_machine(shared: Daemon, tmp_path: Path) -> None:
    """The options of the page's command; the port and address are the test's own."""
    text = PAGE.read_text("utf-8")
    assert "draftd gateway --listen 0.0.0.0:8765 --host desk.local --api-keys ~/draftd-keys" in text
    assert "`http://desk.local:8765/v1`" in text
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_text("c2VjcmV0\n")
    with gateway(shared.endpoint, "--host", "desk.local", "--api-keys", str(keys)) as address:
        url = f"{address}/v1/models"

        def status(host: str, key: str) -> int:
            headers = {"Host": f"{host}:8765", "Authorization": f"Bearer {key}"}
            return httpx.get(url, headers=headers).status_code

        assert [
            status("desk.local", "c2VjcmV0"),
            status("desk.local", "any"),
            status("192.0.2.1", "c2VjcmV0"),
        ] == [
            200,
            401,
            403,
        ]


def test_zed(base: str) -> None:
    settings = json.loads(shown("json"))
    provider = settings["language_models"]["openai_compatible"]["draftd"]
    (model,) = provider["available_models"]
    assert settings["agent"]["default_model"] == {"provider": "draftd", "model": model["name"]}
    assert "DRAFTD_API_KEY=any" in PAGE.read_text("utf-8")  # the provider's name in capitals, and _API_KEY
    body = {
        "model": model["name"],
        "messages": [
            {"role": "system", "content": "You edit."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [CALLED]},
            {"role": "tool", "content": "done", "tool_call_id": "c1"},
            {"role": "user", "content": "Go on."},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": min(model["max_output_tokens"], 40),
        "temperature": 1.0,
        "tools": [TOOL],
    }
    url = provider["api_url"].replace(SHOWN, base)
    reply = httpx.post(
        f"{url}/chat/completions", json=body, headers={"Authorization": "Bearer any"}, timeout=60
    )
    ended(chunks(reply))


def test_continue(base: str) -> None:
    talks, completes = yaml.safe_load(shown("yaml"))["models"]
    url = talks["apiBase"].replace(SHOWN, base)
    headers = {"Authorization": f"Bearer {talks['apiKey']}", "x-api-key": talks["apiKey"]}
    assert (talks["provider"], completes["provider"]) == ("openai", "openai")
    body = {
        "messages": TALK,
        "model": talks["model"],
        "max_tokens": min(talks["defaultCompletionOptions"]["maxTokens"], 40),
        "seed": SEED,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert ended(chunks(httpx.post(f"{url}/chat/completions", json=body, headers=headers, timeout=60)))
    marks = (
        "endoftext",
        "fim_prefix",
        "fim_middle",
        "fim_suffix",
        "fim_pad",
        "repo_name",
        "file_sep",
        "im_start",
    )
    stop = [*(f"<|{mark}|>" for mark in (*marks, "im_end")), "/src/", "#- coding: utf-8", "```"]
    body = {
        "prompt": "<|fim_prefix|>def one():\n    return <|fim_suffix|>\n<|fim_middle|>",
        "model": completes["model"],
        "max_tokens": completes["defaultCompletionOptions"]["maxTokens"],
        "temperature": 0.01,
        "stop": stop,
        "stream": True,
    }
    found = chunks(httpx.post(f"{url}/completions", json=body, headers=headers, timeout=60))
    assert found[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert all(isinstance(chunk["choices"][0]["text"], str) for chunk in found)


def test_neovim(base: str) -> None:
    url, key = re.findall(r'url = "(.*?)", api_key = "(.*?)"', shown("lua"))[0]
    url, headers = url.replace(SHOWN, base), {"Authorization": f"Bearer {key}"}
    models = httpx.get(f"{url}/v1/models", headers=headers).json()["data"]
    body = {
        "model": models[0]["id"],
        "messages": TALK,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 20,
        "seed": SEED,
    }
    assert ended(chunks(httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)))


def test_what_the_page_says_of_the_rest(base: str) -> None:
    assert httpx.get(f"{base}/health").json()["status"] == "ok"
    assert httpx.post(f"{base}/infill", json={}).status_code == 404
    refused = httpx.get(f"{base}/v1/models", headers={"Origin": "https://chat.example"})
    assert (refused.status_code, "--origin" in refused.text) == (403, True)
    refused = httpx.get(f"{base}/v1/models", headers={"Host": "evil.example"})
    assert (refused.status_code, "--host" in refused.text) == (403, True)
