"""The real `draftd` command as a child process, against a scripted daemon on a real socket."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from draftd.daemon import cli, terminal
from draftd.ipc import messages, parts
from draftd.ipc.messages import Generate
from draftd.ipc.parts import Grammar
from draftd.ipc.progress import CREDIT
from tests.ipc import scripted
from tests.ipc.scripted import Say, ScriptedDaemon

DRAFTD = [sys.executable, "-m", "draftd.daemon.cli"]
WAIT = 20.0  # seconds a child may take for anything


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    with ScriptedDaemon(tmp_path / "d.sock") as running:
        yield running


def _draftd(
    *arguments: str, endpoint: str = "", given: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DRAFTD, *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=WAIT,
        env={**os.environ, "DRAFTD_ENDPOINT": endpoint, **(environment or {})},
    )


def _begin_only(message: messages.ClientMessage, say: Say) -> None:
    if isinstance(message, Generate):
        say(scripted.tokens(message.id, "Once", [1], [False], [4]))
    elif isinstance(message, messages.Cancel):
        say(scripted.done(message.id, "cancelled"))
    else:
        scripted.answer(message, say)


# ---- help and errors


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "--help"], ["serve", "--help"]])
def test_help_needs_no_engine(arguments: list[str]) -> None:
    program = (
        "import sys; from draftd.daemon import cli\n"
        "try: cli.main()\n"
        "finally: print('LOADED', *{'torch', 'llama_cpp', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=WAIT
    )
    assert done.returncode == 0
    assert "Usage: draftd" in done.stdout
    assert done.stdout.endswith("LOADED\n")


def test_help_lists_every_command() -> None:
    text = _draftd("--help").stdout
    assert re.findall(r"^│ ([a-z]+) ", text, re.MULTILINE) == cli.ORDER


def test_a_command_that_cannot_be_imported_does_not_break_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.ELSEWHERE, "bench", ("draftd.missing", "bench", "Missing."))
    monkeypatch.setattr(sys, "argv", ["draftd", "--help"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0


@pytest.mark.parametrize("name", ["run", "chat"])
def test_the_first_line_of_help_is_the_commands_own(name: str) -> None:
    assert cli._load(name).help == cli.ELSEWHERE[name][2]


def test_version() -> None:
    assert re.fullmatch(r"draftd \d+\.\d+\.\d+\n", _draftd("--version").stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["run", "--no-such-option", "x"],
        ["run", "--max-tokens", "0", "x"],
        ["run", "--temperature", "warm", "x"],
        ["run", "--raw", "--system", "s", "x"],
        ["run"],
        ["run", "-"],
        ["status", "--endpoint", "tcp://127.0.0.1:5555"],
        ["status", "--endpoint", "ipc:///" + "x" * 200],
        ["serve", "--slots", "0"],
        ["serve", "--backend", "magic"],
        ["serve", "--config", "/no/such/file.toml"],
    ],
    ids=" ".join,
)
def test_wrong_options_exit_2(arguments: list[str]) -> None:
    done = _draftd(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


@pytest.mark.parametrize("arguments", [["run", "x"], ["chat"], ["status"]])
def test_no_daemon_exits_3_and_says_so(tmp_path: Path, arguments: list[str]) -> None:
    endpoint = f"ipc://{tmp_path}/d.sock"
    start = time.monotonic()
    done = _draftd(*arguments, endpoint=endpoint)
    assert done.returncode == 3
    assert done.stderr == f"draftd: no daemon answers at {endpoint}; start it with `draftd serve`\n"
    assert time.monotonic() - start < 5


def test_the_daemons_error_is_one_line_and_its_exit_status(daemon: ScriptedDaemon) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate):
            say(messages.Error(id=message.id, code="model_not_found", message="this daemon serves a, not b"))
        else:
            scripted.answer(message, say)

    daemon.script = script
    done = _draftd("run", "Hi", endpoint=daemon.endpoint)
    assert (done.returncode, done.stderr) == (4, "draftd: this daemon serves a, not b\n")


def test_the_unexpected_says_how_to_see_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(cli, "app", broken)
    monkeypatch.delenv("DRAFTD_DEBUG", raising=False)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == (
        "draftd: unexpected KeyError: 'x'; DRAFTD_DEBUG=1 shows where, and a report with that is welcome\n"
    )
    monkeypatch.setenv("DRAFTD_DEBUG", "1")
    with pytest.raises(KeyError):
        cli.main()


# ---- run


def test_run_streams_the_answer(daemon: ScriptedDaemon) -> None:
    done = _draftd("run", "Hi", "--system", "Be brief", endpoint=daemon.endpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello, Wörld!\n", "")
    sent = daemon.wait_for(Generate)
    assert [(turn.role, turn.content) for turn in sent.messages] == [("system", "Be brief"), ("user", "Hi")]
    assert sent == Generate(
        id=sent.id, messages=sent.messages, credit=CREDIT
    )  # what is not given has the protocol's default


def test_run_shows_text_as_it_comes(daemon: ScriptedDaemon) -> None:
    daemon.script = _begin_only
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


def test_run_passes_options_on(daemon: ScriptedDaemon) -> None:
    options = "--max-tokens 5 --temperature 0.5 --top-k 4 --top-p 0.9 --min-p 0.1 --seed 9 --stop a --stop b"
    _draftd("run", "Hi", "--raw", "--speculate", "off", *options.split(), endpoint=daemon.endpoint)
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
    _draftd("run", "Hi", "--raw", "--regex", "a+", *options.split(), endpoint=daemon.endpoint)
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
        assert _draftd("run", "Hi", option, str(tmp_path / name), endpoint=daemon.endpoint).returncode == 0
        assert daemon.wait_for(Generate).grammar == Grammar.model_validate({"kind": kind, "source": "{}"})
    for wrong in (["--regex", "a", "--schema", str(tmp_path / "s.json")], ["--logit-bias", "x=1"]):
        assert _draftd("run", "Hi", *wrong, endpoint=daemon.endpoint).returncode == 2


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
    shown = _draftd("run", "Hi", "-n", "2", endpoint=daemon.endpoint)
    assert shown.stdout == "--- 1 of 2 ---\na1 a2\n--- 2 of 2 ---\nb1 b2\n"
    parsed = json.loads(_draftd("run", "Hi", "-n", "2", "--json", endpoint=daemon.endpoint).stdout)
    assert [each["text"] for each in parsed["answers"]] == ["a1 a2", "b1 b2"]
    assert "logprobs" not in parsed
    listed = _draftd("run", "Hi", "-n", "2", "--logprobs", "0", endpoint=daemon.endpoint)
    assert listed.stderr.splitlines() == ["   -0.500  'a'"] * 4


def test_run_json_is_one_object(daemon: ScriptedDaemon) -> None:
    done = _draftd("run", "Hi", "--json", endpoint=daemon.endpoint)
    assert json.loads(done.stdout) == {
        "text": "Hello, Wörld!",
        "tokens": [1, 2, 3, 4],
        "finish_reason": "stop",
        "usage": scripted.USAGE.model_dump(),
        "stats": scripted.STATS.model_dump(),
    }
    assert done.stdout.count("\n") == 1


def test_run_stats_go_to_standard_error(daemon: ScriptedDaemon) -> None:
    done = _draftd("run", "Hi", "--stats", endpoint=daemon.endpoint)
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
    _draftd("run", *arguments, endpoint=daemon.endpoint, given=given)
    assert daemon.wait_for(Generate).messages[0].content == asked


def test_run_raw_keeps_every_character(daemon: ScriptedDaemon) -> None:
    _draftd("run", "--raw", endpoint=daemon.endpoint, given="def f():\n    ")
    assert daemon.wait_for(Generate).prompt == "def f():\n    "


def test_run_refuses_input_that_is_no_text(daemon: ScriptedDaemon) -> None:
    done = subprocess.run(
        [*DRAFTD, "run", "--endpoint", daemon.endpoint], input=b"\xff\xfe", capture_output=True, timeout=WAIT
    )
    assert (done.returncode, done.stderr) == (2, b"draftd: standard input is not UTF-8 text\n")


def test_ctrl_c_cancels_and_exits_130(daemon: ScriptedDaemon) -> None:
    daemon.script = _begin_only
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


# ---- status


def test_status_shows_a_table(daemon: ScriptedDaemon) -> None:
    lines = _draftd("status", endpoint=daemon.endpoint).stdout.splitlines()
    assert lines[0].split() == ["state", "ready"]
    assert lines[1].split() == ["pair", "tiny"]


def test_status_while_loading(daemon: ScriptedDaemon) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, messages.GetStatus):
            say(
                messages.Status(
                    id=message.id, state="loading", detail="loading 43 %", progress=0.43, pair="tiny"
                )
            )
        else:
            scripted.answer(message, say)

    daemon.script = script
    assert _draftd("status", endpoint=daemon.endpoint).stdout.splitlines()[0].split(maxsplit=1) == [
        "state",
        "loading 43 %",
    ]
    now = json.loads(_draftd("status", "--json", endpoint=daemon.endpoint).stdout)
    assert (now["state"], now["progress"]) == ("loading", 0.43)


# ---- in a terminal


class Terminal:
    """A child on a pseudo-terminal, and what it has shown."""

    def __init__(self, *arguments: str) -> None:
        child, self.tty = pty.openpty()
        environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        self.process = subprocess.Popen(
            [*DRAFTD, *arguments], stdin=self.tty, stdout=self.tty, stderr=self.tty,
            env={**environment, "TERM": "xterm"}, start_new_session=True, preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(self.tty)
        self.tty = child
        self.shown = ""

    def expect(self, text: str) -> str:
        """What was shown up to and with a text, which must come."""
        end = time.monotonic() + WAIT
        while text not in self.shown:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} never came after {self.shown!r}"
            if select.select([self.tty], [], [], left)[0]:
                self.shown += self._read()
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def type(self, text: str) -> None:
        os.write(self.tty, text.encode())

    def close(self) -> int:
        """Wait for the end of the child, and return its exit status."""
        try:
            return self.process.wait(WAIT)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.tty)

    def _read(self) -> str:
        try:
            return os.read(self.tty, 65536).decode()
        except OSError as error:  # Linux's way to say that the child is gone
            raise AssertionError(f"the child ended after {self.shown!r}") from error


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that ^C typed there becomes SIGINT


def test_chat_keeps_the_turns(daemon: ScriptedDaemon) -> None:
    chat = Terminal("chat", "--system", "Be brief", "--stats", "--endpoint", daemon.endpoint)
    chat.expect("tiny: /reset starts over")
    chat.expect("> ")
    chat.type("one\r")
    chat.expect("Hello, Wörld!")
    chat.expect("50.0 tokens a second")
    chat.expect("> ")
    chat.type("two\r")
    chat.expect("Hello, Wörld!")
    chat.expect("> ")
    chat.type("/reset\r")
    chat.expect("> ")
    chat.type("three\r")
    chat.expect("Hello, Wörld!")
    chat.expect("> ")
    chat.type("\x04")  # Ctrl-D
    assert chat.close() == 0
    asked = [[turn.content for turn in daemon.wait_for(Generate).messages] for _ in range(3)]
    assert asked == [
        ["Be brief", "one"],
        ["Be brief", "one", "Hello, Wörld!", "two"],
        ["Be brief", "three"],
    ]


def test_chat_ctrl_c_stops_the_answer_only(daemon: ScriptedDaemon) -> None:
    daemon.script = _begin_only
    chat = Terminal("chat", "--endpoint", daemon.endpoint)
    chat.expect("> ")
    chat.type("one\r")
    chat.expect("Once")
    chat.type("\x03")
    chat.expect("[stopped]")
    daemon.wait_for(messages.Cancel)
    chat.expect("> ")
    daemon.script = scripted.answer
    chat.type("two\r")
    chat.expect("Hello, Wörld!")
    chat.expect("> ")
    chat.type("/quit\r")
    assert chat.close() == 0
    assert [turn.content for turn in daemon.wait_for(Generate).messages] == ["one", "Once", "two"]


def test_chat_goes_on_after_an_error(daemon: ScriptedDaemon) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, Generate):
            say(messages.Error(id=message.id, code="context_overflow", message="too long: /reset"))
        else:
            scripted.answer(message, say)

    daemon.script = script
    chat = Terminal("chat", "--endpoint", daemon.endpoint)
    chat.expect("> ")
    chat.type("one\r")
    chat.expect("draftd: too long: /reset")
    chat.expect("> ")
    daemon.script = scripted.answer
    chat.type("two\r")
    chat.expect("Hello, Wörld!")
    chat.expect("> ")
    chat.type("/quit\r")
    assert chat.close() == 0
    daemon.wait_for(Generate)
    assert [turn.content for turn in daemon.wait_for(Generate).messages] == ["two"]


def test_chat_marks_drafted_tokens(daemon: ScriptedDaemon) -> None:
    chat = Terminal("chat", "--show-drafts", "--endpoint", daemon.endpoint)
    chat.expect("> ")
    chat.type("one\r")
    green, plain = terminal.GREEN, terminal.PLAIN
    chat.expect(f"{green}Hello{plain}, {green}Wörld{plain}{green}!{plain}")
    chat.type("/quit\r")
    assert chat.close() == 0


def test_run_in_a_terminal_shows_the_loading(daemon: ScriptedDaemon) -> None:
    looks: list[int] = []

    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, messages.GetStatus) and len(looks) < 2:
            looks.append(1)
            say(messages.Status(id=message.id, state="loading", detail=f"loading {len(looks)} %"))
        else:
            scripted.answer(message, say)

    daemon.script = script
    run = Terminal("run", "Hi", "--endpoint", daemon.endpoint)
    run.expect("loading 1 %")
    run.expect("loading 2 %")
    assert run.expect("Hello, Wörld!").startswith("\r\x1b[K")
    assert run.close() == 0


def test_text_is_not_marked_where_the_daemon_does_not_tell() -> None:
    event = messages.Tokens(id="1", text="ab", tokens=[1, 2], drafted=[True, False])
    assert terminal.marked(event) == "ab"
    assert terminal.marked(event.model_copy(update={"drafted": [True, True]})) == "\x1b[32mab\x1b[0m"
