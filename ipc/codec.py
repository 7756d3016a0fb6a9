"""Frames: one MessagePack map each, its keys the fields of a message type."""

from __future__ import annotations

from typing import Any

import msgpack
from pydantic import BaseModel

from draftd.ipc.errors import InvalidRequest, MalformedFrame

MAX_FRAME = 16 * 2**20  # bytes; the sockets' MAXMSGSIZE too
MAX_ITEMS = 2**21  # in all lists and maps of a frame together: small items grow 20 times when decoded
MAX_DEPTH = 64  # lists and maps within each other; JSON schemas, the deepest that is sent, rarely have 30
_SMALL = 2**16  # bytes; a frame this size can't grow to anything that matters
_ATOMS = {str, bytes, int, float, bool, type(None)}


def encode(message: BaseModel) -> bytes:
    """The frame of a message; MalformedFrame if it would be too large to be received.

    InvalidRequest for what pydantic lets through and MessagePack can't say: half of a surrogate pair, an
    integer beyond 64 bits.
    """
    try:
        frame: bytes = msgpack.packb(message.__dict__, default=_fields)
    except UnicodeEncodeError:
        raise InvalidRequest("the text is not valid Unicode: it holds half of a surrogate pair") from None
    except OverflowError:
        raise InvalidRequest("the message holds an integer beyond 64 bits: send it as text") from None
    if len(frame) > MAX_FRAME:
        raise MalformedFrame(f"the message is {len(frame)} bytes, the limit is {MAX_FRAME}")
    return frame


def decode(frame: bytes) -> dict[str, Any]:
    """The map in a frame, of any keys and values; MalformedFrame says what is wrong with it."""
    if len(frame) > MAX_FRAME:
        raise MalformedFrame(f"the frame is {len(frame)} bytes, the limit is {MAX_FRAME}")
    hooks = {} if len(frame) <= _SMALL else _budget()
    try:
        body = msgpack.unpackb(frame, ext_hook=_refuse_extension, **hooks)
    except msgpack.exceptions.StackError:
        raise _too_deep() from None
    except msgpack.exceptions.ExtraData:
        raise MalformedFrame("the frame has bytes after its map: send one map a frame") from None
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise MalformedFrame(f"the frame is not MessagePack that draftd reads: {reason}") from None
    if not isinstance(body, dict):
        raise MalformedFrame(f"the frame holds {_name(body)}, not a map")
    check_depth(body)
    return body


def check_depth(outer: Any, left: int = MAX_DEPTH) -> None:
    """MalformedFrame if a map, list or message goes deeper than `left`; a million tokens take 50 ms."""
    if left == 0:
        raise _too_deep()
    fields = outer.__dict__ if isinstance(outer, BaseModel) else outer
    values = fields.values() if isinstance(fields, dict) else fields
    if not _ATOMS.issuperset(map(type, values)):
        for value in values:
            if isinstance(value, (list, tuple, dict, BaseModel)):  # in this order: the last is slow to say no
                check_depth(value, left - 1)


def _too_deep() -> MalformedFrame:
    return MalformedFrame(f"lists and maps are nested too deeply: {MAX_DEPTH} within each other is the limit")


def _fields(value: object) -> dict[str, Any]:
    if isinstance(value, BaseModel):
        return value.__dict__
    if isinstance(value, int):
        raise OverflowError
    raise TypeError(f"{type(value).__name__} has no place in a message")


def _budget() -> dict[str, Any]:
    """Hooks that stop the decoder once a frame has given MAX_ITEMS items."""
    left = MAX_ITEMS

    def spend(container: Any) -> Any:
        nonlocal left
        left -= len(container) + 1
        if left < 0:
            raise ValueError(f"more than {MAX_ITEMS} items in one frame")
        return container

    return {"list_hook": spend, "object_hook": spend, "max_array_len": MAX_ITEMS, "max_map_len": MAX_ITEMS}


def _refuse_extension(code: int, data: bytes) -> None:
    raise ValueError(f"extension type {code}")


def _name(value: object) -> str:
    names = {list: "a list", str: "a string", bytes: "bytes", bool: "a boolean", type(None): "nil"}
    return names.get(type(value), "a number")
