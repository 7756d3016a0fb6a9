"""A chat engine of OpenVoiceOS whose answers come from the local daemon, sentence by sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from ovos_plugin_manager.templates.agents import AgentMessage, ChatEngine, MessageRole

from draftd.ipc import Client, Tokens
from draftd.ipc.messages import Generate
from ovos_draftd.sentences import sentences, spoken

# What a template puts around turns. A model that spells one out has begun a turn that nobody asked for.
MARKS = [
    *("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|end|>", "<|eot_id|>", "<|start_header_id|>"),
    *("<end_of_turn>", "<start_of_turn>", "</s>", "<|user|>", "<|assistant|>"),
]
STOPS = 16  # that a request may have: the user's own, and as many marks as there is room for
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
# Fields of `generate` that are not a configuration's.
OWN = {
    "messages",
    "prompt",
    "tokens",
    "id",
    "type",
    "tools",
    "n",
    "beams",
    "credit",
    "resume",
}
Messages = Sequence[AgentMessage]


class DraftdChatEngine(ChatEngine):  # type: ignore[misc]
    """`config`: `endpoint`, `system_prompt`, and any field of the daemon's `generate`, as `max_tokens`.

    The language and the units of a session are the persona's business: its prompt names them.
    """

    supports_tools = True

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__(config)
        self.client = Client(self.config.get("endpoint"), name="ovos")  # connects with the first call

    def continue_chat(
        self,
        messages: Messages,
        session_id: str = "default",
        lang: str | None = None,
        units: str | None = None,
        tools: Any = None,
    ) -> AgentMessage:
        """The whole answer, with what it calls of the tools; draftd's error if the daemon has none."""
        given = self._options() | ({"tools": definitions(tools)} if tools else {})
        reply = self.client.complete(messages=self._messages(messages), **given)
        text = "".join(spoken([reply.text])).strip()
        if reply.finish_reason != "tool_calls":
            return AgentMessage(role=MessageRole.ASSISTANT, content=text)
        from ovos_plugin_manager.templates.agents import ToolCall  # as new as the tools themselves

        calls = [
            ToolCall(each.id, each.function.name, json.loads(each.function.arguments))
            for each in reply.tool_calls
        ]
        return AgentMessage(role=MessageRole.ASSISTANT, content=text, tool_calls=calls)

    def stream_tokens(
        self,
        messages: Messages,
        session_id: str = "default",
        lang: str | None = None,
        units: str | None = None,
    ) -> Iterator[str]:
        """Pieces of the answer as they come; who stops reading cancels it."""
        return spoken(self._texts(messages))

    def stream_sentences(
        self,
        messages: Messages,
        session_id: str = "default",
        lang: str | None = None,
        units: str | None = None,
    ) -> Iterator[str]:
        """Whole sentences, each as soon as it is known to have ended, the last one in any case."""
        return sentences(self.stream_tokens(messages, session_id, lang, units))

    def stream_chat(
        self,
        messages: Messages,
        session_id: str = "default",
        lang: str | None = None,
        units: str | None = None,
    ) -> Iterator[AgentMessage]:
        """Sentences as messages: what the plugin manager asked for before it had the two above."""
        for sentence in self.stream_sentences(messages, session_id, lang, units):
            yield AgentMessage(role=MessageRole.ASSISTANT, content=sentence)

    def heard(self, messages: Messages, wait: bool = False) -> None:
        """Have the daemon compute what was said so far, while it is still being said.

        `messages`: as for an answer, the last of them the partial transcript. A later call replaces an
        earlier one. `wait`: until it is computed; else it returns at once.
        """
        self.client.prefill(messages=self._messages(messages), wait=wait)

    def shutdown(self) -> None:
        self.client.close()

    def _texts(self, messages: Messages) -> Iterator[str]:
        given = self._options()
        with closing(self.client.generate(messages=self._messages(messages), **given)) as events:
            yield from (event.text for event in events if isinstance(event, Tokens))

    def _options(self) -> dict[str, Any]:
        known = Generate.model_fields.keys() - OWN
        given = {key: value for key, value in self.config.items() if key in known}
        own = given.get("stop") or []
        stops = [own] if isinstance(own, str) else own
        return given | {"stop": [*stops, *MARKS[: max(0, STOPS - len(stops))]]}

    def _messages(self, messages: Messages) -> list[dict[str, Any]]:
        found = [message(each) for each in messages]
        if (prompt := self.config.get("system_prompt")) and all(each["role"] != "system" for each in found):
            found.insert(0, {"role": "system", "content": prompt})
        return found


def message(given: AgentMessage) -> dict[str, Any]:
    """A message as the daemon takes it."""
    found: dict[str, Any] = {"role": ROLES[str(given.role.value)], "content": given.content}
    if calls := getattr(given, "tool_calls", None):
        found["tool_calls"] = [
            {"id": each.id, "function": {"name": each.name, "arguments": json.dumps(each.arguments)}}
            for each in calls
        ]
    if (answers := getattr(given, "tool_call_id", None)) is not None:
        found["tool_call_id"] = answers
    return found


def definitions(tools: Any) -> list[dict[str, Any]]:
    """Tools in any of the forms that OpenVoiceOS has for them, as OpenAI defines them."""
    from ovos_plugin_manager.templates.agent_tools import ToolBox

    return list(ToolBox.normalize_tools(tools))
