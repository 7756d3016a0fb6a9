"""What systemd hears from a real daemon, and what SIGHUP and SIGTERM do to it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from draftd.daemon.notify import PATIENCE, Notifier
from draftd.daemon.reload import read_again
from draftd.daemon.settings import load
from draftd.daemon.supervisor import UNKILLABLE_SECONDS, EngineProcess
from draftd.ipc import Tokens
from draftd.ipc.errors import Cancelled, DraftdError, InvalidConfig, ModelNotFound
from draftd.models import fetch
from draftd.models.catalog import Model
from tests.daemon.conftest import LIGHT, Daemon, Serve

WAIT = 60.0  # seconds
PROMPT = "def add(a, b):"


class Manager:
    """The systemd end of a notify socket: keeps every datagram."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(WAIT)
        self.heard: list[str] = []

    def until(self, wanted: Callable[[str], bool]) -> str:
        """The next datagram that is wanted; TimeoutError if none comes."""
        while True:
            self.heard.append(self.socket.recv(4096).decode())
            if wanted(self.heard[-1]):
                return self.heard[-1]

    def until_line(self, line: str) -> str:
        return self.until(lambda datagram: line in datagram.split("\n"))


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.socket.close()


def test_the_sequence_of_a_life(manager: Manager, serve: Serve) -> None:
    daemon = serve(wait=False, context="4096", **LIGHT)
    manager.until_line("READY=1")
    assert daemon.status().state in ("loading", "ready")  # bound, whatever the models do
    manager.until(lambda text: text.startswith("STATUS=loading"))
    manager.until_line("STATUS=ready: tiny")
    manager.until_line("WATCHDOG=1")
    manager.until_line("WATCHDOG=1")
    assert not any("STATUS=ready" in text for text in manager.heard[: manager.heard.index("READY=1")])
    assert len([text for text in manager.heard if text == "STATUS=ready: tiny"]) == 1  # once, not each turn

    ended: list[DraftdError] = []
    begun = threading.Event()

    def ask() -> None:
        with daemon.client() as client:
            try:
                for _ in client.generate(prompt=PROMPT, max_tokens=4000, ignore_eos=True):
                    begun.set()
            except DraftdError as error:
                ended.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(WAIT)
    daemon.process.send_signal(signal.SIGTERM)
    manager.until_line("STOPPING=1")
    thread.join(WAIT)
    assert daemon.process.wait(20) == 0
    (error,) = ended  # the open stream ends with a reason
    assert isinstance(error, Cancelled)
    assert "stopping" in error.message


def reload(daemon: Daemon, manager: Manager) -> None:
    daemon.process.send_signal(signal.SIGHUP)
    begun = manager.until_line("RELOADING=1").split("\n")
    stamp = next(line for line in begun if line.startswith("MONOTONIC_USEC="))
    assert int(stamp.partition("=")[2]) > 0
    manager.until_line("READY=1")


def test_reloads(manager: Manager, serve: Serve, tmp_path: Path) -> None:
    config = tmp_path / "none.toml"  # what the fixture's daemons read
    daemon = serve()
    manager.until_line("READY=1")
    engine = daemon.engine().pid
    client = daemon.client()

    # Nothing of the models' changes: they stay. A wrong configuration changes nothing at all.
    for text in ("queue = 7", "queue = -1", "qeue = 7"):
        config.write_text(text)
        reload(daemon, manager)
        assert client.status(full=True).limits["queue"] == 7, text
    assert client.status(full=True).counters["reloads"] == {"applied": 1, "refused": 2}
    assert "the old configuration stays" in daemon.lines.read_text()
    assert daemon.engine().pid == engine

    # Something of the engine's changes: another one takes over, and open requests go on in it.
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 300, "ignore_eos": True, "seed": 3}
    options["cache_prompt"] = False  # with the first answer as its draft the second would be over at once
    undisturbed = client.complete(**options, temperature=0.8)
    replaced = daemon.engine()
    stream = client.generate(**options, temperature=0.8)
    events = [next(stream)]
    daemon.halt(replaced)
    config.write_text("queue = 7\nslots = 2")
    reload(daemon, manager)
    replaced.resume()
    events += list(stream)
    tokens = [token for event in events if isinstance(event, Tokens) for token in event.tokens]
    assert tokens == undisturbed.tokens
    assert daemon.wait_ready().engine["slots"] == 2
    assert client.status(full=True).limits["slots"] == 2
    assert daemon.engine().pid != engine

    # What turns out not to load: back to the old one.
    config.write_text('queue = 7\nslots = 2\ndevice = "cuda:9"')
    reload(daemon, manager)
    daemon.wait_for(lambda status: status.state == "ready")
    assert client.complete(prompt=PROMPT, max_tokens=5).tokens
    assert client.status(full=True).counters["reloads"] == {"applied": 3, "refused": 3}


def test_an_abstract_address() -> None:
    address = f"@draftd-test-{os.getpid()}"
    manager = Manager(address)
    try:
        notifier = Notifier({"NOTIFY_SOCKET": address})
        notifier.status("two\nlines")
        notifier.ready()
        notifier.close()
        manager.until_line("READY=1")
        assert manager.heard == ["STATUS=two lines", "READY=1"]
    finally:
        manager.socket.close()


def test_what_cannot_be_taken_over_is_refused_before_anything_is_touched() -> None:
    old = load(pair="smollm2", endpoint="ipc:///run/a/d.sock")
    moved = old.model_copy(update={"endpoint": "ipc:///run/b/d.sock"})
    with pytest.raises(InvalidConfig, match="endpoint can't change while the daemon runs"):
        read_again(old, lambda: moved)
    with pytest.raises(ModelNotFound, match="no-such-pair"):
        read_again(old, lambda: old.model_copy(update={"pair": "no-such-pair"}))
    absent = old.model_copy(update={"pair": "qwen2.5-coder", "cache_dir": Path("/nonexistent")})
    with pytest.raises(ModelNotFound, match=r"draftd models pull qwen2\.5-coder"):
        read_again(old.model_copy(update={"cache_dir": Path("/nonexistent")}), lambda: absent)


def test_a_model_that_cannot_be_read_is_refused_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that root has pulled for its own eyes alone."""

    def closed(model: Model, cache_dir: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(fetch, "is_here", closed)
    old = load(pair="smollm2", endpoint="ipc:///run/a/d.sock")
    with pytest.raises(InvalidConfig, match=r"cannot read qwen2\.5-coder.*: Permission denied"):
        read_again(old, lambda: old.model_copy(update={"pair": "qwen2.5-coder"}))


def test_without_a_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    notifier = Notifier({"WATCHDOG_USEC": "1000000"})
    notifier.ready()
    notifier.feed(5.0)
    assert notifier.due(5.0) is None
    other = Notifier({"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"})
    other.ready()  # nobody listens, and that is no error
    assert other.due(0.0) is None  # the watchdog is another process's
    other.close()


def test_the_watchdog_starves_when_an_engine_cannot_be_killed() -> None:
    import zmq

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    engine = EngineProcess(context, {})
    try:
        assert not engine.unkillable(100.0)
        engine.killed_at = 100.0
        assert not engine.unkillable(100.0 + UNKILLABLE_SECONDS / 2)
        assert engine.unkillable(101.0 + UNKILLABLE_SECONDS)
    finally:
        engine.stop()
        context.term()


def test_a_new_state_waits_for_a_manager_that_is_slow_to_read(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "slow"))
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "slow")})
    for number in range(2000):  # more than its queue holds, and not waited for
        notifier.status(f"{number}")
    reading = threading.Timer(0.3, manager.until_line, ["STATUS=0"])
    reading.start()
    notifier.ready()
    reading.join()
    manager.until_line("READY=1")
    began = time.monotonic()
    for number in range(2000):
        notifier.status(f"{number}")
    assert time.monotonic() - began < PATIENCE
    notifier.stopping()  # nobody reads: given up
    assert PATIENCE / 2 < time.monotonic() - began < WAIT
    notifier.close()
    manager.socket.close()


def test_a_status_line_that_found_no_room_is_sent_again(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "full"))
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "full")})
    for number in range(2000):  # more than its queue holds: the progress of a load
        notifier.status(f"{number}")
    notifier.status("ready")
    manager.until_line("STATUS=0")  # there is room for one
    notifier.status("ready")
    notifier.status("ready")
    manager.until_line("STATUS=ready")
    notifier.close()
    manager.socket.close()
