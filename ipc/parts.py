"""What the protocol's messages are made of: chat, tools, grammars, log-probabilities, figures."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Tokens32 = Annotated[int, Field(ge=0, lt=2**31)]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "deadline"]
AnyReason = FinishReason | str  # as an app reads it: a newer daemon may tell another


class Fields(BaseModel):
    """Unknown fields are tolerated: either side may be newer. No value is turned into another type."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


# ---- of what an app asks for

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Fields):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None  # a JSON schema; None: it takes none


class Tool(Fields):
    """What the model may call, as OpenAI defines it."""

    type: Literal["function"]
    function: Function


class FunctionNamed(Fields):
    name: FunctionName


class ToolChoice(Fields):
    """The one tool that is to be called."""

    type: Literal["function"]
    function: FunctionNamed


class FunctionCall(Fields):
    name: str
    arguments: str  # JSON


class ToolCall(Fields):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Fields):
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: list[ToolCall] | None = Field(default=None, fail_fast=True)  # what an assistant called
    tool_call_id: str | None = None  # of a tool: the call that this answers


class Grammar(Fields):
    kind: Literal["json_schema", "regex", "lark", "gbnf"]
    source: str | dict[str, Any]  # a schema may be a map; the others are text


class Resume(Fields):
    """What an app already has of an answer that another daemon began."""

    tokens: list[Tokens32] = Field(default=[], fail_fast=True)
    characters: int = Field(default=0, ge=0)  # of text
    finish_reason: FinishReason | None = None  # of one of several answers that has ended


# ---- of what it is told


class Alternative(Fields):
    token: int
    text: str  # what it adds to a text, or a control token's name
    bytes: list[int]
    logprob: float


class Logprob(Fields):
    token: int
    text: str
    bytes: list[int]
    logprob: float
    top: list[Alternative] = []  # the likeliest of this place, the best first


class ToolCallPart(Fields):
    """A piece of a call; the pieces of one have its index."""

    index: int
    id: str | None = None  # with the first piece
    name: str | None = None  # with the first piece
    arguments: str = ""  # more of the JSON


class Usage(Fields):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Stats(Fields):
    seed: int
    rounds: int  # target passes that gave this request tokens
    drafted: int
    accepted: int
    accepted_by_position: list[int]  # [0] counts how often a first drafted token was accepted
    sources: dict[str, int] = {}  # rounds by who drafted: none, suffix, model, chain
    drafted_by: list[str] = []  # the same round by round, in their order; of the first 4096
    draft_seconds: float
    verify_seconds: float  # target passes, prefill apart
    prefill_seconds: float
    overhead_seconds: float  # the rest of the rounds: sampling, scheduling, text
    time_to_first_token: float  # seconds from the daemon's receipt of the request
    tokens_per_second: float  # after the first token

    @classmethod
    def nothing(cls, seed: int) -> Stats:
        """Of a request that ended where there was no engine to count."""
        return cls(
            seed=seed,
            rounds=0,
            drafted=0,
            accepted=0,
            accepted_by_position=[],
            draft_seconds=0.0,
            verify_seconds=0.0,
            prefill_seconds=0.0,
            overhead_seconds=0.0,
            time_to_first_token=0.0,
            tokens_per_second=0.0,
        )


class AnswerEnd(Fields):
    finish_reason: AnyReason
    completion_tokens: int
    cached_tokens: int = 0
    stats: Stats
