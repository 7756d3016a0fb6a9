"""`draftd run` against a scripted daemon: what it asks, reads and shows, and how it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from draftd.ipc import messages, parts
from draftd.ipc.messages import Generate
from draftd.ipc.parts import Grammar
from draftd.ipc.progress import CREDIT
from tests.daemon.commands import DRAFTD, WAIT, begin_only, draftd
from tests.ipc import scripted
from tests.ipc.scripted import Say, ScriptedDaemon


def test_run_streams_the_answer(daemon: ScriptedDaemon) -> None:
    done = draftd("run", "Hi", "--system", "Be brief", endpoint=daemon.endpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello, Wörld!\n", "")
    sent = daemon.wait_for(Generate)
    assert [(turn.role, turn.content) for turn in sent.messages] == [("system", "Be brief"), ("user", "Hi")]
    assert sent == Generate(
        id=sent.id, messages=sent.messages, credit=CREDIT
    )  # what is not given has the protocol's default


def test_run_shows_text_as_it_comes(daemon: ScriptedDaemon) -> None:
    daemon.script = begin_only
    child = subprocess.Popen(
        [*DRAFTD, "run", "Hi", "--endpoint", daemon.endpoint],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    assert child.stdout is not None
    assert child.stdout.read(4) == b"Once"
    child.terminate()
    child.communicate(timeout=WAIT)


def test_run_asks_though_standard_input_is_closed(daemon: ScriptedDaemon) -> None:
    daemon.script = begin_only
    closed = [sys.executable, "-c", "import os, sys; os.close(0); os.execv(sys.argv[1], sys.argv[1:])"]
    child = subprocess.Popen(
        [*closed, *DRAFTD, "run", "Hi", "--endpoint", daemon.endpoint], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.read(4) == b"Once"
    child.terminate()
    child.communicate(timeout=WAIT)


def test_run_passes_options_on(daemon: ScriptedDaemon) -> None:
    options = "--max-tokens 5 --temperature 0.5 --top-k 4 --top-p 0.9 --min-p 0.1 --seed 9 --stop a --stop b"
    draftd("run", "Hi", "--raw", "--speculate", "off", *options.split(), endpoint=daemon.endpoint)
    sent = daemon.wait_for(Generate)
    assert sent == Generate(
        id=sent.id, prompt="Hi", max_tokens=5, temperature=0.5, top_k=4, top_p=0.9, min_p=0.1, seed=9,
        stop=["a", "b"], speculate="off", credit=CREDIT,
    )  # fmt: skip


def test_run_passes_on_what_shapes_an_answer(daemon: ScriptedDaemon, tmp_path: Path) -> None:
    options = (
        "--repetition-penalty 1.2 --presence-penalty 0.5 --frequency-penalty 0.25 --logit-bias 7=-2.5 "
        "--logit-bias 9=1 --stop-token 5 --ignore-eos --speculate model:4 --verify rejection -n 2 "
        "--logprobs 3"
    )
    draftd("run", "Hi", "--raw", "--regex", "a+", *options.split(), endpoint=daemon.endpoint)
    sent = daemon.wait_for(Generate)
    assert sent == Generate(
        id=sent.id, prompt="Hi", repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.25,
        logit_bias={"7": -2.5, "9": 1.0}, stop_tokens=[5], ignore_eos=True, speculate="model:4",
        verify="rejection", n=2, logprobs=3, grammar=Grammar(kind="regex", source="a+"),
        credit=CREDIT,
    )  # fmt: skip
    for name, option, kind in (
        ("s.json", "--schema", "json_schema"),
        ("g.gbnf", "--grammar", "gbnf"),
        ("g.lark", "--grammar", "lark"),
    ):
        (tmp_path / name).write_text("{}")
        assert draftd("run", "Hi", option, str(tmp_path / name), endpoint=daemon.endpoint).returncode == 0
        assert daemon.wait_for(Generate).grammar == Grammar.model_validate({"kind": kind, "source": "{}"})
    for wrong in (["--regex", "a", "--schema", str(tmp_path / "s.json")], ["--logit-bias", "x=1"]):
        assert draftd("run", "Hi", *wrong, endpoint=daemon.endpoint).returncode == 2


def test_run_shows_several_answers_one_after_the_other(daemon: ScriptedDaemon) -> None:
    def two(message: messages.ClientMessage, say: scripted.Say) -> None:
        if not isinstance(message, Generate):
            scripted.answer(message, say)
            return
        say(messages.Accepted(id=message.id, seed=7))
        told = parts.Logprob(token=1, text="a", bytes=[97], logprob=-0.5)
        part = messages.Tokens(id=message.id, text="a1 ", tokens=[1], drafted=[False], logprobs=[told])
        for index, text, reason in (
            (1, "b1 ", None), (0, "a1 ", None), (1, "b2", "stop"), (0, "a2", "length"),
        ):  # fmt: skip
            say(part.model_copy(update={"index": index, "text": text, "finish_reason": reason}))
        end = parts.AnswerEnd(finish_reason="stop", completion_tokens=2, stats=scripted.STATS)
        say(scripted.done(message.id).model_copy(update={"answers": [end, end]}))

    daemon.script = two
    shown = draftd("run", "Hi", "-n", "2", endpoint=daemon.endpoint)
    assert shown.stdout == "--- 1 of 2 ---\na1 a2\n--- 2 of 2 ---\nb1 b2\n"
    parsed = json.loads(draftd("run", "Hi", "-n", "2", "--json", endpoint=daemon.endpoint).stdout)
    assert [each["text"] for each in parsed["answers"]] == ["a1 a2", "b1 b2"]
    assert "logprobs" not in parsed
    listed = draftd("run", "Hi", "-n", "2", "--logprobs", "0", endpoint=daemon.endpoint)
    assert listed.stderr.splitlines() == ["   -0.500  'a'"] * 4


def test_run_json_is_one_object(daemon: ScriptedDaemon) -> None:
    done = draftd("run", "Hi", "--json", endpoint=daemon.endpoint)
    assert json.loads(done.stdout) == {
        "text": "Hello, Wörld!",
        "tokens": [1, 2, 3, 4],
        "finish_reason": "stop",
        "usage": scripted.USAGE.model_dump(),
        "stats": scripted.STATS.model_dump(),
    }
    assert done.stdout.count("\n") == 1


def test_run_stats_go_to_standard_error(daemon: ScriptedDaemon) -> None:
    done = draftd("run", "Hi", "--stats", endpoint=daemon.endpoint)
    assert done.stdout == "Hello, Wörld!\n"
    assert done.stderr == (
        "4 tokens in 2 passes, 3 of 4 drafted tokens accepted, "
        "50.0 tokens a second, first after 0.04 s, seed 7\n"
    )


@pytest.mark.parametrize(
    ("arguments", "given", "asked"),
    [
        (["explain this"], "some\ncode\n", "explain this\n\nsome\ncode"),
        (["-"], "from a pipe\n", "from a pipe"),
        ([], "from a pipe\n", "from a pipe"),
        (["alone"], "", "alone"),
    ],
)
def test_run_reads_standard_input(
    daemon: ScriptedDaemon, arguments: list[str], given: str, asked: str
) -> None:
    draftd("run", *arguments, endpoint=daemon.endpoint, given=given)
    assert daemon.wait_for(Generate).messages[0].content == asked


def test_run_raw_keeps_every_character(daemon: ScriptedDaemon) -> None:
    draftd("run", "--raw", endpoint=daemon.endpoint, given="def f():\n    ")
    assert daemon.wait_for(Generate).prompt == "def f():\n    "


def test_run_refuses_input_that_is_no_text(daemon: ScriptedDaemon) -> None:
    done = subprocess.run(
        [*DRAFTD, "run", "--endpoint", daemon.endpoint], input=b"\xff\xfe", capture_output=True, timeout=WAIT
    )
    assert (done.returncode, done.stderr) == (2, b"draftd: standard input is not UTF-8 text\n")


def test_ctrl_c_cancels_and_exits_130(daemon: ScriptedDaemon) -> None:
    daemon.script = begin_only
    child = subprocess.Popen(
        [*DRAFTD, "run", "Hi", "--endpoint", daemon.endpoint],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.read(4) == b"Once"
    os.kill(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=WAIT)
    assert child.returncode == 130
    assert errors == b""
    assert daemon.wait_for(Generate).id == daemon.wait_for(messages.Cancel).id


def test_a_closed_pipe_ends_quietly_and_cancels(daemon: ScriptedDaemon) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate):
            for _ in range(2000):
                say(scripted.tokens(message.id, "line\n" * 100, [1], [False], [500]))
        else:
            scripted.answer(message, say)

    daemon.script = script
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -1', "-", *DRAFTD, "run", "Hi", "--endpoint", daemon.endpoint],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("line\n", "")
    daemon.wait_for(messages.Cancel)
