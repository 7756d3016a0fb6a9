"""How a model calls tools: the form its chat template writes calls in, and the grammar that holds it to it.

A template that takes tools also shows, in the turns of a conversation, what a call looks like. So the form is
read off a rendered conversation, and what the model generates is, to the token, what the next turn's prompt
will say of it: its cache is of use. Two forms are known: Hermes' and Qwen's `<tool_call>{json}</tool_call>`,
several in an answer and behind free text, and an answer that is one bare JSON object, as Llama 3 writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from draftd.ipc.errors import InvalidRequest

OPENING, CLOSING = "<tool_call>", "</tool_call>"
Render = Callable[..., str]  # models.base.Tokenizer.render
SEPARATORS = ((", ", ": "), (",", ":"))  # behind a JSON item, behind a key: templates write one or the other


@dataclass(frozen=True, slots=True)
class Form:
    """The texts around a call: opening, head, NAME, middle, ARGUMENTS, tail; `between` two of them."""

    opening: str  # "": a call is a whole answer
    head: str
    middle: str
    tail: str
    between: str | None  # None: an answer has one call at most
    separators: tuple[str, str]  # of JSON items and keys in the arguments


@dataclass(frozen=True, slots=True)
class Function:
    """What may be called."""

    name: str
    parameters: dict[str, Any]  # a JSON schema


def for_template(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A request's messages as templates take them: arguments as objects, and no field that was not given."""
    shown = []
    for index, message in enumerate(messages):
        kept = {name: value for name, value in message.items() if value is not None}
        if calls := kept.get("tool_calls"):
            kept["tool_calls"] = [_for_template(call, index) for call in calls]
        shown.append(kept)
    return shown


def _for_template(call: dict[str, Any], index: int) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest(
            f"messages.{index}.tool_calls: the arguments of {function['name']} are no JSON object"
        )
    return {**call, "function": {"name": function["name"], "arguments": arguments}}


def declared(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A request's tools as templates show them to the model: without what was not given."""
    return [
        {"type": "function", "function": {k: v for k, v in tool["function"].items() if v is not None}}
        for tool in tools
    ]


def functions(tools: Sequence[dict[str, Any]]) -> list[Function]:
    """What may be called; one that names its parameters takes no others, one that says nothing takes none."""
    found = []
    for tool in tools:
        name, schema = tool["function"]["name"], tool["function"]["parameters"]
        schema = {"properties": {}} if schema is None else dict(schema)
        if schema.setdefault("type", "object") != "object":
            raise InvalidRequest(f"tools: the parameters of {name} must be a schema of type object")
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        found.append(Function(name, schema))
    return found


# ---- the form

_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_listed",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"first": {"type": "string"}}},
    },
}
_ARGUMENTS = {"first": [1, 2], "second": {"a": "b"}}
_CALL = re.compile(r'(\{\s*"name"\s*:\s*")probe_called("\s*,\s*"(?:arguments|parameters)"\s*:\s*)(?=\{)')


def find_form(render: Render) -> Form:
    """The form of a model's calls, from what its template makes of some; InvalidRequest if it has none."""
    asked = [{"role": "user", "content": "probe"}]
    prompt = render(asked, [_TOOL])
    if "probe_listed" not in prompt:
        raise InvalidRequest(
            "this model's chat template takes no tools: ask without, or serve a model that has them"
        )
    turn = render([*asked, _said(1)], [_TOOL], answer=False)
    found = _CALL.search(turn)
    if found is None:
        raise _unknown()
    try:
        _, end = json.JSONDecoder().raw_decode(turn, found.end())
    except ValueError:  # it writes the arguments as Python does
        raise _unknown() from None
    arguments, before, behind = turn[found.end() : end], turn[: found.start()], turn[end:]
    separators = next((each for each in SEPARATORS if _dump(each) == arguments), SEPARATORS[0])
    if before.rstrip().endswith(OPENING):
        tail = re.match(rf"\s*\}}\s*{CLOSING}", behind)
        if tail is None:
            raise _unknown()
        head = before[before.rindex(OPENING) + len(OPENING) :] + found[1]
        return Form(OPENING, head, found[2], tail[0], _between(render, asked), separators)
    # A bare object must be all that the answer is, so that its first character tells it from a text.
    tail = re.match(r"\s*\}", behind)
    if tail is None or before.rstrip() != prompt.rstrip():
        raise _unknown()
    return Form("", found[1], found[2], tail[0], None, separators)


def _said(count: int) -> dict[str, Any]:
    call = {
        "id": "call00001",
        "type": "function",
        "function": {"name": "probe_called", "arguments": _ARGUMENTS},
    }
    return {"role": "assistant", "content": "", "tool_calls": [call] * count}


def _dump(separators: tuple[str, str]) -> str:
    return json.dumps(_ARGUMENTS, separators=separators)


def _between(render: Render, asked: list[dict[str, Any]]) -> str | None:
    """What stands between two calls; None if the template has one a turn."""
    try:
        turn = render([*asked, _said(2)], [_TOOL], answer=False)
    except InvalidRequest:
        return None
    found = re.search(rf"probe_called.*?{CLOSING}(.*?){OPENING}.*?probe_called", turn, re.DOTALL)
    return None if found is None else found[1]


def _unknown() -> InvalidRequest:
    return InvalidRequest(
        "this model's chat template writes tool calls in a form that draftd does not read: "
        f"it reads {OPENING}{{json}}{CLOSING} and answers that are one JSON object"
    )


# ---- the grammar


def grammar(
    form: Form,
    allowed: Sequence[Function],
    *,
    forced: bool,
    parallel: bool,
    schema: str | dict[str, Any] | None,
) -> str:
    """A Lark grammar of llguidance's: calls of these functions, and unless forced instead of them an answer.

    The answer is any text, or JSON by `schema`. Behind a text calls may follow, behind calls no text.
    """
    if forced:
        schema = None  # no answer but calls
    if form.opening == "" and schema is not None:
        raise InvalidRequest("this model's tool calls are JSON themselves: give tools or a grammar, not both")
    more = (
        f"({_text(form.between)} {_text(form.opening)} call)*"
        if parallel and form.between is not None
        else ""
    )
    if form.opening == "":
        start = "call" if forced else "call | OTHER"
    elif forced:
        start = f"{_text(form.opening)} call {more}"
    elif schema is not None:
        start = f"answer | {_text(form.opening)} call {more}"
    else:
        start = f"TEXT | opened call {more}"
    lines = [
        f"start: {start}",
        r"TEXT: /(.|\n)*/",
        r"OTHER: /([^{](.|\n)*)?/",
        f"opened[lazy]: TEXT {_text(form.opening)}" if form.opening else "",
        f"answer: %json {schema if isinstance(schema, str) else json.dumps(schema)}"
        if schema is not None
        else "",
        "call: " + " | ".join(f"call_{index}" for index in range(len(allowed))),
    ]
    item, key = form.separators
    spelled = {"x-guidance": {"whitespace_flexible": False, "item_separator": item, "key_separator": key}}
    for index, function in enumerate(allowed):
        head = _text(form.head + function.name + form.middle)
        lines.append(f"call_{index}: {head} arguments_{index} {_text(form.tail)}")
        lines.append(f"arguments_{index}: %json {json.dumps(function.parameters | spelled)}")
    return "\n".join(line for line in lines if line)


def _text(literal: str | None) -> str:
    """A Lark string; an empty one is nothing."""
    return json.dumps(literal) if literal else ""
