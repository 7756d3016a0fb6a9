"""The model `draftd` of the llm command: whatever pair the local daemon serves, blocking and async."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import llm
from llm.parts import TextPart
from pydantic import Field

from draftd.ipc import AsyncClient, Client, Done, DraftdError, Tokens

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
        default=None, description="auto, off, or who drafts how far: suffix:8, model:4, chain:6."
    )


class Draftd(llm.Model):
    model_id = "draftd"
    can_stream = True
    supports_schema = True
    Options = Options  # type: ignore[assignment]  # as llm itself has it

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        try:
            with Client(name=NAME) as client:
                for event in client.generate(**asked(prompt)):
                    if isinstance(event, Tokens):
                        yield event.text
                    else:
                        tell(response, event)
        except DraftdError as error:
            raise llm.ModelError(error.message) from error


class AsyncDraftd(llm.AsyncModel):
    model_id = "draftd"
    can_stream = True
    supports_schema = True
    Options = Options  # type: ignore[assignment]  # as llm itself has it

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
    ) -> AsyncGenerator[str, None]:
        try:
            async with AsyncClient(name=NAME) as client, aclosing(client.generate(**asked(prompt))) as events:
                async for event in events:
                    if isinstance(event, Tokens):
                        yield event.text
                    else:
                        tell(response, event)
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
    if prompt.schema:
        given["grammar"] = {"kind": "json_schema", "source": prompt.schema}
    return given | {"messages": [message(each) for each in prompt.messages]}


def message(given: llm.Message) -> dict[str, str]:
    """A message as the daemon takes it: its text; what was only thought is left out."""
    return {
        "role": given.role,
        "content": "".join(part.text for part in given.parts if isinstance(part, TextPart)),
    }


def tell(response: llm.Response | llm.AsyncResponse, done: Done) -> None:
    """What llm logs of an answer: its size, and what drafting did."""
    stats = done.stats
    response.set_usage(
        input=done.usage.prompt_tokens,
        output=done.usage.completion_tokens,
        details={"cached": done.usage.cached_tokens, "drafted": stats.drafted, "accepted": stats.accepted},
    )
    response.response_json = {"finish_reason": done.finish_reason, "stats": stats.model_dump()}
