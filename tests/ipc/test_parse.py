from __future__ import annotations

from typing import Any

import pytest

from draftd.ipc import messages
from draftd.ipc.errors import InvalidRequest
from draftd.ipc.parse import id_of, parse_client


def test_unknown_fields_are_ignored() -> None:
    assert parse_client({"type": "ping", "id": "1", "new": 1}) == messages.Ping(id="1")


@pytest.mark.parametrize("kind", ["pong", "", 3, ["ping"], {}])
def test_an_unknown_type_lists_the_types(kind: Any) -> None:
    with pytest.raises(
        InvalidRequest, match=r"unknown message type .*; the types are hello, generate, prefill, cancel, "
    ):
        parse_client({"type": kind, "id": "1"})


def test_no_type() -> None:
    with pytest.raises(InvalidRequest, match="the message has no type; the types are hello, "):
        parse_client({"id": "1"})


@pytest.mark.parametrize(
    ("body", "expected"),
    [({"id": "a"}, "a"), ({}, ""), ({"id": 5}, ""), ({"id": "x" * 65}, ""), ({"id": "x" * 64}, "x" * 64)],
)
def test_the_id_to_answer(body: dict[str, Any], expected: str) -> None:
    assert id_of(body) == expected
