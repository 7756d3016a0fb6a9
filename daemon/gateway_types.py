"""OpenAI's request bodies, and the `generate` message that each of them means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from draftd.ipc.errors import InvalidRequest

Stop = str | Annotated[list[str], Field(max_length=16)]
# fail_fast: a fault takes a kilobyte to tell, so that a body of millions would take all memory
FIRST = Field(fail_fast=True)
Maps = Annotated[list[dict[str, Any]], FIRST]
TokenIds = Annotated[list[int], FIRST]


class Body(BaseModel):
    """Unknown fields are ignored: apps send what their favourite server knows."""

    model_config = ConfigDict(extra="ignore")


class Part(Body):
    type: str
    text: str = ""


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], FIRST] | None = None
    tool_calls: Maps | None = None
    tool_call_id: str | None = None


class StreamOptions(Body):
    include_usage: bool = False


class JsonSchema(Body):
    name: str = ""
    schema_: dict[str, Any] = Field(default={}, alias="schema")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class Sampling(Body):
    """What both kinds of request share; the defaults are OpenAI's."""

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0.0)
    top_p: float | None = Field(default=None, ge=0.0, le=1.0)  # 0: the likeliest token only
    n: int | None = Field(default=None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None  # checked by the daemon, which knows how many there may be
    # llama.cpp's and draftd's own
    top_k: int | None = Field(default=None, ge=-1)  # 0 and, as some servers have it, -1: all
    min_p: float | None = None
    repetition_penalty: float | None = None
    speculate: bool | str | None = None
    cache_prompt: bool | None = None
    mark_drafted: bool = False  # in a stream: tell of each token whether the draft had proposed it

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class Chat(Sampling):
    messages: list[Message] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    # the daemon checks them, and says what is wrong
    tools: Maps | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None


class Completion(Sampling):
    prompt: str | Annotated[list[str], FIRST] | TokenIds | Annotated[list[TokenIds], FIRST]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None


NAMES = (  # fields that are called the same on both sides
    *("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("logit_bias", "speculate", "cache_prompt", "n", "tools", "tool_choice", "parallel_tool_calls"),
)


def generate(body: Chat | Completion, default_tokens: int) -> dict[str, Any]:
    """The fields of a `generate` message; InvalidRequest where a field asks for what is not there."""
    found: dict[str, Any] = {
        name: value for name in NAMES if (value := getattr(body, name, None)) is not None
    }
    # An app that says nothing expects OpenAI's temperature of 1, not the daemon's greedy answer.
    found["temperature"] = 1.0 if body.temperature is None else body.temperature
    if body.top_p == 0.0:
        found |= {"top_p": 1.0, "temperature": 0.0}
    if body.top_k == -1:
        found["top_k"] = 0
    found["max_tokens"] = body.max_tokens or default_tokens
    if body.stop:
        found["stop"] = [body.stop] if isinstance(body.stop, str) else body.stop
    if body.seed is not None:
        found["seed"] = body.seed % 2**63
    if isinstance(body, Chat):
        return found | _chat(body)
    return found | _completion(body)


def _chat(body: Chat) -> dict[str, Any]:
    if body.functions or body.function_call:
        raise InvalidRequest("functions and function_call are no longer OpenAI's: send tools and tool_choice")
    found: dict[str, Any] = {"messages": [_message(message) for message in body.messages]}
    if body.max_completion_tokens:
        found["max_tokens"] = body.max_completion_tokens
    if body.logprobs:
        found["logprobs"] = body.top_logprobs or 0
    if (wanted := body.response_format) is not None and wanted.type != "text":
        schema = wanted.json_schema.schema_ if wanted.json_schema is not None else {"type": "object"}
        if wanted.type == "json_schema" and wanted.json_schema is None:
            raise InvalidRequest(
                "response_format is json_schema, but json_schema is missing: give its schema"
            )
        found["grammar"] = {"kind": "json_schema", "source": schema}
    return found


def _message(message: Message) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        if other := [part.type for part in content if part.type != "text"]:
            raise InvalidRequest(f"a message holds a part of type {other[0]}: this model reads text only")
        content = "".join(part.text for part in content)
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    found: dict[str, Any] = {"role": role, "content": content or ""}
    if message.tool_calls:
        found["tool_calls"] = message.tool_calls
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    return found


def _completion(body: Completion) -> dict[str, Any]:
    if body.echo:
        raise InvalidRequest("echo is not supported: the prompt is the app's own")
    if body.suffix:
        raise InvalidRequest("suffix is not supported: put the model's own infilling marks into the prompt")
    prompt: Any = body.prompt
    if isinstance(prompt, list) and not (prompt and isinstance(prompt[0], int)):
        if len(prompt) != 1:
            raise InvalidRequest(f"prompt is a list of {len(prompt)}: send one request for each")
        prompt = prompt[0]
    found: dict[str, Any] = {"tokens" if isinstance(prompt, list) else "prompt": prompt}
    if body.logprobs is not None:
        found["logprobs"] = body.logprobs
    return found
