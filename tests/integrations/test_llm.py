"""The real llm command with the plugin, found by its entry point, over a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.conftest import Daemon, cancelling

Env = dict[str, str]
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
ASKED = ("-o", "max_tokens", "12", "-o", "temperature", "0.8", "-o", "seed", "3")
API = """
import asyncio, json, llm
LONG = {"type": "string", "minLength": 10000}
model, other = llm.get_model("draftd"), llm.get_async_model("draftd")
options = {"max_tokens": 12, "temperature": 0.8, "seed": 3}
response = model.prompt("hello", system="be brief", **options)
pieces = list(response)
async def alike():
    response = other.prompt("hello", system="be brief", **options)
    return [piece async for piece in response], await response.usage()
async def left():
    async for piece in other.prompt("hello", max_tokens=900, speculate="off", schema=LONG):
        break
asyncio.run(left())
again, usage = asyncio.run(alike())
print(json.dumps([pieces, again, vars(response.usage()), vars(usage), response.response_json]))
"""


TOOLS = """
import asyncio, json, llm
from typing import Literal
model, other = llm.get_model("draftd"), llm.get_async_model("draftd")
def weather(city: Literal["Rome", "Oslo"]) -> str:
    "How it is outside."
    return "cold in " + city
options = {"max_tokens": 300, "seed": 3, "tool_choice": "weather"}
def told(calls):
    return [[call.name, call.arguments, call.tool_call_id] for call in calls]
first = model.prompt("Cold?", tools=[weather], **options)
second = first.reply(tools=[weather], **options)
async def alike():
    response = other.prompt("Cold?", tools=[weather], **options)
    return told(await response.tool_calls())
cut = model.prompt("Cold?", tools=[weather], max_tokens=3, tool_choice="required")
free = model.prompt("Cold?", tools=[weather], max_tokens=3, tool_choice="none")
schema = llm.Tool.function(weather).input_schema
turns = [told(first.tool_calls()), told(second.tool_calls()), asyncio.run(alike())]
print(json.dumps([turns, [cut.text(), told(cut.tool_calls())], free.text(), schema]))
"""


@pytest.fixture(scope="module")
def env(install: Callable[[str], Path], shared: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Env:
    return {
        **os.environ,
        "PYTHONPATH": str(install("llm-draftd")),
        "LLM_USER_PATH": str(tmp_path_factory.mktemp("llm")),
        "DRAFTD_ENDPOINT": shared.endpoint,
        "PYTHONIOENCODING": "utf-8",
    }


def llm(env: Env, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "llm", *arguments]
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)


def said(env: Env, *arguments: str) -> str:
    """What the command printed, without the newline it adds."""
    done = llm(env, *arguments)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().removesuffix("\n")


def test_a_conversation_and_its_log(env: Env, shared: Daemon) -> None:
    first = said(env, "-m", "draftd", "hello", *ASKED)
    messages = [{"role": "user", "content": "hello"}]
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.8, "seed": 3}
    assert first == shared.client().complete(messages=messages, **options).text != ""
    second = said(env, "-c", "more", *ASKED)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "more"}]
    expected = shared.client().complete(messages=messages, **options)
    assert second == expected.text
    last = json.loads(said(env, "logs", "-n", "1", "--json"))[0]
    assert last["model"] == "draftd"
    assert last["input_tokens"] == expected.usage.prompt_tokens
    assert last["output_tokens"] == expected.usage.completion_tokens
    assert json.loads(last["token_details"]).keys() >= {"drafted", "accepted"}
    assert said(env, "-m", "draftd", "hello", *ASKED, "-o", "speculate", "false") == first


def test_a_schema_without_streaming_and_async(env: Env) -> None:
    asked = ("--async", "--no-stream", "-o", "max_tokens", "60", "--schema", json.dumps(SCHEMA))
    assert type(json.loads(said(env, "-m", "draftd", "is it?", *asked))["ok"]) is bool


def test_the_python_api(env: Env, shared: Daemon) -> None:
    with cancelling(shared):  # what is left in the middle
        done = subprocess.run([sys.executable, "-c", API], env=env, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    pieces, again, usage, other, told = json.loads(done.stdout)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    expected = shared.client().complete(messages=messages, max_tokens=12, temperature=0.8, seed=3)
    assert "".join(pieces) == "".join(again) == expected.text
    assert len(pieces) > 1
    assert usage["input"] == other["input"] == expected.usage.prompt_tokens
    assert usage["output"] == other["output"] == expected.usage.completion_tokens
    assert told["stats"]["seed"] == 3


def test_tools_are_called_and_their_results_go_back(env: Env, shared: Daemon) -> None:
    done = subprocess.run([sys.executable, "-c", TOOLS], env=env, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    turns, cut, free, schema = json.loads(done.stdout)
    function = {"name": "weather", "description": "How it is outside.", "parameters": schema}
    choice = {"type": "function", "function": {"name": "weather"}}
    asked: dict[str, Any] = {
        "tools": [{"type": "function", "function": function}],
        "max_tokens": 300,
        "seed": 3,
    }
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Cold?"}]
    for turn in turns[:2]:
        reply = shared.client().complete(messages=messages, **asked, tool_choice=choice)
        (call,) = reply.tool_calls
        arguments = json.loads(call.function.arguments)
        assert turn == [["weather", arguments, call.id]]
        result = {"role": "tool", "content": f"cold in {arguments['city']}", "tool_call_id": call.id}
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call.model_dump()]},
            result,
        ]
    assert turns[2] == turns[0]  # asked without blocking
    assert cut == ["", []]  # a call without its end is none
    plain = shared.client().complete(messages=messages[:1], max_tokens=3)
    assert free == plain.text


def test_what_is_wrong_is_said_in_a_sentence(env: Env, tmp_path: Path) -> None:
    nobody = {**env, "DRAFTD_ENDPOINT": f"ipc://{tmp_path}/none.sock"}
    done = llm(nobody, "-m", "draftd", "hello")
    assert (done.returncode, b"Error: no daemon" in done.stderr) == (1, True), done.stderr
