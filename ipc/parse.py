"""A frame's map as the message that it is; what is wrong with it, in one sentence."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from draftd.ipc.errors import InvalidRequest
from draftd.ipc.explain import explain
from draftd.ipc.messages import CLIENT_TYPES, DAEMON_TYPES, MAX_ID, ClientMessage, DaemonMessage


def parse_client(body: dict[str, Any]) -> ClientMessage:
    """The typed message of a client's map; InvalidRequest names each wrong field."""
    message: ClientMessage = _parse(CLIENT_TYPES, body)
    return message


def parse_daemon(body: dict[str, Any]) -> DaemonMessage:
    """The typed message of a daemon's map; InvalidRequest names each wrong field."""
    message: DaemonMessage = _parse(DAEMON_TYPES, body)
    return message


def id_of(body: dict[str, Any]) -> str:
    """The id that an answer to a map should name, however wrong the rest of it is; "" if it has none."""
    value = body.get("id")
    return value if isinstance(value, str) and 1 <= len(value) <= MAX_ID else ""


def _parse(kinds: dict[str, Any], body: dict[str, Any]) -> Any:
    name = body.get("type")
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        what = "the message has no type" if name is None else f"unknown message type {str(name)[:40]!r}"
        raise InvalidRequest(f"{what}; the types are {', '.join(kinds)}")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise InvalidRequest(explain(error)) from None
