"""Values that some of OpenAI's clients send and a `generate` message has no place for."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from draftd.daemon.gateway_types import Chat, Completion, generate
from draftd.ipc.errors import InvalidRequest
from draftd.ipc.messages import Generate


def test_no_nucleus_is_the_likeliest_token() -> None:
    found = generate(Completion(prompt="x", top_p=0, temperature=0.7), 16)
    assert (found["temperature"], found["top_p"]) == (0.0, 1.0)
    Generate(id="1", **found)


def test_a_top_k_of_minus_one_is_all() -> None:
    found = generate(Completion(prompt="x", top_k=-1), 16)
    assert found["top_k"] == 0
    Generate(id="1", **found)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("x", {"prompt": "x"}),
        (["x"], {"prompt": "x"}),
        ([1, 2], {"tokens": [1, 2]}),
        ([[1, 2]], {"tokens": [1, 2]}),
    ],
)
def test_a_prompt_may_be_a_text_tokens_or_a_list_of_one(prompt: Any, found: dict[str, Any]) -> None:
    asked = generate(Completion(prompt=prompt), 16)
    assert {name: asked[name] for name in ("prompt", "tokens") if name in asked} == found


@pytest.mark.parametrize("prompt", [[], ["x", "y"], [[1], [2]]])
def test_several_prompts_are_several_requests(prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match="send one request for each"):
        generate(Completion(prompt=prompt), 16)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Completion, {"prompt": [None] * 1000}),
        (Completion, {"prompt": [[None] * 1000]}),
        (Chat, {"messages": [1] * 1000}),
        (Chat, {"messages": [{"role": "user", "content": [1] * 1000}]}),
        (Chat, {"messages": [{"role": "assistant", "tool_calls": [1] * 1000}]}),
        (Chat, {"messages": [{"role": "user", "content": "x"}], "tools": [1] * 1000}),
    ],
)
def test_one_fault_of_thousands_is_told(kind: type[BaseModel], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as told:
        kind.model_validate(body)
    assert told.value.error_count() <= 4  # one for each type that it might have been of
