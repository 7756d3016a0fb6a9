"""Tools through a real daemon: shown by the model's template, held to their schemas, read back as calls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from draftd.ipc import Client
from draftd.ipc.errors import InvalidRequest
from draftd.ipc.messages import Done, Tokens
from tests.daemon.conftest import Daemon, serving
from tests.tiny import TOOL_CALL

PLACE = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
}
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": PLACE}}
NOW = {"type": "function", "function": {"name": "now", "description": "the time"}}
ASK = {"messages": [{"role": "user", "content": "Cold?"}], "tools": [WEATHER, NOW], "max_tokens": 300}
WRONG = {"properties": {"a": {"type": "colour"}}}
OPEN = {str(TOOL_CALL): 100.0}  # a bias by which the tiny model calls something whenever it may


@pytest.fixture(scope="module", params=["transformers", "llama_cpp"])
def client(
    request: pytest.FixtureRequest, tool_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    target = "target" if request.param == "transformers" else "target.gguf"
    with serving(tmp_path_factory.mktemp("run"), tool_files) as start:
        daemon = start("--slots", "2", target=target, backend=request.param, context="1024")
        yield daemon.client()


def called(client: Client, **params: Any) -> list[tuple[str, Any]]:
    """The calls of an answer, their arguments read; the stream's pieces must join to the same."""
    reply = client.complete(**{**ASK, **params})
    assert reply.finish_reason == "tool_calls", reply
    assert all(call.id.startswith("call_") for call in reply.tool_calls)
    assert len({call.id for call in reply.tool_calls}) == len(reply.tool_calls)
    return [(call.function.name, json.loads(call.function.arguments)) for call in reply.tool_calls]


def fits(name: str, arguments: dict[str, Any]) -> bool:
    if name == "now":
        return arguments == {}
    return arguments["city"] in ("Rome", "Oslo") and 1 <= arguments["days"] <= 9 and len(arguments) == 2


def test_a_call_that_must_be(client: Client) -> None:
    calls = called(client, tool_choice="required", parallel_tool_calls=False, temperature=1.0, seed=3)
    assert len(calls) == 1
    assert fits(*calls[0])


def test_one_function_that_must_be_called(client: Client) -> None:
    for name in ("weather", "now"):
        choice = {"type": "function", "function": {"name": name}}
        calls = called(client, tool_choice=choice, logit_bias=OPEN)
        assert [call[0] for call in calls] == [name]
        assert fits(*calls[0])


def test_a_call_that_the_model_chose(client: Client) -> None:
    assert fits(*called(client, parallel_tool_calls=False, logit_bias=OPEN)[0])


def test_several_calls_come_to_an_end_of_their_own_or_of_length(client: Client) -> None:
    more = {**OPEN, str(ord("\n")): 100.0}  # behind a call: rather another one than the end
    reply = client.complete(**ASK, tool_choice="required", logit_bias=more)
    assert reply.finish_reason == "length"
    assert len(reply.tool_calls) > 1
    assert all(fits(c.function.name, json.loads(c.function.arguments)) for c in reply.tool_calls[:-1])
    assert reply.text == ""


def test_free_text_stays_text_and_none_is_as_without_tools(client: Client) -> None:
    asked = {**ASK, "max_tokens": 20, "logit_bias": {str(TOOL_CALL): -100.0}}
    free = client.complete(**asked)
    assert free.text
    assert free.finish_reason in ("stop", "length")
    assert not free.tool_calls
    none = client.complete(**{**asked, "tool_choice": "none"})
    without = client.complete(**{**asked, "tools": []})
    assert none.tokens == without.tokens != free.tokens
    assert none.usage.prompt_tokens == without.usage.prompt_tokens < free.usage.prompt_tokens


def test_drafts_change_no_call(client: Client) -> None:
    asked = {**ASK, "tool_choice": "required", "temperature": 0.9, "seed": 11, "cache_prompt": False}
    answers = [client.complete(**asked, speculate=how) for how in ("off", "model:4", "suffix:4", "auto")]
    assert all(answer.tokens == answers[0].tokens for answer in answers)
    assert all(answer.tool_calls == answers[0].tool_calls for answer in answers)
    assert answers[1].stats.accepted > 0


def test_a_result_goes_back_and_the_calls_are_in_the_cache(client: Client) -> None:
    first = client.complete(**ASK, tool_choice={"type": "function", "function": {"name": "weather"}})
    turn = [
        {
            "role": "assistant",
            "content": first.text,
            "tool_calls": [c.model_dump() for c in first.tool_calls],
        },
        {"role": "tool", "content": "-3", "tool_call_id": first.tool_calls[0].id},
    ]
    again = client.complete(**{**ASK, "messages": [*ASK["messages"], *turn], "max_tokens": 4})  # type: ignore[misc]
    # What the template makes of the call is what the model said, but for the last token, which was never fed.
    assert again.usage.cached_tokens >= first.usage.prompt_tokens + first.usage.completion_tokens - 1


def test_pieces_join_and_a_resumed_stream_goes_on_with_them(client: Client) -> None:
    asked: dict[str, Any] = {**ASK, "temperature": 0.8, "seed": 5, "speculate": False}
    asked["tool_choice"] = {"type": "function", "function": {"name": "weather"}}
    *parts, done = list(client.generate(**asked))
    assert isinstance(done, Done)
    whole = joined(parts)
    assert len(parts) > 10
    for at in (0, 3, len(parts) // 2, len(parts) - 1, len(parts)):
        had = [part for part in parts[:at] if isinstance(part, Tokens)]
        resume = {
            "tokens": [token for part in had for token in part.tokens],
            "characters": sum(part.characters for part in had),
        }
        *rest, end = list(client.generate(**asked, resume=resume))
        assert joined([*had, *rest]) == whole
        assert isinstance(end, Done)
        assert end.finish_reason == done.finish_reason


def joined(parts: Sequence[Tokens | Done]) -> list[list[str]]:
    """By call: id, name, arguments."""
    found: list[list[str]] = []
    for part in parts:
        assert isinstance(part, Tokens)
        for piece in part.tool_calls:
            if piece.name is not None:
                assert piece.index == len(found)
                found.append([piece.id or "", piece.name, ""])
            found[piece.index][2] += piece.arguments
    return found


def test_a_schema_beside_tools(client: Client) -> None:
    grammar = {"kind": "json_schema", "source": {"type": "boolean"}}
    said = client.complete(**ASK, grammar=grammar, logit_bias={str(TOOL_CALL): -100.0, str(ord("<")): -100.0})
    assert json.loads(said.text) in (True, False)
    assert called(client, grammar=grammar, logit_bias=OPEN, parallel_tool_calls=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": None, "prompt": "x"}, "tools go with messages"),
        ({"tools": [NOW, NOW]}, "two functions of one name"),
        ({"tools": [], "tool_choice": "required"}, "there are no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "x, which is not among the tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"beams": 2}, "beams does not go with tools"),
        ({"grammar": {"kind": "regex", "source": "a"}}, "do not go with a regex grammar"),
        ({"grammar": {"kind": "json_schema", "source": "{"}}, "grammar: not a json_schema: "),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "colour"}}}]},
            "parameters of f must be a schema of type object",
        ),
        (
            {"tools": [NOW, {"type": "function", "function": {"name": "f", "parameters": WRONG}}]},
            "tools: the parameters of f: grammar: not a json_schema: ",
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_asked(client: Client, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        client.complete(**{**ASK, **change})


def test_a_template_without_tools_says_so(tool_files: Path, tmp_path: Path) -> None:
    with serving(tmp_path, tool_files) as start:
        daemon: Daemon = start(target="plain", draft=None)
        client = daemon.client()
        with pytest.raises(InvalidRequest, match="chat template takes no tools"):
            client.complete(**ASK)
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        with pytest.raises(InvalidRequest, match="chat template takes no tools"):
            client.complete(messages=[{"role": "assistant", "content": "", "tool_calls": [call]}])
        with pytest.raises(InvalidRequest, match="chat template takes no tools"):
            client.prefill(messages=ASK["messages"], tools=[NOW])
        assert client.complete(**{**ASK, "tool_choice": "none", "max_tokens": 2}).tokens
