"""The model `draftd` of the llm command: whatever pair the local daemon serves, blocking and async."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import llm
from llm.parts import TextPart, ToolCallPart, ToolResultPart
from pydantic import Field

from draftd.ipc import AsyncClient, Client, DraftdError, Reply, Tokens
from draftd.ipc.session import reply

NAME = "llm"  # requests of one name may draft from each other's text
MAX_TOKENS = 4096  # of an answer whose length nobody named; the context may end it before


class Options(llm.Options):
    """Each is a field of the daemon's `generate`; what is not given is left to the daemon."""

    max_tokens: int | None = Field(default=None, description=f"The longest answer; {MAX_TOKENS} by default.")
    temperature: float | None = Field(default=None, description="0, the default, takes the likeliest token.")
    top_k: int | None = Field(default=None, description="Choose among so many of the likeliest tokens.")
    top_p: float | None = Field(default=None, description="Choose among those that make up this probability.")
    min_p: float | None = Field(default=None, description="Leave out those below this share of the first.")
    seed: int | None = Field(default=None, description="The same seed gives the same answer.")
    stop: str | None = Field(default=None, description="End the answer before this text.")
    repetition_penalty: float | None = Field(default=None, description="Above 1: against what was said.")
    presence_penalty: float | None = Field(default=None, description="Against tokens that were said.")
    frequency_penalty: float | None = Field(default=None, description="The more, the oftener they were.")
    speculate: str | None = Field(
        default=None, description="true, false, auto, off, or who drafts how far: suffix:8, model:4, chain:6."
    )
    tool_choice: str | None = Field(
        default=None, description="With tools: auto, none, required, or the one to call."
    )


class Draftd(llm.Model):
    model_id = "draftd"
    can_stream = True
    supports_schema = True
    supports_tools = True
    Options = Options  # type: ignore[assignment]  # as llm itself has it

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        parts: list[Tokens] = []
        try:
            with Client(name=NAME) as client:
                for event in client.generate(**asked(prompt)):
                    if isinstance(event, Tokens):
                        parts.append(event)
                        yield event.text
                    else:
                        tell(response, reply(parts, event))
        except DraftdError as error:
            raise llm.ModelError(error.message) from error


class AsyncDraftd(llm.AsyncModel):
    model_id = "draftd"
    can_stream = True
    supports_schema = True
    supports_tools = True
    Options = Options  # type: ignore[assignment]  # as llm itself has it

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
    ) -> AsyncGenerator[str, None]:
        parts: list[Tokens] = []
        try:
            async with AsyncClient(name=NAME) as client, aclosing(client.generate(**asked(prompt))) as events:
                async for event in events:
                    if isinstance(event, Tokens):
                        parts.append(event)
                        yield event.text
                    else:
                        tell(response, reply(parts, event))
        except DraftdError as error:
            raise llm.ModelError(error.message) from error


@llm.hookimpl
def register_models(register: Any) -> None:
    register(Draftd(), AsyncDraftd())


def asked(prompt: llm.Prompt) -> dict[str, Any]:
    """The fields of the `generate` that a prompt, with the conversation before it, stands for."""
    given = {"max_tokens": MAX_TOKENS} | prompt.options.model_dump(exclude_none=True)
    if "stop" in given:
        given["stop"] = [given["stop"]]
    if (policy := given.get("speculate")) in ("true", "false"):  # llm's options are texts
        given["speculate"] = policy == "true"
    if (choice := given.get("tool_choice", "auto")) not in ("auto", "none", "required"):
        given["tool_choice"] = {"type": "function", "function": {"name": choice}}
    if prompt.schema:
        given["grammar"] = {"kind": "json_schema", "source": prompt.schema}
    if prompt.tools:
        given["tools"] = [tool(each) for each in prompt.tools]
    return given | {"messages": [told for each in prompt.messages for told in messages(each)]}


def tool(given: llm.Tool | llm.ServerSideTool) -> dict[str, Any]:
    """A tool as the daemon takes it; llm itself lets no tool of a provider's server come here."""
    function = {"name": given.name, "description": given.description, "parameters": given.input_schema}
    return {"type": "function", "function": function}


def messages(given: llm.Message) -> Iterator[dict[str, Any]]:
    """A message as the daemon takes it, each result of a tool as one of its own; thoughts are left out."""
    results = [part for part in given.parts if isinstance(part, ToolResultPart)]
    for part in results:
        yield {"role": "tool", "content": part.output, "tool_call_id": part.tool_call_id}
    if results:
        return
    said = {
        "role": given.role,
        "content": "".join(part.text for part in given.parts if isinstance(part, TextPart)),
    }
    calls = [
        {
            "id": part.tool_call_id or "",
            "function": {"name": part.name, "arguments": json.dumps(part.arguments)},
        }
        for part in given.parts
        if isinstance(part, ToolCallPart)
    ]
    yield said | ({"tool_calls": calls} if calls else {})


def tell(response: llm.Response | llm.AsyncResponse, answer: Reply) -> None:
    """What llm keeps of an answer: its calls, if none was cut off, its size, and what drafting did."""
    if answer.finish_reason == "tool_calls":
        for call in answer.tool_calls:
            arguments = json.loads(call.function.arguments)
            response.add_tool_call(llm.ToolCall(call.function.name, arguments, call.id))
    usage, stats = answer.usage, answer.stats
    response.set_usage(
        input=usage.prompt_tokens,
        output=usage.completion_tokens,
        details={"cached": usage.cached_tokens, "drafted": stats.drafted, "accepted": stats.accepted},
    )
    response.response_json = {"finish_reason": answer.finish_reason, "stats": stats.model_dump()}
