"""Holds messages.py, parts.py, errors.py and the limits to PROTOCOL.md, and PROTOCOL.md to them."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from draftd.ipc import codec, endpoint, errors, messages, parts, version

PAGE = (Path(__file__).parents[2] / "ipc" / "PROTOCOL.md").read_text("utf-8")
_PARTS = (
    parts.ChatMessage,
    parts.Tool,
    parts.Function,
    parts.ToolChoice,
    parts.FunctionNamed,
    parts.ToolCall,
    parts.FunctionCall,
    parts.ToolCallPart,
    parts.Grammar,
    parts.Resume,
    parts.Logprob,
    parts.Alternative,
    parts.AnswerEnd,
    parts.Usage,
    parts.Stats,
)
PARTS = {kind.__name__: kind for kind in _PARTS}
Row = tuple[str, str, str]  # type, default, range


def _section(number: int) -> str:
    found = re.search(rf"^## {number}\. .*?(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, number
    return found[0]


def _tables(section: str) -> dict[str, dict[str, Row]]:
    """By heading: each field's type, default and range as the page has them."""
    tables = {}
    for part in section.split("\n### ")[1:]:
        name, _, text = part.partition("\n")
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines()
            if line[:1] == "|"
        ]
        assert rows == [] or rows[0][:4] == ["field", "type", "default", "range"]
        assert rows or "No further field." in text, name
        tables[name] = {row[0]: (row[1], row[2], row[3]) for row in rows[2:]}
    return tables


def _fields(kind: type[BaseModel]) -> dict[str, Row]:
    """The same from a type."""
    fields = kind.model_fields.items()
    return {
        name: (_type(field.annotation), _default(field), _range(field))
        for name, field in fields
        if not (issubclass(kind, messages.Message) and name in ("id", "type"))
    }


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [_type(part) for part in get_args(annotation) if part is not type(None)]
        inner = " or ".join(dict.fromkeys(kinds))
        return f"{inner}?" if type(None) in get_args(annotation) else inner
    if get_origin(annotation) is list:
        return f"[{_type(get_args(annotation)[0])}]"
    if get_origin(annotation) is dict:
        inner = get_args(annotation)[1]
        return "map" if inner is Any else f"map of {_type(inner)}"
    if get_origin(annotation) is Literal or annotation is str:
        return "text"
    return str(annotation.__name__)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    return "nil" if field.default is None else json.dumps(field.default)


def _bounds(metadata: list[Any]) -> dict[str, Any]:
    """Every ge, lt, max_length … there is, pydantic's wrapped ones too."""
    found: dict[str, Any] = {}
    for item in metadata:
        for inner in (item, *getattr(item, "metadata", ())):
            for name in ("ge", "gt", "le", "lt", "min_length", "max_length"):
                if (value := getattr(inner, name, None)) is not None:
                    found[name] = value
    return found


def _inner(annotation: Any) -> dict[str, Any]:
    """The bounds of what a list or a map holds."""
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) in (list, dict) and get_origin(get_args(part)[-1]) is Annotated:
            return _bounds(list(get_args(part)[-1].__metadata__))
    return {}


def _range(field: FieldInfo) -> str:
    kinds = (field.annotation, *get_args(field.annotation))
    if choices := [kind for kind in kinds if get_origin(kind) is Literal]:
        *first, last = get_args(choices[0])
        return f"{', '.join(first)} or {last}" if first else str(last)
    own, inner = _bounds(field.metadata), _inner(field.annotation)
    if "max_length" in own and get_origin(field.annotation) in (list, dict) and "min_length" not in inner:
        each = f" of {inner['ge']:.0f} to {inner['le']:.0f}" if "le" in inner else ""
        return f"at most {own['max_length']}{each}"
    if "max_length" in own and inner:
        return f"at most {own['max_length']} of {inner['min_length']} to {inner['max_length']} characters"
    if "max_length" in own:
        return f"at most {own['max_length']} characters"
    bounds = own or inner
    low = f"{bounds['ge']:g}" if "ge" in bounds else f"above {bounds['gt']:g}," if "gt" in bounds else ""
    if "le" in bounds:
        return f"{low} to {bounds['le']:.0f}"
    if "lt" in bounds:
        return f"{low} to {bounds['lt'] - 1}"
    return f"from {low}" if low else ""


# `text` says what the page says in words: where a value comes from, not what a validator checks
WORDS = {
    ("Function", "name"): "1 to 64 of letters, digits, `_`, `.` and `-`",
    ("FunctionNamed", "name"): "1 to 64 of letters, digits, `_`, `.` and `-`",
    ("error", "code"): "section 6",
    ("status", "progress"): "0 to 1",
    ("generate", "speculate"): "also `auto`, `off`, and `suffix:N`, `model:N`, `chain:N`, N to 99",
}


def _expected(kinds: dict[str, Any]) -> dict[str, dict[str, Row]]:
    tables = {name: _fields(kind) for name, kind in kinds.items()}
    for (message, name), words in WORDS.items():
        if name in tables.get(message, {}):
            tables[message][name] = (*tables[message][name][:2], words)
    return tables


@pytest.mark.parametrize(
    ("section", "kinds"), [(3, messages.CLIENT_TYPES), (4, messages.DAEMON_TYPES), (5, PARTS)], ids=str
)
def test_every_message_and_field_is_as_the_page_says(section: int, kinds: dict[str, Any]) -> None:
    assert _tables(_section(section)) == _expected(kinds)


def test_the_parts_are_all_there_are() -> None:
    kinds = {kind.__name__: kind for kind in parts.Fields.__subclasses__()} - {"Message": 0}.keys()
    assert kinds == PARTS.keys()


def test_every_error_code_is_on_the_page() -> None:
    listed = re.findall(r"^\| ([a-z_]+) \|", _section(6), re.MULTILINE)
    assert listed.pop(0) == "code"
    assert sorted(listed) == sorted(errors.CODES)


def test_the_errors_tree_is_drawn_as_it_is() -> None:
    drawn = re.findall(r"(\w+) {2,}([a-z_]+) +(\d+)$", errors.__doc__ or "", re.MULTILINE)
    actual = {(kind.__name__, code, str(kind.exit_status)) for code, kind in errors.CODES.items()}
    assert set(drawn) | {("DraftdError", "internal", "1")} == actual


def test_version_and_limits() -> None:
    assert PAGE.startswith(f"# draftd's protocol, version {version.VERSION}\n")
    assert f"at most {codec.MAX_FRAME} bytes and {codec.MAX_ITEMS} list and map items" in PAGE
    assert f"nested at most {codec.MAX_DEPTH}\n  deep" in PAGE
    assert f"an absolute path of at most {endpoint.MAX_PATH} bytes" in PAGE


def test_the_example_frame_is_one() -> None:
    shown = re.search(r"->   ([0-9a-f ]+)$", PAGE, re.MULTILINE)
    assert shown
    assert codec.decode(bytes.fromhex(shown[1])) == {"type": "ping", "id": "1"}


def test_the_flows_name_real_messages() -> None:
    named = re.findall(r"[→←] ([a-z]+) ", _section(2))
    assert set(named) == {*messages.CLIENT_TYPES, *messages.DAEMON_TYPES}


def test_the_capabilities_are_on_the_page() -> None:
    assert tuple(re.findall(r"^\| ([a-z]+) \| ", _section(7), re.MULTILINE)[1:]) == version.CAPABILITIES


def test_versions_are_chosen_as_the_page_says() -> None:
    rows = re.findall(r"^\| ([0-9., ]+?)(?:, being \w+| alone)? \| (.+?) \|$", _section(7), re.MULTILINE)
    assert len(rows) == 5
    for offered, answer in rows:
        chosen = version.choose(offered.split(", "))
        assert answer.startswith(str(chosen)) or (chosen is None and "unsupported_version" in answer)


@pytest.mark.parametrize("wrong", ["", "1", "one.two", "1.x", "-1.0", "1.0.0", "99999999.1"])
def test_a_version_that_is_none_is_passed_over(wrong: str) -> None:
    assert version.choose([wrong]) is None
    assert version.choose([wrong, "1.0"]) == "1.0"
