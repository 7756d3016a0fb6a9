from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from draftd.ipc import messages, session
from draftd.ipc.errors import CODES, DraftdError, InvalidRequest, Overloaded, from_code
from draftd.ipc.parse import parse_client


def _explain(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse_client({"type": "generate", "id": "1", **fields})
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "give exactly one of messages, prompt, tokens (given: none)"),
        ({"prompt": "a", "tokens": [1]}, "prompt, tokens (given: ['prompt', 'tokens'])"),
        ({"messages": []}, "messages is empty: give at least one"),
        ({"prompt": "a", "top_k": 1.5}, "top_k: should be a valid integer"),
        ({"prompt": "a", "top_k": "1"}, "top_k: should be a valid integer"),
        ({"prompt": "a", "top_k": True}, "top_k: should be a valid integer"),
        ({"prompt": b"a"}, "prompt: should be a valid string"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature: should be a finite number"),
        ({"prompt": "a", "temperature": float("inf")}, "temperature: should be a finite number"),
        ({"prompt": "a", "keep_alive": float("inf")}, "keep_alive: should be a finite number"),
        ({"prompt": "a", "logit_bias": {"7": float("nan")}}, "logit_bias.7: should be a finite number"),
        ({"prompt": "a", "logit_bias": {"7": float("inf")}}, "logit_bias.7: should be a finite number"),
        ({"prompt": "a", "logit_bias": {"7": float("-inf")}}, "logit_bias.7: should be a finite number"),
        ({"prompt": "a", "logit_bias": {"7": 1e10}}, "logit_bias.7: should be less than or equal to 1000"),
        ({"prompt": "a", "logit_bias": {"7": -1e10}}, "logit_bias.7: should be greater than or equal to -1"),
        ({"prompt": "a", "id": ""}, "id: String should have at least 1 character"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: is missing"),
        ({"messages": [{"role": "boss", "content": ""}]}, "messages.0.role: should be 'system', "),
        ({"prompt": "a", "top_p": 0.0, "min_p": 2.0}, "top_p: should be greater than 0; min_p: should be "),
    ],
)  # fmt: skip
def test_explains_each_wrong_field(fields: dict[str, Any], sentence: str) -> None:
    assert sentence in _explain(**fields)


@pytest.mark.parametrize(
    "wrong",
    ["model:999999", "model:", "model:4\n", "model:٤", "oracle:4", "AUTO", "", b"auto", 4, None, ["auto"]],
)
def test_a_policy_that_is_none_is_one_sentence(wrong: Any) -> None:
    said = "speculate: should be true, false, auto, off, or suffix:N, model:N or chain:N with N up to 99"
    assert _explain(prompt="a", speculate=wrong) == said
    with pytest.raises(InvalidRequest) as caught:  # before anything is sent
        session.check(messages.Generate, {"prompt": "a", "speculate": wrong})
    assert str(caught.value) == said


@pytest.mark.parametrize("policy", [True, False, "auto", "off", "suffix:99", "model:4", "chain:0"])
def test_a_policy_is_taken_as_it_is(policy: bool | str) -> None:
    message = parse_client({"type": "generate", "id": "1", "prompt": "a", "speculate": policy})
    assert isinstance(message, messages.Generate)
    assert message.speculate == policy


def test_names_no_more_than_a_few_faults() -> None:
    text = _explain(prompt="a", stop=[1, 2, 3, 4, 5, 6, 7])
    assert text.endswith("stop.4: should be a valid string; and 2 more")


def test_a_million_wrong_tokens_are_one_fault() -> None:
    assert _explain(tokens=["x"] * 1_000_000) == "tokens.0: should be a valid integer"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [1] * 10_000}]},
            "messages.0.tool_calls.0: should be a valid dictionary or instance of ToolCall",
        ),
        (
            {"prompt": "a", "logit_bias": {str(token): "" for token in range(10_000)}},
            "logit_bias: should have at most 1024 entries",
        ),
        ({"prompt": "a", "resume": [1] * 10_000}, "resume.Resume: should be a valid dictionary"),
    ],
)
def test_many_faults_of_a_kind_are_few(fields: dict[str, Any], sentence: str) -> None:
    """Each takes a kilobyte to be told: those of a frame's two million items would be all of the memory."""
    with pytest.raises(ValidationError) as caught:
        messages.Generate.model_validate({"id": "1", **fields})
    assert caught.value.error_count() < 10
    assert _explain(**fields).startswith(sentence)


def test_a_whole_number_will_do_for_a_fraction() -> None:
    message = parse_client({"type": "generate", "id": "1", "prompt": "a", "temperature": 1})
    assert isinstance(message, messages.Generate)
    assert message.temperature == 1.0


def test_every_error_comes_back_by_its_code() -> None:
    for code, kind in CODES.items():
        assert type(from_code(code, "why")) is kind
    assert isinstance(from_code("overloaded", "why"), Overloaded)
    assert from_code("new", "why").code == "new"
    assert DraftdError.code == "internal"


def test_an_errors_sentence_is_cut() -> None:
    short, long = "x" * messages.MAX_WORDS, "x" * (messages.MAX_WORDS + 1)
    assert messages.Error(code="internal", message=short).message == short
    cut = messages.Error(code="internal", message=long).message
    assert cut == short + " …"
    assert messages.Error(code="internal", message=cut).message == cut, "by whoever reads it not once more"
