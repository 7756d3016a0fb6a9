"""The daemon's events as OpenAI's objects: whole answers and chunks of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from draftd.ipc import Reply
from draftd.ipc.messages import Done, Tokens
from draftd.ipc.parts import Alternative, AnswerEnd, Logprob, Stats, ToolCall, ToolCallPart, Usage

Kind = Literal["chat", "completion"]
OBJECTS = {  # of a whole answer, of a chunk
    "chat": ("chat.completion", "chat.completion.chunk"),
    "completion": ("text_completion", "text_completion"),
}
FINISH = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "deadline": "length",
    "cancelled": "stop",
}


@dataclass(frozen=True, slots=True)
class Head:
    """What all objects of one request begin with."""

    kind: Kind
    id: str
    created: int  # Unix seconds
    model: str
    usage: bool = False  # the stream ends with the usage; then every chunk before has none

    def whole(self) -> dict[str, Any]:
        return {"id": self.id, "object": OBJECTS[self.kind][0], "created": self.created, "model": self.model}

    def chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        start = self.whole() | {"object": OBJECTS[self.kind][1], "choices": list(choices)}
        return start | ({"usage": None} if self.usage else {})


def whole(head: Head, reply: Reply) -> dict[str, Any]:
    """The answers of a request that does not stream."""
    choices = []
    for index, answer in enumerate(reply.answers):
        choice: dict[str, Any] = {"index": index, "finish_reason": _finish(answer.finish_reason)}
        if head.kind == "chat":
            choice["message"] = _message(answer.text, answer.tool_calls)
        else:
            choice["text"] = answer.text
        choice["logprobs"] = logprobs(head.kind, answer.logprobs)
        choices.append(choice)
    told = timings([(answer.stats, len(answer.tokens)) for answer in reply.answers], reply.usage)
    return head.whole() | {"choices": choices, "usage": usage(reply.usage), "timings": told}


def _message(text: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """An answer that only calls tools has no content, not an empty one."""
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
    return message | ({"tool_calls": [call.model_dump() for call in calls]} if calls else {})


def opening(head: Head, index: int) -> dict[str, Any] | None:
    """A chat stream's first chunk: the role; a completion's has none."""
    if head.kind == "completion":
        return None
    delta = {"role": "assistant", "content": ""}
    return head.chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})


def piece(head: Head, event: Tokens, marks: bool, begin: int = 0) -> dict[str, Any]:
    """A chunk with text or calls; with `marks` also which of its tokens the draft had proposed.

    `begin`: characters of the tokens in this answer's earlier chunks.
    """
    choice: dict[str, Any] = {
        "index": event.index,
        "logprobs": logprobs(head.kind, event.logprobs, begin),
        "finish_reason": None,
    }
    if head.kind == "completion":
        choice["text"] = event.text
    elif event.tool_calls:
        choice["delta"] = {"content": event.text} if event.text else {}
        choice["delta"]["tool_calls"] = calls(event.tool_calls)
    else:
        choice["delta"] = {"content": event.text}
    told = {"tokens": event.tokens, "drafted": event.drafted, "lengths": event.lengths}
    return head.chunk(choice) | ({"draftd": told} if marks else {})


def calls(parts: Sequence[ToolCallPart]) -> list[dict[str, Any]]:
    """A chunk's pieces of calls, one entry a call: apps that add up chunks take no second one."""
    found: dict[int, dict[str, Any]] = {}
    for part in parts:
        entry = found.setdefault(part.index, {"index": part.index, "function": {"arguments": ""}})
        if part.name is not None:
            entry |= {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}}
        entry["function"]["arguments"] += part.arguments
    return list(found.values())


def _finish(reason: str) -> str:
    """OpenAI's word for why an answer ended; for a reason of a newer daemon's, stop."""
    return FINISH.get(reason, "stop")


def closing(head: Head, index: int, end: AnswerEnd | Done, usage: Usage) -> dict[str, Any]:
    """An answer's last chunk: why it ended, and its timings."""
    choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": _finish(end.finish_reason)}
    choice["delta" if head.kind == "chat" else "text"] = {} if head.kind == "chat" else ""
    made = end.completion_tokens if isinstance(end, AnswerEnd) else usage.completion_tokens
    return head.chunk(choice) | {"timings": timings([(end.stats, made)], usage)}


def usage_chunk(head: Head, found: Usage) -> dict[str, Any]:
    """The chunk after the last, only where it was asked for; its `choices` is empty as OpenAI's is."""
    return head.chunk() | {"usage": usage(found)}


def usage(found: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "total_tokens": found.prompt_tokens + found.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": found.cached_tokens},
    }


def timings(made: Sequence[tuple[Stats, int]], usage: Usage) -> dict[str, Any]:
    """What speculation did, from each answer's books and tokens, as llama.cpp's server calls it."""
    stats = [each for each, _ in made]
    return {
        "predicted_n": sum(tokens for _, tokens in made),
        "predicted_per_second": stats[0].tokens_per_second if len(stats) == 1 else None,
        "prompt_n": usage.prompt_tokens - usage.cached_tokens,
        "prompt_ms": 1000 * sum(each.prefill_seconds for each in stats),
        "first_token_ms": 1000 * min(each.time_to_first_token for each in stats),
        "draft_n": sum(each.drafted for each in stats),
        "draft_n_accepted": sum(each.accepted for each in stats),
        "seed": stats[0].seed,
    }


def logprobs(kind: Kind, found: Sequence[Logprob], begin: int = 0) -> dict[str, Any] | None:
    """OpenAI's two shapes of the same figures, the old with offsets from `begin`; None where nobody asked."""
    if not found:
        return None
    if kind == "chat":
        return {
            "content": [
                {
                    "token": each.text,
                    "logprob": each.logprob,
                    "bytes": each.bytes,
                    "top_logprobs": [
                        {"token": other.text, "logprob": other.logprob, "bytes": other.bytes}
                        for other in each.top
                    ],
                }
                for each in found
            ]
        }
    offsets, at = [], begin
    for each in found:
        offsets.append(at)
        at += len(each.text)
    return {
        "tokens": [_key(each) for each in found],
        "token_logprobs": [each.logprob for each in found],
        "top_logprobs": [_by_key(each.top) for each in found],
        "text_offset": offsets,
    }


def _by_key(top: Sequence[Alternative]) -> dict[str, float]:
    """The alternatives' log-probabilities; of two of one text the likelier's, which comes first."""
    found: dict[str, float] = {}
    for each in top:
        found.setdefault(_key(each), each.logprob)
    return found


def _key(token: Logprob | Alternative) -> str:
    """A token's text, or as OpenAI writes it the bytes of one that is no text by itself."""
    try:
        bytes(token.bytes).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
    return token.text
