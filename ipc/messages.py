"""Every message of the protocol as a type, of the parts in parts.py.

ipc/PROTOCOL.md is the authority, and a test holds this to it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from draftd.ipc.parts import (
    AnswerEnd,
    AnyReason,
    ChatMessage,
    Fields,
    Grammar,
    Logprob,
    Resume,
    Stats,
    Tokens32,
    Tool,
    ToolCallPart,
    ToolChoice,
    Usage,
)
from draftd.ipc.version import VERSION

MAX_ID = 64  # characters of a request id
MAX_BIASES = 1024  # entries of a `logit_bias`
MAX_WORDS = 1000  # characters of an error's sentence, which may quote what an app sent or a library said
SPECULATE = re.compile(r"auto|off|(suffix|model|chain):[0-9]{1,2}")
RequestId = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
TokenText = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]  # a token id as a map's key
# added to a logit: the least bans the token, and 32 bits hold the sum
Bias = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
# seconds that the models stay in memory afterwards; None: the daemon's setting, 0: none, -1: for ever
KeepAlive = Annotated[float | None, Field(default=None, ge=-1.0, allow_inf_nan=False)]
ModelName = Annotated[str | None, Field(default=None, max_length=128)]


class Message(Fields):
    """What every frame carries besides its `type`: the request it belongs to."""

    id: RequestId


# ---- client to daemon


class Hello(Message):
    type: Literal["hello"] = "hello"
    versions: list[Annotated[str, Field(min_length=1, max_length=16)]] = Field(
        default=[VERSION], max_length=16
    )
    client: str = Field(default="", max_length=128)
    lease_ms: int | None = Field(default=None, ge=100, le=600_000)  # None: none


class Prompt(Message):
    """What a request is about, whether it asks for an answer or only says that one will."""

    # fail_fast: a list of a million faults helps nobody
    messages: list[ChatMessage] | None = Field(default=None, fail_fast=True)
    prompt: str | None = None
    tokens: list[Tokens32] | None = Field(default=None, fail_fast=True)
    model: ModelName = None  # the pair to answer with; None: whichever the daemon serves
    tools: list[Tool] = Field(default=[], max_length=128)  # the template tells the model of them
    # the app's name for what is kept on disk of the computed prompt and answer; None: nothing is
    conversation: str | None = Field(default=None, max_length=128)

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        given = [name for name in ("messages", "prompt", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of messages, prompt, tokens (given: {given or 'none'})")
        if self.messages is not None and not self.messages:
            raise ValueError("messages is empty: give at least one")
        if self.tokens is not None and not self.tokens:
            raise ValueError("tokens is empty: give at least one")
        if self.tools and self.messages is None:
            raise ValueError("tools go with messages: a prompt or tokens say themselves what may be called")
        if len({tool.function.name for tool in self.tools}) < len(self.tools):
            raise ValueError("tools has two functions of one name: rename one")
        return self


class Generate(Prompt):
    type: Literal["generate"] = "generate"
    priority: Literal["interactive", "background"] = "interactive"
    max_tokens: int = Field(default=256, ge=1, le=1_000_000)
    temperature: float = Field(default=0.0, ge=0.0, le=100.0, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, allow_inf_nan=False)
    min_p: float = Field(default=0.0, ge=0.0, le=1.0, allow_inf_nan=False)
    repetition_penalty: float = Field(default=1.0, gt=0.0, le=10.0, allow_inf_nan=False)
    presence_penalty: float = Field(default=0.0, ge=-10.0, le=10.0, allow_inf_nan=False)
    frequency_penalty: float = Field(default=0.0, ge=-10.0, le=10.0, allow_inf_nan=False)
    logit_bias: dict[TokenText, Bias] = Field(default={}, max_length=MAX_BIASES)
    seed: int | None = Field(default=None, ge=0, lt=2**64)
    n: int = Field(default=1, ge=1, le=128)  # answers
    beams: int = Field(default=1, ge=1, le=64)  # above 1: the best answer a search of that width finds
    stop: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(default=[], max_length=16)
    grammar: Grammar | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice = "auto"
    parallel_tool_calls: bool = True  # several in one answer, where the model's template has that
    stop_tokens: list[Tokens32] = Field(default=[], max_length=64)
    # tell each token's log-probability, and those of so many likeliest
    logprobs: int | None = Field(default=None, ge=0, le=20)
    ignore_eos: bool = False  # go on past the model's own end
    # auto, off, or for benchmarks a source and how many tokens it drafts a round
    speculate: bool | str = True
    # how drafts are checked: against the seed's own answer, or by dice, blocks or tokens at a time
    verify: Literal["coupled", "rejection", "rejection-token"] = "coupled"
    keep_alive: KeepAlive = None
    cache_prompt: bool = True  # start from what is already computed or was answered
    deadline_ms: int | None = Field(default=None, ge=1, le=86_400_000)  # from the daemon's receipt
    credit: int | None = Field(default=None, ge=1, le=1_000_000)  # `tokens` messages; None: no limit
    # of several answers: one for each, in their order
    resume: Resume | Annotated[list[Resume], Field(fail_fast=True)] | None = None

    @field_validator("logit_bias", mode="before")  # before each of too many is found wrong
    @classmethod
    def _few_biases(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_BIASES:
            raise ValueError(f"should have at most {MAX_BIASES} entries")
        return value

    @field_validator("speculate", mode="before")  # before, or each of the two types has its own complaint
    @classmethod
    def _known_policy(cls, value: Any) -> Any:
        if isinstance(value, bool) or (isinstance(value, str) and SPECULATE.fullmatch(value)):
            return value
        raise ValueError("should be true, false, auto, off, or suffix:N, model:N or chain:N with N up to 99")

    @model_validator(mode="after")
    def _search_alone(self) -> Generate:
        if self.beams > 1:
            against = {
                "temperature": self.temperature > 0,
                "n": self.n > 1,
                "grammar": self.grammar is not None,
                "tools": bool(self.tools),
            }
            if wrong := [name for name, given in against.items() if given]:
                raise ValueError(f"beams does not go with {', '.join(wrong)}: leave one of them out")
        return self

    @model_validator(mode="after")
    def _tools_there(self) -> Generate:
        names = {tool.function.name for tool in self.tools}
        if isinstance(self.tool_choice, ToolChoice) and self.tool_choice.function.name not in names:
            raise ValueError(
                f"tool_choice names {self.tool_choice.function.name}, which is not among the tools"
            )
        if self.tool_choice == "required" and not self.tools:
            raise ValueError("tool_choice is required, but there are no tools: give some")
        if self.tools and self.tool_choice == "auto" and self.grammar and self.grammar.kind != "json_schema":
            raise ValueError(f"tools do not go with a {self.grammar.kind} grammar: use a json_schema")
        return self

    @model_validator(mode="after")
    def _each_answer(self) -> Generate:
        if self.resume is not None and len(self.had()) != self.n:
            count = len(self.had())
            raise ValueError(f"resume is of {count} answers, n is {self.n}: give a list with one for each")
        return self

    def had(self) -> list[Resume]:
        """What the app already has, by answer."""
        if self.resume is None:
            return [Resume() for _ in range(self.n)]
        return self.resume if isinstance(self.resume, list) else [self.resume]


class Prefill(Prompt):
    type: Literal["prefill"] = "prefill"


class Cancel(Message):
    type: Literal["cancel"] = "cancel"  # id: the request to cancel


class Credit(Message):
    type: Literal["credit"] = "credit"  # id: the request whose app will take more
    credit: int = Field(ge=1, le=1_000_000)


class Load(Message):
    type: Literal["load"] = "load"  # answered by a status once the models are in memory
    model: ModelName = None
    keep_alive: KeepAlive = None


class Unload(Message):
    type: Literal["unload"] = "unload"  # answered by a status once they are not
    model: ModelName = None


class GetStatus(Message):
    type: Literal["status"] = "status"
    full: bool = False  # also active, counters, limits and memory


class Ping(Message):
    type: Literal["ping"] = "ping"


class Clear(Message):
    type: Literal["clear"] = "clear"
    learnt: bool = False  # also what was learnt of the pairs: acceptance and costs


ClientMessage = Hello | Generate | Prefill | Cancel | Credit | Load | Unload | GetStatus | Ping | Clear

# ---- daemon to client


class Welcome(Message):
    type: Literal["welcome"] = "welcome"
    version: str
    daemon: str
    capabilities: list[str] = Field(default=[])
    lease_ms: int | None = None  # what `hello` asked for


class Accepted(Message):
    type: Literal["accepted"] = "accepted"
    seed: int


class Tokens(Message):
    type: Literal["tokens"] = "tokens"
    index: int = 0  # which of `n` answers
    text: str
    tokens: list[int]
    drafted: list[bool]  # whether the draft had proposed it, by token
    lengths: list[int] = Field(default=[])  # characters of `text` that came with each token; empty: not told
    logprobs: list[Logprob] = Field(default=[])  # by token, if the request asked
    tool_calls: list[ToolCallPart] = Field(default=[])  # what these tokens released of calls, behind the text
    finish_reason: AnyReason | None = None  # where n is above 1: the answer ends here

    @property
    def characters(self) -> int:
        """How many it brings, of text, names and arguments: what `resume` counts."""
        return len(self.text) + sum(len(part.name or "") + len(part.arguments) for part in self.tool_calls)


class Done(Message):
    type: Literal["done"] = "done"
    finish_reason: AnyReason  # of the first answer, as `stats` is
    usage: Usage
    stats: Stats
    answers: list[AnswerEnd] = Field(default=[])  # by index


class Prefilled(Message):
    type: Literal["prefilled"] = "prefilled"
    state: Literal["complete", "superseded", "cancelled"] | str  # or a newer daemon's
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of these, already computed
    computed_tokens: int = 0  # computed now


class Error(Message):
    type: Literal["error"] = "error"
    id: str = ""  # empty when the frame named none
    code: str
    message: str
    retry_after: float | None = None  # seconds, with `overloaded`

    @field_validator("message")
    @classmethod
    def _short(cls, words: str) -> str:
        """Cut to MAX_WORDS: with what it quotes it could be too long for a frame."""
        return words if len(words) <= MAX_WORDS else words[:MAX_WORDS] + " …"


class Status(Message):
    type: Literal["status"] = "status"
    state: Literal["loading", "ready", "restarting", "unloaded", "failed"] | str  # or a newer daemon's
    detail: str = ""  # "loading 43 %", or why it failed
    progress: float = 0.0  # 0 to 1
    pair: str = ""
    engine: dict[str, Any] = Field(default={})  # of the loaded pair: backend, dtype, threads, pair report
    requests: dict[str, int] = Field(default={})  # running, waiting, finished
    governor: dict[str, Any] = Field(default={})  # rung, does, why, threads, others_use_cores
    learnt: dict[str, Any] = Field(default={})  # after an answer: acceptance, target_ms, draft_ms, choices
    uptime_seconds: float = 0.0
    # what follows is for those that ask for a full status
    active: list[dict[str, Any]] = Field(default=[])  # each open request: who asks, how far, how fast
    counters: dict[str, Any] = Field(default={})  # since the front's start: outcomes, tokens, drafts, seconds
    limits: dict[str, int] = Field(default={})  # slots, queue
    memory: dict[str, int] = Field(default={})  # resident bytes of front and engine


class Pong(Message):
    type: Literal["pong"] = "pong"


class Cleared(Message):
    type: Literal["cleared"] = "cleared"
    files: int  # removed from the state directory


DaemonMessage = Welcome | Accepted | Tokens | Done | Prefilled | Error | Status | Pong | Cleared

CLIENT_TYPES = {kind.model_fields["type"].default: kind for kind in get_args(ClientMessage)}
DAEMON_TYPES = {kind.model_fields["type"].default: kind for kind in get_args(DaemonMessage)}
