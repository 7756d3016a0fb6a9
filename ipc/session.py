"""What both clients share, without a socket: request ids, frames in and out, each request's events."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from draftd.ipc import messages
from draftd.ipc.codec import check_depth, decode, encode
from draftd.ipc.errors import DraftdError, InvalidRequest, MalformedFrame, from_code
from draftd.ipc.explain import explain
from draftd.ipc.messages import Done, Message
from draftd.ipc.parse import parse_daemon
from draftd.ipc.parts import AnswerEnd, FunctionCall, Logprob, Stats, ToolCall, ToolCallPart, Usage

Event = messages.DaemonMessage
ALONE = 600.0  # seconds for which a prefill that nobody waits for keeps the lease, if it is not answered


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer."""

    text: str
    tokens: list[int]
    drafted: list[bool]  # by token: whether the draft had proposed it
    finish_reason: str
    stats: Stats
    logprobs: list[Logprob]  # by token, if asked for
    tool_calls: list[ToolCall]  # what it calls, if there were tools


@dataclass(frozen=True, slots=True)
class Reply(Answer):
    """What a request got: its answer, or of several the first, and all of them."""

    usage: Usage
    answers: list[Answer]  # `n` of them


class Session:
    """The requests open on one connection, and what has arrived for each."""

    def __init__(self) -> None:
        self._made = 0
        self._events: dict[str, deque[Event | DraftdError]] = {}
        self._alone = ""  # the request that goes on though nobody waits: a connection has one prefill
        self._until = 0.0  # monotonic seconds: as long as that is believed

    def open(self, kind: type[Message], fields: dict[str, Any]) -> tuple[str, bytes]:
        """A new request's id and its frame; InvalidRequest or MalformedFrame if its fields are wrong."""
        self._made += 1
        request = str(self._made)
        message = _build(kind, request, fields)
        check_depth(message)  # msgpack packs only so deep, and says no more than that
        frame = encode(message)
        decode(frame)  # of a frame that it can't read the daemon can't say whose request it was: it ends all
        self._events[request] = deque()
        return request, frame

    def close(self, request: str) -> None:
        """Forget a request; what still arrives for it is dropped."""
        self._events.pop(request, None)

    def let_go(self, request: str) -> None:
        """Forget a request that goes on: until its answer comes the daemon is to know that the app lives."""
        if not self._events.pop(request):
            self._alone, self._until = request, time.monotonic() + ALONE

    def lives(self) -> bool:
        """Is there anything for which the lease must be renewed?"""
        return bool(self._events) or (self._alone != "" and time.monotonic() < self._until)

    def unfinished(self) -> list[str]:
        """The ids of the open requests."""
        return list(self._events)

    def feed(self, frame: bytes) -> list[str]:
        """Give a frame's message to its request; the ids of the requests that got something.

        MalformedFrame: the other side does not speak the protocol, and the connection is of no more use.
        """
        try:
            body = decode(frame)
            if body.get("type") not in messages.DAEMON_TYPES:
                return []  # from a newer daemon
            message = parse_daemon(body)
        except (MalformedFrame, InvalidRequest) as error:
            raise MalformedFrame(f"the daemon sent what draftd does not read: {error}") from None
        if isinstance(message, messages.Error):
            return self._put(message.id, from_code(message.code, message.message, message.retry_after))
        return self._put(message.id, message)

    def fail(self, error: DraftdError) -> None:
        """End every open request with an error."""
        for events in list(self._events.values()):
            events.append(error)

    def take(self, request: str) -> Event | None:
        """The request's next event, None if it has yet to arrive; raises the error the request met."""
        events = self._events[request]
        if not events:
            return None
        event = events.popleft()
        if isinstance(event, DraftdError):
            raise event
        return event

    def _put(self, request: str, event: Event | DraftdError) -> list[str]:
        if not request and isinstance(event, DraftdError):
            self.fail(event)  # the daemon could not read whose request it was
            return self.unfinished()
        if request == self._alone:
            self._alone = ""
        if request not in self._events:
            return []  # cancelled, or given up
        self._events[request].append(event)
        return [request]


def check(kind: type[Message], fields: dict[str, Any]) -> dict[str, Any]:
    """A request's fields as they are at the call, whatever the app does to its lists while a stream goes on.

    InvalidRequest if they are wrong: what an app learns before anything is sent.
    """
    message = _build(kind, "0", fields)
    return {name: getattr(message, name) for name in fields}


def reply(parts: list[messages.Tokens], done: Done) -> Reply:
    """A stream's events as what `complete` gives."""
    ends: Sequence[AnswerEnd | Done] = done.answers or [done]
    answers = [
        _answer([part for part in parts if part.index == index], end) for index, end in enumerate(ends)
    ]
    first = {field.name: getattr(answers[0], field.name) for field in dataclasses.fields(Answer)}
    return Reply(**first, usage=done.usage, answers=answers)


def _answer(parts: list[messages.Tokens], end: AnswerEnd | Done) -> Answer:
    return Answer(
        text="".join(part.text for part in parts),
        tokens=[token for part in parts for token in part.tokens],
        drafted=[drafted for part in parts for drafted in part.drafted],
        finish_reason=end.finish_reason,
        stats=end.stats,
        logprobs=[each for part in parts for each in part.logprobs],
        tool_calls=_calls([each for part in parts for each in part.tool_calls]),
    )


def _calls(parts: list[ToolCallPart]) -> list[ToolCall]:
    calls: dict[int, ToolCall] = {}
    for part in parts:
        if part.name is not None:
            function = FunctionCall(name=part.name, arguments=part.arguments)
            calls[part.index] = ToolCall(id=part.id or "", function=function)
        elif part.index in calls:
            call = calls[part.index]
            more = {"arguments": call.function.arguments + part.arguments}
            calls[part.index] = call.model_copy(update={"function": call.function.model_copy(update=more)})
    return list(calls.values())


def _build(kind: type[Message], request: str, fields: dict[str, Any]) -> Message:
    if fields and (
        unknown := sorted(fields.keys() - kind.model_fields.keys() | fields.keys() & {"id", "type"})
    ):
        names = ", ".join(name for name in kind.model_fields if name not in ("id", "type"))
        raise InvalidRequest(f"unknown parameter {', '.join(unknown)}; there are {names}")
    try:
        return kind(id=request, **fields)
    except ValidationError as error:
        raise InvalidRequest(explain(error)) from None


def cancel(request: str) -> bytes:
    """The frame that cancels a request."""
    return encode(messages.Cancel(id=request))


def credit(request: str, messages_more: int) -> bytes:
    """The frame that lets the daemon send so many `tokens` messages more."""
    return encode(messages.Credit(id=request, credit=messages_more))
