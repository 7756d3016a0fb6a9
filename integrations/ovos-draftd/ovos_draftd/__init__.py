"""A chat engine of OpenVoiceOS whose answers come from the local daemon, sentence by sentence."""

from __future__ import annotations

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
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
# Fields of `generate` that are not a configuration's.
OWN = {
    "messages",
    "prompt",
    "tokens",
    "id",
    "type",
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

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__(config)
        self.client = Client(self.config.get("endpoint"), name="ovos")  # connects with the first call

    def continue_chat(
        self,
        messages: Messages,
        session_id: str = "default",
        lang: str | None = None,
        units: str | None = None,
        tools: object = None,
    ) -> AgentMessage:
        """The whole answer; draftd's error if the daemon has none."""
        text = "".join(self.stream_tokens(messages, session_id, lang, units))
        return AgentMessage(role=MessageRole.ASSISTANT, content=text.strip())

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
        given = {
            key: value
            for key, value in self.config.items()
            if key in Generate.model_fields and key not in OWN
        }
        given["stop"] = [*MARKS, *given.get("stop", [])]
        with closing(self.client.generate(messages=self._messages(messages), **given)) as events:
            yield from (event.text for event in events if isinstance(event, Tokens))

    def _messages(self, messages: Messages) -> list[dict[str, str]]:
        found = [{"role": ROLES[str(each.role.value)], "content": each.content} for each in messages]
        if (prompt := self.config.get("system_prompt")) and all(each["role"] != "system" for each in found):
            found.insert(0, {"role": "system", "content": prompt})
        return found
