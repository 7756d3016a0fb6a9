"""`draftd chat` and `draftd run` in a terminal, against a scripted daemon."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time

from draftd.daemon import terminal
from draftd.ipc import messages
from draftd.ipc.messages import Generate
from tests.daemon.commands import DRAFTD, WAIT, begin_only
from tests.ipc import scripted
from tests.ipc.scripted import Say, ScriptedDaemon


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
    daemon.script = begin_only
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
