"""The daemon's events as OpenAI's objects: whole answers and chunks of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from draftd.ipc.messages import Done, Logprob, Tokens

Kind = Literal["chat", "completion"]
OBJECTS = {  # of a whole answer, of a chunk
    "chat": ("chat.completion", "chat.completion.chunk"),
    "completion": ("text_completion", "text_completion"),
}
FINISH = {"stop": "stop", "length": "length", "deadline": "length", "cancelled": "stop"}


@dataclass(slots=True)
class Answer:
    """One answer of a request, as it grows."""

    text: list[str] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    done: Done | None = None

    def add(self, event: Tokens | Done) -> None:
        if isinstance(event, Done):
            self.done = event
        else:
            self.text.append(event.text)
            self.logprobs += event.logprobs


@dataclass(frozen=True, slots=True)
class Head:
    """What all objects of one request begin with."""

    kind: Kind
    id: str
    created: int  # Unix seconds
    model: str

    def whole(self) -> dict[str, Any]:
        return {"id": self.id, "object": OBJECTS[self.kind][0], "created": self.created, "model": self.model}

    def chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        start = self.whole() | {"object": OBJECTS[self.kind][1]}
        return start | {"choices": list(choices)}


def whole(head: Head, answers: Sequence[Answer]) -> dict[str, Any]:
    """The answer of a request that does not stream."""
    choices = []
    for index, answer in enumerate(answers):
        assert answer.done is not None
        text = "".join(answer.text)
        choice: dict[str, Any] = {"index": index, "finish_reason": FINISH[answer.done.finish_reason]}
        if head.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        choice["logprobs"] = logprobs(head.kind, answer.logprobs)
        choices.append(choice)
    done = [answer.done for answer in answers if answer.done is not None]
    return head.whole() | {"choices": choices, "usage": usage(done), "timings": timings(done)}


def opening(head: Head, index: int) -> dict[str, Any] | None:
    """A chat stream's first chunk: the role; a completion's has none."""
    if head.kind == "completion":
        return None
    delta = {"role": "assistant", "content": ""}
    return head.chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})


def piece(head: Head, index: int, event: Tokens, marks: bool) -> dict[str, Any]:
    """A chunk with text; with `marks` also which of its tokens the draft had proposed."""
    choice: dict[str, Any] = {
        "index": index,
        "logprobs": logprobs(head.kind, event.logprobs),
        "finish_reason": None,
    }
    if head.kind == "chat":
        choice["delta"] = {"content": event.text}
    else:
        choice["text"] = event.text
    told = {"tokens": event.tokens, "drafted": event.drafted, "lengths": event.lengths}
    return head.chunk(choice) | ({"draftd": told} if marks else {})


def closing(head: Head, index: int, done: Done) -> dict[str, Any]:
    """An answer's last chunk: why it ended, and its timings."""
    choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": FINISH[done.finish_reason]}
    choice["delta" if head.kind == "chat" else "text"] = {} if head.kind == "chat" else ""
    return head.chunk(choice) | {"timings": timings([done])}


def usage_chunk(head: Head, done: Sequence[Done]) -> dict[str, Any]:
    """The chunk after the last, only where it was asked for; its `choices` is empty as OpenAI's is."""
    return head.chunk() | {"usage": usage(done)}


def usage(done: Sequence[Done]) -> dict[str, Any]:
    prompt = done[0].usage.prompt_tokens if done else 0
    made = sum(each.usage.completion_tokens for each in done)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": done[0].usage.cached_tokens if done else 0},
    }


def timings(done: Sequence[Done]) -> dict[str, Any]:
    """What speculation did, under the names of llama.cpp's server, which some apps show."""
    stats = [each.stats for each in done]
    made = sum(each.usage.completion_tokens for each in done)
    return {
        "predicted_n": made,
        "predicted_per_second": stats[0].tokens_per_second if len(stats) == 1 else None,
        "prompt_n": done[0].usage.prompt_tokens - done[0].usage.cached_tokens if done else 0,
        "prompt_ms": 1000 * sum(each.prefill_seconds for each in stats),
        "first_token_ms": 1000 * min((each.time_to_first_token for each in stats), default=0.0),
        "draft_n": sum(each.drafted for each in stats),
        "draft_n_accepted": sum(each.accepted for each in stats),
        "seed": stats[0].seed if stats else None,
    }


def logprobs(kind: Kind, found: Sequence[Logprob]) -> dict[str, Any] | None:
    """OpenAI's two shapes of the same figures; None where nobody asked."""
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
    offsets, at = [], 0
    for each in found:
        offsets.append(at)
        at += len(each.text)
    return {
        "tokens": [each.text for each in found],
        "token_logprobs": [each.logprob for each in found],
        "top_logprobs": [{other.text: other.logprob for other in each.top} for each in found],
        "text_offset": offsets,
    }
