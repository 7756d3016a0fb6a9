from __future__ import annotations

import contextlib
import struct
import time
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftd.ipc import codec, messages, parts
from draftd.ipc.errors import InvalidRequest, MalformedFrame
from draftd.ipc.parse import parse_client, parse_daemon
from draftd.ipc.session import Session
from tests.ipc import scripted

ALL: list[messages.Message] = [
    messages.Hello(id="1", client="test"),
    messages.Generate(id="2", messages=[parts.ChatMessage(role="user", content="Grüße")], seed=2**64 - 1),
    messages.Generate(id="2", tokens=[0, 2**31 - 1], stop=["\n"]),
    messages.Cancel(id="3"),
    messages.Clear(id="3", learnt=True),
    messages.Cleared(id="3", files=2),
    messages.Prefill(id="3", prompt="to be or n"),
    messages.Prefilled(id="3", state="complete", prompt_tokens=4, cached_tokens=1, computed_tokens=3),
    messages.Credit(id="3", credit=8),
    messages.GetStatus(id="4"),
    messages.Ping(id="5"),
    messages.Load(id="6", keep_alive=-1.0),
    messages.Unload(id="7", model="smollm2"),
    messages.Welcome(id="1", version="0.1", daemon="0.1.0", capabilities=["generate"]),
    messages.Accepted(id="2", seed=2**63),
    scripted.tokens("2", "Wörld", [1, 2], [True, False], [4, 1]),
    scripted.done("2"),
    messages.Error(code="overloaded", message="later"),
    messages.Status(id="4", state="ready", engine={"threads": 2, "draft": {"model": "x"}}),
    messages.Pong(id="5"),
    messages.Cleared(id="6", files=1),
]


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_every_message_comes_back_as_it_was(message: messages.Message) -> None:
    body = codec.decode(codec.encode(message))
    from_client = type(message) in messages.CLIENT_TYPES.values()
    assert (parse_client if from_client else parse_daemon)(body) == message


def test_every_type_is_tried() -> None:
    kinds = {*messages.CLIENT_TYPES.values(), *messages.DAEMON_TYPES.values()}
    assert {type(message) for message in ALL} == kinds


def test_the_ping_path_is_short() -> None:
    message = messages.Ping(id="1")
    best = 1.0
    for _ in range(200):
        start = time.perf_counter()
        parse_client(codec.decode(codec.encode(message)))
        best = min(best, time.perf_counter() - start)
    assert best < 100e-6  # measured: 8 µs


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "not MessagePack"),
        (b"\xc1", "not MessagePack"),
        (b"\x81\xa4type", "not MessagePack"),
        (b"\x81\xa1a\xa2\xff\xff", "not MessagePack"),
        (b"\x81\x01\x02", "not MessagePack"),
        (b'{"type": "ping"}', "bytes after its map"),
        (msgpack.packb({"a": msgpack.ExtType(5, b"x")}), "extension type 5"),
        (msgpack.packb([1, 2]), "holds a list, not a map"),
        (msgpack.packb("ping"), "holds a string, not a map"),
        (msgpack.packb(None), "holds nil, not a map"),
        (msgpack.packb({"type": "ping"}) + b"\xc0", "bytes after its map"),
        (b"\x81\xa1a" + b"\x91" * 60_000 + b"\x90", "nested too deeply"),
        (b"\x81\xa1a" * codec.MAX_DEPTH + b"\x90", f"nested too deeply: {codec.MAX_DEPTH} within"),
        (b"\xdd\xff\xff\xff\xff", "not MessagePack"),
        (b"\xdf\xff\xff\xff\xff", "not MessagePack"),
        (b"\x00" * (codec.MAX_FRAME + 1), f"{codec.MAX_FRAME + 1} bytes, the limit is {codec.MAX_FRAME}"),
    ],
)
def test_a_malformed_frame_says_what_is_wrong(frame: bytes, reason: str) -> None:
    with pytest.raises(MalformedFrame, match=reason):
        codec.decode(frame)


def test_nesting_has_a_limit_on_either_side() -> None:
    inner: list[Any] = []
    for _ in range(codec.MAX_DEPTH - 4):  # within source, within grammar, within the frame's map
        inner = [1, inner]
    grammar = parts.Grammar(kind="json_schema", source={"items": inner})
    message = messages.Generate(id="1", prompt="x", grammar=grammar)
    assert parse_client(codec.decode(codec.encode(message))) == message
    Session().open(messages.Generate, {"prompt": "x", "grammar": grammar})
    grammar = parts.Grammar(kind="json_schema", source={"items": [inner]})
    with pytest.raises(MalformedFrame, match="nested too deeply"):
        Session().open(messages.Generate, {"prompt": "x", "grammar": grammar})
    with pytest.raises(MalformedFrame, match="nested too deeply"):
        codec.decode(msgpack.packb({"id": "1", "grammar": grammar.__dict__}))


def _many(item: bytes, count: int) -> bytes:
    """A map with `count` of an item, in lists of a million."""
    part = 2**20
    lists = [b"\xdd" + struct.pack(">I", part) + item * part] * (count // part)
    return b"\x81\xa1a\xdd" + struct.pack(">I", len(lists)) + b"".join(lists)


@pytest.mark.parametrize("item", [b"\x90", b"\x80", b"\xa1x"], ids=["lists", "maps", "strings"])
def test_a_small_frame_does_not_grow_into_gigabytes(item: bytes) -> None:
    frame = _many(item, (codec.MAX_FRAME - 100) // len(item))
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFrame, match="items in one frame"):
            codec.decode(frame)
        assert tracemalloc.get_traced_memory()[1] < 400 * 2**20
    finally:
        tracemalloc.stop()


def test_a_prompt_of_a_million_tokens_fits() -> None:
    tokens = [70_000] * 1_000_000
    assert codec.decode(codec.encode(messages.Generate(id="1", tokens=tokens)))["tokens"] == tokens


def test_a_message_that_nobody_could_receive_is_not_sent() -> None:
    with pytest.raises(MalformedFrame, match="the limit is"):
        codec.encode(messages.Generate(id="1", prompt="x" * codec.MAX_FRAME))


def test_text_that_is_not_unicode_is_not_sent() -> None:
    with pytest.raises(InvalidRequest, match="half of a surrogate pair"):
        codec.encode(messages.Generate(id="1", prompt="a\udcff"))


@given(st.binary(max_size=200))
def test_any_bytes_give_a_map_or_malformed_frame(frame: bytes) -> None:
    try:
        body = codec.decode(frame)
    except MalformedFrame:
        return
    assert isinstance(body, dict)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
FIELDS = sorted(messages.Generate.model_fields)


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(), values))
def test_any_map_is_a_message_or_invalid_request(body: dict[str, Any]) -> None:
    for kind in messages.CLIENT_TYPES:
        with contextlib.suppress(InvalidRequest):
            parse_client({**body, "type": kind})


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1])
def test_an_integer_beyond_64_bits_is_not_sent(number: int) -> None:
    grammar = parts.Grammar(kind="json_schema", source={"maximum": number})
    with pytest.raises(InvalidRequest, match="an integer beyond 64 bits"):
        codec.encode(messages.Generate(id="1", prompt="x", grammar=grammar))
