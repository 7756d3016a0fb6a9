from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from draftd.ipc.errors import InvalidRequest
from tests.tiny import write_tiny
from tests.tiny_gguf import write_gguf

Program = Callable[[str], ModuleType]

# A peer that goes wrong in every way that one can; what it says when all is well is not looked at.
STAND_IN = """
import os, sys, time
from lines import Stopwatch, serve

def answering(text, tokens=3):
    return lambda request: Stopwatch().result(text, tokens)

def broken():
    raise RuntimeError("Check failed at a.cpp:1:\\nno such\\n  weights here\\n")

def fails(request):
    kind = NotImplementedError if request.get("temperature") else ValueError
    raise kind("nothing for " + request["text"])

def dies(request):
    print("out of luck", file=sys.stderr, flush=True)
    os._exit(7)

def hangs(request):
    time.sleep(600)

def offer(settings):
    {first}
    return {{
        "plain": lambda: answering("right"),
        "other": lambda: answering("wrong"),
        "broken": broken,
        "fails": lambda: fails,
        "dies": lambda: dies,
        "hangs": lambda: hangs,
        "none": "it has none",
    }}

serve(offer, "psutil", "no-such-library")
"""


@pytest.fixture
def stand_in(
    program: Program, write_peer: Callable[[str], None]
) -> Callable[..., tuple[Any, dict[str, str]]]:
    """stand_in(first): the peer whose `offer` begins with this; its context manager and the `missing`."""
    process = program("peer_process")

    def make(
        first: str = "pass", python: str = sys.executable, **settings: Any
    ) -> tuple[Any, dict[str, str]]:
        write_peer(STAND_IN.format(first=first))
        missing: dict[str, str] = {}
        asked = {"only": None, "mode_bytes": 0} | settings
        return process.peer("a_peer", python, asked, missing), missing

    return make


Made = Callable[..., tuple[Any, dict[str, str]]]
BODY = {"text": "a question"}
NONE = "no such form: it has none"


def test_a_mode_that_cannot_be_built_or_fails_takes_no_other_down(program: Program, stand_in: Made) -> None:
    failed = program("peer_process").PeerFailed
    running, missing = stand_in()
    with running as found:
        modes = {each.name: each for each in found.contenders}
        assert list(modes) == [f"a peer {name}" for name in ("plain", "other", "fails", "dies", "hangs")]
        assert missing == {"a peer broken": "RuntimeError: weights here", "a peer none": NONE}
        with pytest.raises(failed, match=r"^ValueError: nothing for a question$"):
            modes["a peer fails"].ask(BODY)
        with pytest.raises(failed, match=r"^no such form: nothing for a question$"):
            modes["a peer fails"].ask(BODY | {"temperature": 0.8})
        assert modes["a peer plain"].ask(BODY)["text"] == "right"
        assert modes["a peer plain"].memory() > 0
        before = modes["a peer plain"].memory()
        for name in ("dies", "plain"):  # the process is gone, and with it the others
            with pytest.raises(failed, match=r"^a peer ended with status 7: out of luck$"):
                modes[f"a peer {name}"].ask(BODY)
        assert modes["a peer plain"].memory() == before, "what it was while there was one"


@pytest.mark.parametrize(
    ("first", "python", "reason"),
    [
        ("import no_such_library", sys.executable, "ModuleNotFoundError: No module named 'no_such_library'"),
        ("os._exit(3)", sys.executable, "a peer ended with status 3: without a word"),
        ("os.write(2, b'h\\xe9'); os._exit(3)", sys.executable, "a peer ended with status 3: h\ufffd"),
        ("pass", "/nowhere/python", "/nowhere/python can't be run (No such file or directory)"),
    ],
)
def test_a_peer_that_cannot_begin_is_missing_with_its_reason(
    stand_in: Made, first: str, python: str, reason: str
) -> None:
    running, missing = stand_in(first, python)
    with running as found:
        assert found.contenders == []
    assert missing == {"a peer": reason}


def test_a_peer_that_hangs_is_killed(
    program: Program, stand_in: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = program("peer_process")
    running, _ = stand_in(only=["plain", "hangs"])
    with running as found:
        plain, hangs = found.contenders
        monkeypatch.setattr(process, "ANSWERING", 0.5)
        for each in (hangs, plain):  # they are one process
            with pytest.raises(
                process.PeerFailed, match=r"^a peer gave no answer within 0\.5 seconds and was killed$"
            ):
                each.ask(BODY)
    monkeypatch.setattr(process, "LOADING", 0.5)
    running, missing = stand_in("time.sleep(600)")
    with running as found:
        assert found.contenders == []
    assert missing == {"a peer": "a peer gave no answer within 0.5 seconds and was killed"}


def test_what_a_failed_peer_was_asked_for_is_not_called_unknown(program: Program, stand_in: Made) -> None:
    running, missing = stand_in("os._exit(3)", only=["plain"])
    with running:
        pass
    program("contenders").leave_out_unknown(["a peer plain", "a peer", "b plain"], [], missing)
    assert list(missing) == ["a peer", "b plain"]


def test_only_wants_names(run_main: Callable[..., ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_main("side_by_side", "--only")
    assert "argument --only: expected at least one argument" in capsys.readouterr().err


def test_an_interpreter_has_a_peers_name(
    run_main: Callable[..., ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_main("side_by_side", "--python", "/opt/peers/bin/python")
    assert "argument --python: /opt/peers/bin/python is no PEER=PATH" in capsys.readouterr().err


def test_only_what_is_wanted_is_built_and_only_while_memory_lasts(stand_in: Made) -> None:
    running, missing = stand_in(only=["other", "broken"])
    with running as found:
        assert [each.name for each in found.contenders] == ["a peer other"]
    assert list(missing) == ["a peer broken", "a peer none"], "what it lacks is told whatever is wanted"
    running, missing = stand_in(only=["other"], mode_bytes=2**60)
    with running as found:
        assert found.contenders == []
    assert missing["a peer other"].endswith("MiB of memory were left: end programs, or name fewer by --only")


def test_what_a_peer_offers_and_its_librarys_version_are_told_though_nothing_is_wanted(
    stand_in: Made,
) -> None:
    running, missing = stand_in(only=[])
    with running as found:
        assert found.contenders == []
        assert found.offered == ["plain", "other", "broken", "fails", "dies", "hangs", "none"]
        assert found.version == f"psutil {version('psutil')}, no-such-library of unknown version"
    assert missing == {"a peer none": NONE}


def test_a_peers_answer_tells_what_its_reader_waits_for(program: Program) -> None:
    waited_for = program("peer_process").waited_for
    text = "Red is one. Blue is another."
    arrivals = [[1.0, 4], [1.5, 11], [3.0, 12], [3.5, 28]]
    answer = waited_for({"text": text, "seconds": 4.0, "arrivals": arrivals})
    assert answer == {"text": text, "seconds": 4.0, "sentence_seconds": 3.0, "gaps": [0.5, 1.5, 0.5]}
    assert waited_for({"text": "Red", "seconds": 4.0, "arrivals": [[1.0, 3]]})["sentence_seconds"] == 4.0
    assert waited_for({"text": "Red", "seconds": 4.0}) == {"text": "Red", "seconds": 4.0}


def test_a_contender_that_fails_midway_is_out_and_the_others_go_on(program: Program) -> None:
    beside, process = program("side_by_side"), program("peer_process")
    asked: list[str] = []

    def answers(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
        def answer(body: dict[str, Any]) -> dict[str, Any]:
            asked.append(name)
            if name == "b" and len(asked) > 3:
                raise InvalidRequest("out of luck")
            return {"text": name, "tokens": 2, "first_seconds": 1.0, "seconds": 2.0}

        return answer

    contenders = [process.Contender(name, answers(name), lambda: 2**20, ()) for name in "abc"]
    prompt = beside.Prompt(question_id=1, category="c", turns=["?"])
    missing: dict[str, str] = {}
    results = beside.measure(contenders, prompt, {}, 0, 3, missing)
    assert sorted(asked[:3]) == ["a", "b", "c"]
    assert asked[3:].count("b") == 1
    assert sorted(result["contender"] for result in results) == [*"aaabccc"]
    assert {result["turn"] for result in results} == {0, 1, 2}
    assert missing == {"b": "out of luck"}


def test_draftd_beside_a_real_peer_at_a_temperature(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, shared, peers = (program(name) for name in ("side_by_side", "contenders", "report_peers"))
    for name, noise in (("target", 0.0), ("draft", 0.05)):
        write_gguf(write_tiny(tmp_path / name, noise=noise), tmp_path / f"{name}.gguf")
    # What a GGUF is converted to is what it was made from here.
    monkeypatch.setattr(shared, "ensure_transformers", lambda gguf, *more: gguf.with_suffix(""))
    (tmp_path / "catalog.toml").write_text(
        f'[models.target]\npath = "{tmp_path}/target.gguf"\n[models.draft]\npath = "{tmp_path}/draft.gguf"\n'
        '[pairs.tiny]\ntarget = "target"\ndraft = "draft"\n',
        "utf-8",
    )
    places = {"CATALOG": "catalog.toml", "CONFIG": os.devnull, "CACHE_DIR": "cache", "STATE_DIR": "state"}
    for name, place in places.items():
        monkeypatch.setenv(f"DRAFTD_{name}", str(tmp_path / place))
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.json"
    prompts.write_text(
        '{"question_id": 7, "category": "colours", "turns": ["Three colours, please."]}', "utf-8"
    )
    wanted = ["draftd off", "draftd model:4", "draftd target in process"]
    wanted += ["llama python plain", "llama python prompt lookup"]
    command = ["side_by_side.py", "--pair", "tiny", "--backend", "llama_cpp", "--prompts", str(prompts)]
    command += ["--max-tokens", "12", "--context", "256", "--threads", "1", "--temperature", "0.8"]
    command += ["--policies", "off", "model:4", "--json", str(out), "--only", *wanted, "llama server plain"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setitem(shared.OF_BACKEND, "llama_cpp", ("draftd_target", "llama_python"))
    beside.main()
    document = json.loads(out.read_text("utf-8"))
    results = {result["contender"]: result for result in document["results"]}
    assert sorted(results) == sorted(wanted)
    assert document["missing"] == {
        "llama server plain": "no such form: nothing of this name is offered",
        "llama python draft model": "no such form: llama-cpp-python brings no draft model of its own",
    }
    versions = {"draftd target": "draftd", "llama python": "llama-cpp-python"}
    assert document["versions"] == {name: f"{each} {version(each)}" for name, each in versions.items()}
    assert (document["context"], document["prompts"], document["asked"]) == (256, "prompts.jsonl", 1)
    off, drafting, target, plain, _ = (results[name] for name in wanted)
    # by the seed; the peer's draws are its own
    assert off["text"] == drafting["text"] == target["text"] != plain["text"]
    assert (target["tokens"], target["rounds"]) == (off["tokens"], off["rounds"])
    assert (off["drafted"], drafting["drafted"] > 0) == (0, True)
    assert all(result["memory_bytes"] > 2**20 for result in document["results"])
    assert plain["rounds"] >= 1
    text = peers.section(document)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    ends = [[cell.strip("| ") for cell in line.split(" | ")[-2:]] for line in rows[:6]]
    assert [same for same, _ in ends] == ["same", "-", "1/1", "1/1", "-", "other draws"]
    assert [as_draftd for _, as_draftd in ends[1:]] == ["-", "-", "-", "other draws", "other draws"]
    for name, result in results.items():
        assert len(result["gaps"]) >= 2, name
        assert result["first_seconds"] <= result["sentence_seconds"] <= result["seconds"], name
        assert sum(result["gaps"]) + result["first_seconds"] <= result["seconds"] + 1e-6, name
    assert f" llama python (llama-cpp-python {version('llama-cpp-python')})." in text


@pytest.mark.usefixtures("tiny_pair")
def test_peers_alone_start_no_daemon(
    program: Program,
    run_main: Callable[..., ModuleType],
    write_peer: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*given: Any) -> None:
        raise AssertionError("a daemon was started")

    shared = program("contenders")
    monkeypatch.setattr(program("side_by_side"), "draftd", never)
    # What a GGUF is converted to is what it was made from here.
    monkeypatch.setattr(shared, "ensure_transformers", lambda gguf, *more: gguf.with_suffix(""))
    monkeypatch.setitem(shared.OF_BACKEND, "llama_cpp", ("a_peer",))
    write_peer(STAND_IN.format(first="pass"))
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.json"
    prompts.write_text('{"question_id": 7, "category": "colours", "turns": ["Three?"]}', "utf-8")
    given = ["--pair", "tiny", "--backend", "llama_cpp", "--prompts", prompts, "--json", out]
    run_main("side_by_side", *given, "--only", "a peer plain")
    document = json.loads(out.read_text("utf-8"))
    assert [result["contender"] for result in document["results"]] == ["a peer plain"]
