"""How a model calls tools, read off its template, and what the grammar then lets it say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftd.ipc.errors import InvalidRequest
from draftd.models.gguf_tokenizer import GGUFTokenizer
from draftd.models.grammar import Grammars
from draftd.models.hf_tokenizer import HfTokenizer
from draftd.models.tools import Form, Function, declared, find_form, for_template, functions, grammar
from tests.tiny import IM_END, TOOL_CALL, write_tiny, write_tokenizer
from tests.tiny_gguf import write_gguf

HERMES = Form("<tool_call>", '\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n", (", ", ": "))
LLAMA3 = (  # a call is a whole turn, and there is one a turn
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{% if message.tool_calls %}{% if message.tool_calls | length != 1 %}"
    "{{ raise_exception('one call at a time') }}{% endif %}{% set call = message.tool_calls[0].function %}"
    '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson(separators=(",", ":")) }}}'
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (  # the same between marks, of which the system message tells, too
    LLAMA3.replace("system\n", "system\nWrite <tool_call></tool_call>.\n")
    .replace('{"name"', '<tool_call>{"name"')
    .replace("}}}{%", "}}}</tool_call>{%")
)
ONE = "{% if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
SINGLE = Form("<tool_call>", '{"name": "', '", "parameters": ', "}</tool_call>", None, (",", ":"))
BARE = Form("", '{"name": "', '", "parameters": ', "}", None, (",", ":"))
PLACE = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": None, "parameters": PLACE}}
NOW = {"type": "function", "function": {"name": "now", "description": "the time", "parameters": None}}


def tokenizer_with(path: Path, template: str) -> HfTokenizer:
    write_tokenizer(path)
    (path / "chat_template.jinja").write_text(template)
    return HfTokenizer.load(path)


@pytest.fixture(scope="module", params=["transformers", "gguf"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> HfTokenizer | GGUFTokenizer:
    root = tmp_path_factory.mktemp("tools")
    write_tiny(root / "model", tools=True)
    if request.param == "transformers":
        return HfTokenizer.load(root / "model")
    return GGUFTokenizer(write_gguf(root / "model", root / "model.gguf"))


@pytest.fixture(scope="module")
def grammars(tokenizer: HfTokenizer | GGUFTokenizer) -> Grammars:
    return Grammars(tokenizer, 272)


def test_the_form_is_the_template_s(tokenizer: HfTokenizer | GGUFTokenizer) -> None:
    assert find_form(tokenizer.render) == HERMES


def test_a_form_that_is_a_bare_object(tmp_path: Path) -> None:
    assert find_form(tokenizer_with(tmp_path, LLAMA3).render) == BARE


@pytest.mark.parametrize("template", [MARKED, MARKED.replace(ONE, "")], ids=["refused", "left out"])
def test_a_form_of_one_call_a_turn(tmp_path: Path, template: str) -> None:
    """Whether the template refuses a second one, or does not write it."""
    assert find_form(tokenizer_with(tmp_path, template).render) == SINGLE


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages[0].content }}", "takes no tools"),
        ("{{ tools | tojson }}{{ messages | tojson }}", "a form that draftd does not read"),
        ("{{ tools | tojson }}[CALLS]" + LLAMA3, "a form that draftd does not read"),
        (MARKED.replace("}}}</tool_call>", "}}}"), "a form that draftd does not read"),
        ("{{ tools | tojson }}{{ messages[0].content }}", "a form that draftd does not read"),
        (LLAMA3.replace(' | tojson(separators=(",", ":"))', ""), "a form that draftd does not read"),
        ("{{ tools | tojson }}{{ messages[-1].content + tools }}", "the model's chat template refuses"),
    ],
)
def test_other_templates_are_refused_with_the_reason(tmp_path: Path, template: str, words: str) -> None:
    if "[CALLS]" in template:
        template = LLAMA3.replace('{"name"', '[CALLS]{"name"')
    with pytest.raises(InvalidRequest, match=words):
        find_form(tokenizer_with(tmp_path, template).render)


def test_a_conversation_with_calls_is_what_the_model_said(tokenizer: HfTokenizer | GGUFTokenizer) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"Oslo"}'},
    }
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Cold?", "tool_calls": None, "tool_call_id": None},
        {"role": "assistant", "content": "I look.", "tool_calls": [call, call], "tool_call_id": None},
        {"role": "tool", "content": "-3", "tool_calls": None, "tool_call_id": "call_1"},
    ]
    text = tokenizer.render(for_template(messages), declared([WEATHER, NOW]))
    said = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert f"assistant\nI look.\n{said}\n{said}<|im_end|>\n<|im_start|>tool\n-3<|im_end|>\n" in text
    assert json.dumps(NOW | {"function": {"name": "now", "description": "the time"}}) in text
    assert tokenizer.chat(for_template(messages), declared([WEATHER])).count(TOOL_CALL) == 2


def test_half_a_character_in_a_calls_arguments_is_no_fault(tokenizer: HfTokenizer | GGUFTokenizer) -> None:
    call = {"function": {"name": "weather", "arguments": '{"city": "\\ud83d"}'}}
    said = for_template([{"role": "assistant", "content": "", "tool_calls": [call]}])
    text = b"".join(map(tokenizer.bytes_of, tokenizer.chat(said, declared([WEATHER]))))
    assert b'"arguments": {"city": "?"}}' in text


def test_no_arguments_are_an_empty_object() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": ""}}
    ((shown,),) = [each["tool_calls"] for each in for_template([{"role": "assistant", "tool_calls": [call]}])]
    assert shown["function"] == {"name": "now", "arguments": {}}


@pytest.mark.parametrize("arguments", ["{", "[1]", '"x"', "[" * 100_000], ids=["cut", "list", "text", "deep"])
def test_arguments_that_are_no_object(arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    with pytest.raises(
        InvalidRequest, match=r"messages.0.tool_calls: the arguments of weather are no JSON object"
    ):
        for_template([{"role": "assistant", "content": "", "tool_calls": [call]}])


def test_a_function_takes_the_parameters_it_names() -> None:
    assert functions([WEATHER, NOW]) == [
        Function("weather", {**PLACE, "additionalProperties": False}),
        Function("now", {"type": "object", "properties": {}, "additionalProperties": False}),
    ]
    anything = {"type": "object"}
    open_ = {"type": "object", "properties": {}, "additionalProperties": True}
    for schema in (anything, open_):
        tool: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": schema}}
        assert functions([tool])[0].parameters == schema
    with pytest.raises(InvalidRequest, match="parameters of f must be a schema of type object"):
        functions([{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}])


def fits(grammars: Grammars, source: str, text: str) -> tuple[bool, bool]:
    """Whether all of a text is allowed, and whether the answer may or must end behind it."""
    matcher = grammars.matcher("lark", source)
    tokens = list(text.encode())
    whole = matcher.fitting(tokens) == len(tokens)
    matcher.accept(tokens)
    row = np.zeros(272, np.float32)
    matcher.mask(row)
    return whole, whole and bool(row[IM_END] == 0)


OSLO = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
YES, PART, NO = (True, True), (True, False), (False, False)


@pytest.mark.parametrize(
    ("options", "text", "wanted"),
    [
        ({}, "", YES),
        ({}, "just talk <tool", YES),
        ({}, OSLO, YES),
        ({}, f"I look.\n{OSLO}\n{TIME}", YES),
        ({}, OSLO[:-3], PART),
        ({}, f"{OSLO}\nso", NO),
        ({}, OSLO.replace("Oslo", "Paris"), NO),
        ({}, OSLO.replace("weather", "forecast"), NO),
        ({}, OSLO.replace('": "Oslo"', '":"Oslo"'), NO),
        ({"parallel": False}, f"{OSLO}\n", NO),
        ({"forced": True}, "I", NO),
        ({"forced": True}, "", PART),
        ({"forced": True}, f"{TIME}\n{OSLO}", YES),
        ({"forced": True, "schema": "[a-z]+"}, TIME, YES),  # a grammar of another kind is of no account
        ({"schema": {"type": "boolean"}}, "true", YES),
        ({"schema": {"type": "boolean"}}, OSLO, YES),
        ({"schema": '{"type": "boolean"}'}, "I", NO),
    ],
)
def test_what_may_be_said(
    grammars: Grammars, options: dict[str, Any], text: str, wanted: tuple[bool, bool]
) -> None:
    given = {"forced": False, "parallel": True, "schema": None, **options}
    assert fits(grammars, grammar(HERMES, functions([WEATHER, NOW]), **given), text) == wanted


def test_a_form_of_one_call_holds_an_answer_to_one(grammars: Grammars) -> None:
    source = grammar(SINGLE, functions([NOW]), forced=False, parallel=True, schema=None)
    call = '<tool_call>{"name": "now", "parameters": {}}</tool_call>'
    assert fits(grammars, source, call) == YES
    assert fits(grammars, source, call + call) == NO


@pytest.mark.parametrize(
    ("forced", "text", "wanted"),
    [
        (False, "just {talk}", YES),
        (False, "", YES),
        (False, '{"name": "weather", "parameters": {"city":"Oslo"}}', YES),
        (False, '{"name": "weather", "parameters": {"city":"Oslo"}}\n', NO),
        (False, '{"answer"', NO),
        (True, "just", NO),
        (True, '{"name": "now", "parameters": {}}', YES),
    ],
)
def test_what_may_be_said_in_a_bare_form(
    grammars: Grammars, forced: bool, text: str, wanted: tuple[bool, bool]
) -> None:
    allowed = functions([WEATHER, NOW])
    assert fits(grammars, grammar(BARE, allowed, forced=forced, parallel=True, schema=None), text) == wanted


def test_a_bare_form_has_no_room_for_a_schema() -> None:
    with pytest.raises(InvalidRequest, match="give tools or a grammar, not both"):
        grammar(BARE, functions([NOW]), forced=False, parallel=True, schema={})
    assert grammar(BARE, functions([NOW]), forced=True, parallel=True, schema={})


def test_one_token_may_open_a_call(grammars: Grammars) -> None:
    """The mark as the model's own token, and as the letters that it is."""
    matcher = grammars.matcher(
        "lark", grammar(HERMES, functions([NOW]), forced=True, parallel=True, schema=None)
    )
    assert matcher.fitting([TOOL_CALL, ord("\n"), ord("{")]) == 3
    assert matcher.fitting(list(b"<tool_call>\n{")) == 13
