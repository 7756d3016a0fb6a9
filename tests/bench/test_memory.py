from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from draftd.daemon.settings import load as load_settings

Program = Callable[[str], ModuleType]
Run = Callable[..., ModuleType]

MUCH = 100_000_000  # bytes; what a process takes by chance is far less
# One form holds much from its loading on, one while it answers, one never.
PEER = f"""
import os, sys
from lines import Stopwatch, serve

HELD = []

def plain(request):
    return Stopwatch().result("right", 3)

def holding():
    HELD.append(b"x" * {MUCH})
    return plain

def passing(request):
    given_back = b"x" * {MUCH}
    return Stopwatch().result("right", 3)

def fails(request):
    raise ValueError("not today")

def dies():
    print("out of luck", file=sys.stderr, flush=True)
    os._exit(7)

def offer(settings):
    return {{
        "holding": holding,
        "passing": lambda: passing,
        "plain": lambda: plain,
        "none": "it has none",
        "fails": lambda: fails,
        "dies": dies,
    }}

serve(offer, "psutil")
"""


@pytest.fixture
def measured(
    program: Program,
    run_main: Run,
    write_peer: Callable[[str], None],
    tiny_pair: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., dict[str, Any]]:
    """measured(*options): the document that the program writes of the tiny pair and of the peer above."""
    shared = program("contenders")
    # What a GGUF is converted to is what it was made from here.
    monkeypatch.setattr(shared, "ensure_transformers", lambda gguf, *more: gguf.with_suffix(""))
    monkeypatch.setitem(shared.OF_BACKEND, "llama_cpp", ("a_peer",))
    write_peer(PEER)
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.json"
    prompts.write_text(
        '{"question_id": 7, "category": "colours", "turns": ["Three colours, please."]}', "utf-8"
    )

    def measure(*options: str) -> dict[str, Any]:
        given = ("--pair", "tiny", "--backend", "llama_cpp", "--context", "256", "--threads", "1")
        run_main("memory", *given, "--max-tokens", "4", "--prompts", prompts, "--json", out, *options)
        document: dict[str, Any] = json.loads(out.read_text("utf-8"))
        return document

    return measure


Measured = Callable[..., dict[str, Any]]


def test_each_form_of_a_peer_has_a_process_of_its_own(measured: Measured) -> None:
    names = ["holding", "passing", "plain", "fails", "dies", "nowhere"]
    document = measured("--only", *(f"a peer {name}" for name in names))
    forms = {form["name"]: form for form in document["forms"]}
    assert list(forms) == ["a peer holding", "a peer passing", "a peer plain"]
    assert document["missing"] == {
        "a peer none": "no such form: it has none",
        "a peer fails": "ValueError: not today",
        "a peer dies": "a peer ended with status 7: out of luck",
        "a peer nowhere": "no such form: nothing of this name is offered",
    }
    assert document["versions"] == {"a peer": f"psutil {version('psutil')}"}
    holding, passing, plain = forms.values()
    half = MUCH / 2
    assert holding["after_bytes"] - plain["after_bytes"] > half, "the next has nothing of it"
    assert passing["peak_bytes"] - passing["after_bytes"] > half, "what was given back counts in the peak"
    assert plain["peak_bytes"] - plain["after_bytes"] < half


def test_draftd_is_measured_with_and_without_its_draft(
    measured: Measured, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["draftd, target alone", "draftd"]
    document = measured("--only", *names)
    assert [form["name"] for form in document["forms"]] == names
    assert (document["kind"], document["missing"], document["slots"]) == ("memory", {}, 4)
    for form in document["forms"]:
        assert form["after_bytes"] > 2**25, "an interpreter and its libraries, twice"
        assert form["peak_bytes"] > 0.9 * form["after_bytes"]
    assert "| draftd, target alone | " in capsys.readouterr().out
    assert "### Memory of each form alone: tiny, target in llama_cpp" in program("report_limits").section(
        document
    )


def test_only_drafting_has_a_draft_in_memory(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for name, (policy, variables) in program("memory").OWN.items():
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        found[name] = policy, load_settings(None).speculate
    assert found == {"draftd, target alone": ("off", False), "draftd": ("auto", True)}


def test_where_nothing_can_be_had_nothing_is_written(measured: Measured, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^nothing was measured: no form is left$"):
        measured("--only", "a peer none")
    assert not (tmp_path / "out.json").exists()


def test_the_peak_is_the_kernels_and_unknown_where_it_tells_none(program: Program, tmp_path: Path) -> None:
    peak = program("memory").peak
    for pid, text in ((1, "Name:\tx: y\nVmHWM:\t    2048 kB\nVmRSS:\t    1 kB\n"), (2, "VmHWM:\t1024 kB\n")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "status").write_text(text)
    assert peak([1, 2], tmp_path) == 3 * 2**20
    assert peak([1, 3], tmp_path) is None
    (tmp_path / "2" / "status").write_text("Name:\tx\n")
    assert peak([1, 2], tmp_path) is None


def test_a_process_that_ends_while_it_answers_has_no_figures(program: Program) -> None:
    memory, process = program("memory"), program("peer_process")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        child.communicate(b"\n")
        return {}

    contender = process.Contender("a", answer, lambda: 0, (child.pid,))
    with pytest.raises(process.PeerFailed, match=r"^a process of it ended while it answered$"):
        memory.measure(contender, {})


DOCUMENT: dict[str, Any] = {
    "max_tokens": 9,
    "threads": 2,
    "context": 512,
    "slots": 4,
    "target_bytes": 4 * 2**20,
    "versions": {"a peer": "it 1.2, its 3"},
    "missing": {"a peer draft": 'RuntimeError: no "/home/me/model.xml"'},
    "forms": [{"name": "draftd", "peak_bytes": 10 * 2**20, "after_bytes": 8 * 2**20}],
}


def test_the_table_by_hand(program: Program) -> None:
    caption, _, *table = program("memory").lines(DOCUMENT)
    assert "a context of 512 positions: draftd for 4 requests at once" in caption
    assert "GGUF file of 4 MiB" in caption
    assert "this system tells no peak" not in caption
    assert caption.endswith(" Versions: a peer (it 1.2, its 3).")
    assert table == [
        "| form | peak MiB | after the answer MiB | times the target's file |",
        "|---|---|---|---|",
        "| draftd | 10 | 8 | 2.50 |",
        "",
        'a peer draft: not measured (RuntimeError: no "model.xml").',
        "",
    ]


def test_where_there_is_no_peak_the_table_says_so(program: Program) -> None:
    forms = [{"name": "draftd", "peak_bytes": None, "after_bytes": 8 * 2**20}]
    caption, _, *table = program("memory").lines(DOCUMENT | {"forms": forms, "versions": {}})
    assert "this system tells no peak; *times* is of the memory after the answer." in caption
    assert "Versions" not in caption
    assert table[2] == "| draftd | - | 8 | 2.00 |"
