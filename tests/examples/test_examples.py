"""Each example as a user runs it: a process of its own against a real daemon of a tiny model.

A tiny model says nothing that makes sense: with it is held what the examples do with the daemon. What they
say is held with the qwen2.5-coder pair (`make test-qwen`).
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from draftd.daemon.private import private_daemon
from draftd.ipc import Client
from tests.daemon.conftest import serving
from tests.docs.pages import blocks
from tests.tiny import write_tiny
from tests.tiny_gguf import write_gguf

ROOT = Path(__file__).parents[2]
KNOWN = re.compile(r"(\d+) of (\d+) prompt tokens were known")
TEXT = "The lamps in the harbour are lit at dusk. A keeper lights them, and has done so for forty years."


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a daemon whose context holds prompts of a token a letter."""
    files = tmp_path_factory.mktemp("tiny")
    write_tiny(files / "target", context=4096)
    write_gguf(write_tiny(files / "noisy", noise=0.15, context=4096), files / "draft.gguf")
    with serving(tmp_path_factory.mktemp("examples"), files) as start:
        yield start(context="4096").endpoint


def run(endpoint: str, program: str | Path, *arguments: str, heard: str = "") -> tuple[list[str], str]:
    """An example's lines of output, and what it told beside them."""
    done = subprocess.run(
        [sys.executable, ROOT / program, *arguments],
        cwd=ROOT,
        env=os.environ | {"DRAFTD_ENDPOINT": endpoint},
        input=heard.encode(),
        capture_output=True,
        timeout=100,
    )
    told = done.stderr.decode()
    assert done.returncode == 0, told
    return done.stdout.decode().removesuffix("\n").split("\n"), told


def test_customer_service_gives_a_ticket_of_the_given_form(endpoint: str) -> None:
    lines, told = run(
        endpoint, "examples/customer_service.py", heard="My lamp arrived broken.\nIt is order 123456.\n"
    )
    assert "Lumen" in lines[0]
    tickets = [json.loads(each) for each in re.findall(r"^ +(\{.*\})  \(", told, re.MULTILINE)]
    assert len(tickets) == 2
    for ticket in tickets:
        assert ticket.keys() == {"topic", "order_number", "needs_colleague"}
        assert isinstance(ticket["needs_colleague"], bool)
    (_, first), (again, _) = [(int(known), int(prompt)) for known, prompt in KNOWN.findall(told)]
    assert again >= first, "the second turn starts from the first one's cache"


def test_customer_service_whose_context_is_full_says_so(endpoint: str) -> None:
    program = ROOT / "examples/customer_service.py"
    turns = [{"role": "system", "content": runpy.run_path(str(program))["RULES"]}]
    with Client(endpoint) as client:
        short = client.complete(messages=[*turns, {"role": "user", "content": "x"}], max_tokens=1)
    letters = 4096 - short.usage.prompt_tokens - 20  # what is left is shorter than any ticket
    done = subprocess.run(
        [sys.executable, program],
        env=os.environ | {"DRAFTD_ENDPOINT": endpoint},
        input="x" * letters,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "fills the daemon's context" in done.stderr


@pytest.mark.parametrize(("budget", "cut"), [("1", True), ("600000", False)])
def test_translation_cuts_a_line_whose_budget_is_spent(endpoint: str, budget: str, cut: bool) -> None:
    said = "".join(f"This is line {number}.\n\n" for number in range(3))
    lines, told = run(endpoint, "examples/translate_lines.py", "--budget", budget, heard=said)
    assert told == ""
    assert [line.endswith("…") for line in lines] == [cut] * 3


def test_rewriting_says_what_the_target_alone_says_and_counts_the_drafts(endpoint: str) -> None:
    lines, told = run(endpoint, "examples/rewrite.py", "Use the past tense.", heard=TEXT)
    request = f"Use the past tense. Answer with the whole new text and nothing else.\n\n{TEXT}"
    with Client(endpoint) as client:
        turn = {"role": "user", "content": request}
        alone = client.complete(messages=[turn], max_tokens=len(TEXT) // 2 + 100, speculate=False)
    assert "\n".join(lines) == alone.text
    found = re.search(r"\((\d+) of (\d+) drafted tokens accepted; (\d+) tokens in (\d+) passes", told)
    assert found is not None, told
    accepted, _, tokens, passes = map(int, found.groups())
    assert tokens == len(alone.tokens)
    assert passes + accepted >= tokens - 1


def test_a_file_is_read_once(endpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "harbour.txt"
    file.write_text(TEXT)
    _, told = run(endpoint, "examples/ask_a_file.py", str(file), heard="When are they lit?\nBy whom?\n")
    for known, prompt in KNOWN.findall(told):
        assert int(prompt) - int(known) < 60, "only the question, and the marks around it"
    assert len(KNOWN.findall(told)) == 2
    _, told = run(endpoint, "examples/ask_a_file.py", str(file))
    read, known = map(int, re.findall(r"\d+", told))
    assert known > len(TEXT) > 60 > read


def test_a_voice_assistant_is_interrupted_by_whoever_speaks_again(endpoint: str) -> None:
    said = ["Tell me", "Tell me a story.", "", "No,", "No, tell me the time.", "", "Thank you.", ""]
    with Client(endpoint) as client:
        before = client.status(full=True).counters["outcomes"].get("cancelled", 0)
        _, told = run(endpoint, "examples/voice_assistant.py", heard="\n".join(said) + "\n")
        assert client.status(full=True).counters["outcomes"].get("cancelled", 0) == before + 2
    assert told.count("first word after") == 1, "only the last answer came to its end"


@pytest.mark.parametrize("program", ["rewrite.py", "voice_assistant.py"])  # blocking, asyncio
def test_an_example_without_a_daemon_says_so(program: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / program],
        env=os.environ | {"DRAFTD_ENDPOINT": f"ipc://{tmp_path}/none.sock"},
        input="Hello\n\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "no daemon answers at" in done.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_the_pages_programs_run(page: str, endpoint: str, tmp_path: Path) -> None:
    (block,) = [block for block in blocks(ROOT / page) if block.language == "python"]
    program = tmp_path / "program.py"
    program.write_text(block.text)
    lines, _ = run(endpoint, program)
    assert "tokens a second" in lines[-1] or float(lines[-1].split()[-1]) > 0


@pytest.mark.qwen
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("program", "arguments", "heard", "answer"),
    [
        ("customer_service.py", [], "My lamp arrived broken.\nIt is order 204518.\n", '": "204518"'),
        ("translate_lines.py", ["--to", "Spanish", "--budget", "60000"], "I missed my train.\n", "mi tren"),
        ("rewrite.py", ["Correct the spelling."], "We have recieved your letter.", "have received your"),
        ("ask_a_file.py", ["CONTRIBUTING.md"], "How do I run some of the tests?\n", "make test ARGS"),
        ("voice_assistant.py", [], "What is the capital of France?\n\n", "Paris"),
    ],
)
def test_what_an_example_says_makes_sense(
    program: str, arguments: list[str], heard: str, answer: str, real: str
) -> None:
    lines, told = run(real, f"examples/{program}", *arguments, heard=heard)
    assert answer in "\n".join([*lines, told])


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a daemon of the qwen2.5-coder pair, with a state of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRAFTD_BACKEND", "llama_cpp")
        patch.setenv("DRAFTD_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        with private_daemon("qwen2.5-coder", lambda status: None) as endpoint:
            yield endpoint
