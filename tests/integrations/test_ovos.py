"""The chat engine of OpenVoiceOS, loaded by the real plugin manager, over a real daemon."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from draftd.ipc.errors import Unreachable
from tests.daemon.conftest import Daemon, cancelling

# What the plugin manager imports of its own: audio modules that Python 3.13 has no more.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TEXT = "Dr. Ray has 3.5 cats. Really? Yes"  # an answer whose last sentence has no end


@pytest.fixture(scope="module")
def kind(install: Callable[[str], Path]) -> Iterator[Any]:
    """The engine's class, as a persona gets it."""
    target = str(install("ovos-draftd"))
    sys.path.insert(0, target)
    from ovos_plugin_manager.agents import find_chat_plugins, load_chat_plugin

    assert "ovos-draftd" in find_chat_plugins()
    yield load_chat_plugin("ovos-draftd")
    sys.path.remove(target)


@pytest.fixture
def engine(kind: Any, shared: Daemon) -> Iterator[Callable[..., Any]]:
    """engine("One. Two.", …): one that answers just that, however random the model is."""
    made = []

    def make(text: str | None = None, **config: Any) -> Any:
        if text is not None:
            config["grammar"] = {"kind": "regex", "source": re.escape(text)}
        made.append(kind({"endpoint": shared.endpoint, "max_tokens": 100, **config}))
        return made[-1]

    yield make
    for each in made:
        each.shutdown()


def said(*contents: str) -> list[Any]:
    """Messages, the user's and the assistant's in turn."""
    from ovos_plugin_manager.templates.agents import AgentMessage, MessageRole

    roles = [MessageRole.USER, MessageRole.ASSISTANT] * len(contents)
    return [AgentMessage(role, content) for role, content in zip(roles, contents, strict=False)]


def test_an_answer_whole_in_tokens_and_in_sentences(engine: Callable[..., Any]) -> None:
    made = engine(TEXT)
    answer = made.continue_chat(said("hello"), session_id="s", lang="en-US", units="metric", tools=None)
    assert (answer.role.value, answer.content) == ("assistant", TEXT)
    assert made.get_response("hello") == TEXT
    tokens = list(made.stream_tokens(said("hello")))
    assert "".join(tokens) == TEXT
    assert len(tokens) > 1
    sentences = ["Dr. Ray has 3.5 cats.", "Really?", "Yes"]
    assert list(made.stream_sentences(said("hello"), "s", "en-US", "metric")) == sentences
    older = list(made.stream_chat(said("hello"), "s", "en-US", "metric"))
    assert [(each.role.value, each.content) for each in older] == [("assistant", each) for each in sentences]


@pytest.mark.parametrize("mark", ["<|im_end|>", "<|im_start|>", "<|eot_id|>", "<end_of_turn>", "</s>"])
def test_template_marks_are_not_spoken(engine: Callable[..., Any], mark: str) -> None:
    """The model spells the mark letter by letter: with a choice at its end, which the bias decides."""
    spelt = [re.escape(f"One. Two{mark}user"), re.escape(f"One. Two{mark[:-1]}!")]
    made = engine(grammar={"kind": "regex", "source": "|".join(spelt)}, logit_bias={str(ord(">")): 50.0})
    assert list(made.stream_sentences(said("hello"))) == ["One.", "Two"]


def test_thoughts_are_not_spoken(engine: Callable[..., Any]) -> None:
    made = engine("<think>Hm. What?</think>One. Two.")
    assert list(made.stream_sentences(said("hello"))) == ["One.", "Two."]
    assert made.continue_chat(said("hello")).content == "One. Two."


def test_one_stop_may_be_a_text_of_its_own(engine: Callable[..., Any]) -> None:
    assert engine("One two. Three", stop="Three").continue_chat(said("Hi")).content == "One two."


@pytest.mark.parametrize("stop", [["Three", *"ABCDEFGHIJKLMNP"], None])
def test_as_many_stops_as_the_daemon_takes(engine: Callable[..., Any], stop: list[str] | None) -> None:
    answer = "One two." if stop else "One two. Three"
    assert engine("One two. Three", stop=stop).continue_chat(said("Hi")).content == answer


def test_the_conversation_and_the_configuration_reach_the_daemon(
    engine: Callable[..., Any], shared: Daemon
) -> None:
    made = engine(system_prompt="be brief", max_tokens=12, temperature=0.9, seed=4, enabled=True)
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "more"},
    ]
    expected = shared.client().complete(messages=messages, max_tokens=12, temperature=0.9, seed=4)
    assert made.continue_chat(said("hello", "yes", "more")).content == expected.text.strip()


def test_what_was_heard_is_computed_before_the_question_ends(
    engine: Callable[..., Any], shared: Daemon
) -> None:
    made = engine(max_tokens=4)
    words = "please tell me what the weather in the old town will be like on the day after tomorrow"
    made.heard(said(words[:40]))
    made.heard(said(words[:60]), wait=True)
    reply = shared.client().complete(messages=[{"role": "user", "content": words}], max_tokens=4)
    assert reply.usage.cached_tokens >= 60  # a token is a byte here


def test_tools_are_called_and_their_results_read(engine: Callable[..., Any], shared: Daemon) -> None:
    from ovos_plugin_manager.templates.agents import AgentMessage, MessageRole

    parameters = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    lamp = {"type": "function", "function": {"name": "lamp", "parameters": parameters}}
    made = engine(tool_choice="required", parallel_tool_calls=False, max_tokens=300)
    assert made.supports_tools
    answer = made.continue_chat(said("light"), tools=[lamp])
    (call,) = answer.tool_calls
    assert (call.name, type(call.arguments["on"])) == ("lamp", bool)
    result = AgentMessage(MessageRole.TOOL, "done", tool_call_id=call.id)
    later = engine(max_tokens=8).continue_chat([*said("light"), answer, result], tools=[lamp])
    written = {"name": "lamp", "arguments": json.dumps(call.arguments)}
    messages = [
        {"role": "user", "content": "light"},
        {
            "role": "assistant",
            "content": answer.content,
            "tool_calls": [{"id": call.id, "function": written}],
        },
        {"role": "tool", "content": "done", "tool_call_id": call.id},
    ]
    expected = shared.client().complete(messages=messages, tools=[lamp], max_tokens=8)
    assert later.content == expected.text.strip()


def test_leaving_an_answer_ends_it(engine: Callable[..., Any], shared: Daemon) -> None:
    made = engine("One. " * 180, max_tokens=900, speculate="off")
    with cancelling(shared):
        sentences = made.stream_sentences(said("hello"))
        assert next(sentences) == "One."
        sentences.close()


def test_no_daemon_is_an_error_for_the_persona_to_handle(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no daemon"):
        kind({"endpoint": f"ipc://{tmp_path}/none.sock"}).continue_chat(said("hello"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No. See No. 5 for it.", ["No.", "See No. 5 for it."]),
        ("1. Boil water.\n2. Add tea.\n\nDone", ["1. Boil water.", "2. Add tea.", "Done"]),
        ("Tea, milk etc.\nor so. \n\nby 5 p.m.\nEnd", ["Tea, milk etc.", "or so.", "by 5 p.m.", "End"]),
        ('She said "Go!" Then she left.', ['She said "Go!"', "Then she left."]),
        ("Wait... what? J. R. Ray at 5 p.m. Then", ["Wait... what?", "J. R. Ray at 5 p.m.", "Then"]),
        ("Take two, e.g. Tea and milk etc. or so. End", ["Take two, e.g. Tea and milk etc. or so.", "End"]),
        ("你好。「是谁？」 好", ["你好。", "「是谁？」", "好"]),  # noqa: RUF001
        ("Am 3. Oktober. Pi is 3.14. In 1999. So", ["Am 3. Oktober.", "Pi is 3.14.", "In 1999.", "So"]),
        ("", []),
        (" \n ", []),
    ],
)  # fmt: skip
def test_sentences_however_the_text_is_cut(kind: Any, text: str, expected: list[str]) -> None:
    split = importlib.import_module("ovos_draftd.sentences").sentences
    for size in (1, 2, 3, 7, 100):
        assert list(split(text[at : at + size] for at in range(0, len(text), size))) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think>b<think>c</think>d", "bd"),
        ("a < b <thin", "a < b <thin"),
        ("a<think>never ends", "a"),
        ("a</think>b", "a</think>b"),
    ],
)
def test_thoughts_however_the_text_is_cut(kind: Any, text: str, expected: str) -> None:
    spoken = importlib.import_module("ovos_draftd.sentences").spoken
    for size in (1, 2, 3, 7, 100):
        assert "".join(spoken(text[at : at + size] for at in range(0, len(text), size))) == expected
