"""An answer's text told apart into what is said and what is called, however it is cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftd.daemon.calls import CallPart, Calls, overlap
from draftd.models.tools import Form

HERMES = Form("<tool_call>", '\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n", (", ", ": "))
BARE = Form("", '{"name": "', '", "parameters": ', "}", None, (", ", ": "))
Told = tuple[str, list[tuple[str, str]]]

names = st.from_regex(r"[a-zA-Z0-9_.-]{1,12}", fullmatch=True)
values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.sampled_from(["</tool_call>", '}"\\', "<tool_call>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(st.text(max_size=5), values, max_size=3).map(
    lambda value: json.dumps(value, ensure_ascii=False)
)
calls = st.lists(st.tuples(names, arguments), min_size=1, max_size=3)
texts = st.text().filter(lambda text: HERMES.opening not in text)


def written(form: Form, name: str, given_: str) -> str:
    return f"{form.opening}{form.head}{name}{form.middle}{given_}{form.tail}"


def read(form: Form, pieces: Sequence[str], end: bool = True, bound: bool = False) -> tuple[Calls, Told]:
    reader = Calls(form, bound)
    parts = [part for piece in pieces for part in reader.push(piece)]
    if end:
        parts += reader.flush()
    text, found = "", list[tuple[str, str]]()
    for part in parts:
        if isinstance(part, str):
            assert part
            text += part
        elif part.name is not None:
            assert part.index == len(found)
            found.append((part.name, part.arguments))
        else:
            assert part.arguments
            assert part.index == len(found) - 1
            found[-1] = (found[-1][0], found[-1][1] + part.arguments)
    return reader, (text, found)


def cut(data: st.DataObject, whole: str) -> list[str]:
    """A text in pieces, some of them empty."""
    ends = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    return [whole[a:b] for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)]


@given(text=texts, said=calls, data=st.data())
def test_calls_behind_a_text_are_told_however_they_come(
    text: str, said: list[tuple[str, str]], data: st.DataObject
) -> None:
    whole = text + "\n" * bool(text) + "\n".join(written(HERMES, *call) for call in said)
    reader, told = read(HERMES, cut(data, whole))
    assert told == (text, said)
    assert reader.made


@given(call=st.tuples(names, arguments), data=st.data())
def test_a_bare_call_is_told_however_it_comes(call: tuple[str, str], data: st.DataObject) -> None:
    reader, told = read(BARE, cut(data, written(BARE, *call)))
    assert told == ("", [call])
    assert reader.made


@given(text=texts, data=st.data())
def test_a_text_without_calls_is_the_text(text: str, data: st.DataObject) -> None:
    reader, told = read(HERMES, cut(data, text))
    assert told == (text, [])
    assert not reader.made
    if text[:1] != "{":
        assert read(BARE, cut(data, text))[1] == (text, [])


@given(value=values, data=st.data())
def test_an_answer_that_follows_a_schema_is_text_whatever_stands_in_it(
    value: Any, data: st.DataObject
) -> None:
    whole = json.dumps(value, ensure_ascii=False)
    reader, told = read(HERMES, cut(data, whole), bound=True)
    assert told == (whole, [])
    assert not reader.made


@given(said=calls, data=st.data())
def test_calls_in_the_place_of_an_answer_by_a_schema(
    said: list[tuple[str, str]], data: st.DataObject
) -> None:
    whole = "\n".join(written(HERMES, *call) for call in said)
    reader, told = read(HERMES, cut(data, whole), bound=True)
    assert told == ("", said)
    assert reader.made


@given(
    pieces=st.lists(
        st.sampled_from([*'\n{}"\\ab', "<tool_call>", "</tool_call>", *HERMES.head, HERMES.middle])
    ),
    form=st.sampled_from([HERMES, BARE]),
)
def test_anything_is_read_without_an_error_and_the_same_in_one_piece(pieces: list[str], form: Form) -> None:
    one, many = read(form, ["".join(pieces)]), read(form, pieces)
    assert one[1] == many[1]
    assert (one[0].begun, one[0].whole) == (many[0].begun, many[0].whole)


@given(text=texts, said=calls, data=st.data())
def test_what_was_cut_off_is_a_beginning(text: str, said: list[tuple[str, str]], data: st.DataObject) -> None:
    whole = text + "\n" * bool(text) + "\n".join(written(HERMES, *call) for call in said)
    at = data.draw(st.integers(0, len(whole)))
    reader, (told, found) = read(HERMES, [whole[:at]])
    if found:
        assert told == text
        assert found[:-1] == said[: len(found) - 1]
        name, given_ = said[len(found) - 1]
        assert found[-1][0] == name
        assert given_.startswith(found[-1][1])
        assert reader.made == (found[-1][1] == given_)
    else:  # of a mark that was cut off in the middle nobody can say that it was one
        assert (text + "\n" * bool(text) + HERMES.opening).startswith(told)
        assert not reader.made


def test_what_is_sure_is_told_at_once() -> None:
    reader = Calls(HERMES)
    assert reader.push("I look") == ["I look"]
    assert reader.push(".\n") == ["."]
    assert reader.push("\n<tool") == ["\n"]
    assert reader.push("s>") == ["\n<tools>"]
    assert reader.push("<tool_call>") == []
    assert reader.push('\n{"name": "f", "arguments": {"a') == [CallPart(0, "f", ""), CallPart(0, None, '{"a')]
    assert reader.push('": "}"}}') == [CallPart(0, None, '": "}"}')]
    assert not reader.flush()


@pytest.mark.parametrize(
    ("known", "rest"),
    [
        (0, CallPart(1, "name", "{}")),
        (2, CallPart(1, None, "{}")),
        (4, CallPart(1, None, "{}")),
        (5, CallPart(1, None, "}")),
        (6, CallPart(1, None, "")),
    ],
)
def test_the_rest_of_a_piece(known: int, rest: CallPart) -> None:
    assert CallPart(1, "name", "{}").behind(known) == rest
    assert CallPart(1, "name", "{}").size == 6


def test_overlap() -> None:
    assert [overlap(text, "<tool") for text in ("", "a", "a<", "<to", "<tool", "<too<t")] == [
        0,
        0,
        1,
        3,
        0,
        2,
    ]
