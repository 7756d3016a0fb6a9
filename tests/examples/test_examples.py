"""Each example as a user runs it: a process of its own against a real daemon of a tiny model.

A tiny model says nothing that makes sense; what is held here is what the examples do with the daemon.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from draftd.ipc import Client
from tests.daemon.conftest import Daemon, serving
from tests.docs.pages import blocks
from tests.tiny import write_tiny
from tests.tiny_gguf import write_gguf

ROOT = Path(__file__).parents[2]
KNOWN = re.compile(r"(\d+) of (\d+) prompt tokens were known")
TEXT = "The lamps in the harbour are lit at dusk. A keeper lights them, and has done so for forty years."


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose context holds prompts of a token a letter."""
    files = tmp_path_factory.mktemp("tiny")
    write_tiny(files / "target", context=4096)
    write_gguf(write_tiny(files / "noisy", noise=0.15, context=4096), files / "draft.gguf")
    with serving(tmp_path_factory.mktemp("examples"), files) as start:
        yield start(context="4096")


def run(daemon: Daemon, program: str | Path, *arguments: str, heard: str = "") -> tuple[list[str], str]:
    """An example's lines of output, and what it told beside them."""
    done = subprocess.run(
        [sys.executable, ROOT / program, *arguments],
        env=os.environ | {"DRAFTD_ENDPOINT": daemon.endpoint},
        input=heard.encode(),
        capture_output=True,
        timeout=100,
    )
    told = done.stderr.decode()
    assert done.returncode == 0, told
    return done.stdout.decode().removesuffix("\n").split("\n"), told


def test_customer_service_gives_a_ticket_of_the_given_form(daemon: Daemon) -> None:
    lines, told = run(
        daemon, "examples/customer_service.py", heard="My lamp arrived broken.\nIt is order 123456.\n"
    )
    assert "Lumen" in lines[0]
    tickets = [json.loads(each) for each in re.findall(r"^ +(\{.*\})  \(", told, re.MULTILINE)]
    assert len(tickets) == 2
    for ticket in tickets:
        assert ticket.keys() == {"topic", "order_number", "needs_colleague"}
        assert isinstance(ticket["needs_colleague"], bool)
    (_, first), (again, _) = [(int(known), int(prompt)) for known, prompt in KNOWN.findall(told)]
    assert again >= first, "the second turn starts from the first one's cache"


@pytest.mark.parametrize(("budget", "cut"), [("1", True), ("600000", False)])
def test_translation_cuts_a_line_whose_budget_is_spent(daemon: Daemon, budget: str, cut: bool) -> None:
    said = "".join(f"This is line {number}.\n\n" for number in range(3))
    lines, told = run(daemon, "examples/translate_lines.py", "--budget", budget, heard=said)
    assert told == ""
    assert [line.endswith("…") for line in lines] == [cut] * 3


def test_rewriting_says_what_the_target_alone_says_and_counts_the_drafts(daemon: Daemon) -> None:
    lines, told = run(daemon, "examples/rewrite.py", "Use the past tense.", heard=TEXT)
    request = f"Use the past tense. Answer with the whole new text and nothing else.\n\n{TEXT}"
    alone = daemon.client().complete(
        messages=[{"role": "user", "content": request}], max_tokens=len(TEXT) // 2 + 100, speculate=False
    )
    assert "\n".join(lines) == alone.text
    found = re.search(r"\((\d+) of (\d+) drafted tokens accepted; (\d+) tokens in (\d+) passes", told)
    assert found is not None, told
    accepted, _, tokens, passes = map(int, found.groups())
    assert tokens == len(alone.tokens)
    assert passes + accepted >= tokens - 1


def test_a_file_is_read_once(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "harbour.txt"
    file.write_text(TEXT)
    _, told = run(daemon, "examples/ask_a_file.py", str(file), heard="When are they lit?\nBy whom?\n")
    for known, prompt in KNOWN.findall(told):
        assert int(prompt) - int(known) < 60, "only the question, and the marks around it"
    assert len(KNOWN.findall(told)) == 2
    _, told = run(daemon, "examples/ask_a_file.py", str(file))
    read, known = map(int, re.findall(r"\d+", told))
    assert known > len(TEXT) > 60 > read


def test_a_voice_assistant_is_interrupted_by_whoever_speaks_again(daemon: Daemon) -> None:
    said = ["Tell me", "Tell me a story.", "", "No,", "No, tell me the time.", "", "Thank you.", ""]
    with Client(daemon.endpoint) as client:
        before = client.status(full=True).counters["outcomes"].get("cancelled", 0)
        _, told = run(daemon, "examples/voice_assistant.py", heard="\n".join(said) + "\n")
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
def test_the_pages_programs_run(page: str, daemon: Daemon, tmp_path: Path) -> None:
    (block,) = [block for block in blocks(ROOT / page) if block.language == "python"]
    program = tmp_path / "program.py"
    program.write_text(block.text)
    lines, _ = run(daemon, program)
    assert "tokens a second" in lines[-1] or float(lines[-1].split()[-1]) > 0
