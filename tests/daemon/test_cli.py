"""The real `draftd` command as a child process: its help, and how errors end it."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from draftd.daemon import cli
from draftd.ipc import messages
from draftd.ipc.messages import Generate
from tests.daemon.commands import WAIT, draftd
from tests.ipc import scripted
from tests.ipc.scripted import Say, ScriptedDaemon


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
    text = draftd("--help").stdout
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
    assert re.fullmatch(r"draftd \d+\.\d+\.\d+\n", draftd("--version").stdout)


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
    done = draftd(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


@pytest.mark.parametrize("arguments", [["run", "x"], ["chat"], ["status"]])
def test_no_daemon_exits_3_and_says_so(tmp_path: Path, arguments: list[str]) -> None:
    endpoint = f"ipc://{tmp_path}/d.sock"
    start = time.monotonic()
    done = draftd(*arguments, endpoint=endpoint)
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
    done = draftd("run", "Hi", endpoint=daemon.endpoint)
    assert (done.returncode, done.stderr) == (4, "draftd: this daemon serves a, not b\n")


def test_a_file_that_is_closed_to_us_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a model of the service's to `draftd plan`, by another user than its own."""

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/closed/x.gguf")

    monkeypatch.setattr(cli, "app", closed)
    monkeypatch.delenv("DRAFTD_DEBUG", raising=False)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "draftd: no permission to use /closed/x.gguf\n"


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
