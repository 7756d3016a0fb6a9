"""Client alone: threads that share one, forks, signals, and one that nobody closes."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from draftd.ipc import Client, link, messages
from draftd.ipc.errors import Cancelled
from draftd.ipc.session import Session
from tests.ipc import scripted
from tests.ipc.scripted import ScriptedDaemon, first_tokens_only


def test_threads_share_a_client(daemon: ScriptedDaemon) -> None:
    def work() -> None:
        for _ in range(50):
            assert client.complete(prompt="Hi").text == "Hello, Wörld!"
            client.ping()
        finished.append(1)

    finished: list[int] = []
    with Client(daemon.endpoint) as client:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(finished) == 4


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_thread_that_waits_does_not_hold_up_another(daemon: ScriptedDaemon) -> None:
    daemon.script = first_tokens_only
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            client.complete(prompt="Hi")
        except Cancelled as error:
            caught.append(error)

    with Client(daemon.endpoint) as client:
        thread = threading.Thread(target=wait)
        thread.start()
        _until(
            lambda: client._connection is not None and client._connection._busy and daemon.heard.qsize() > 1
        )
        for _ in range(20):
            assert client.ping() < 2
        start = time.monotonic()
    assert time.monotonic() - start < 2  # the closing wakes the thread at the socket
    thread.join(5)
    assert len(caught) == 1


def test_a_prefill_that_ended_is_noticed_though_no_thread_reads(
    daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_EVERY", 0.02)
    daemon.script = scripted.told_late()
    with Client(daemon.endpoint) as client:
        client.prefill(wait=False, prompt="Hi")
        connection = client._connection
        assert connection is not None
        _until(lambda: not connection._session.lives())
        client.ping()


def test_what_a_thread_sends_as_another_gets_its_answer_leaves_at_once(
    daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.script = first_tokens_only
    with Client(daemon.endpoint) as client:
        request = next(stream := client.generate(prompt="Hi")).id
        connection = client._connection
        assert connection is not None
        poll = connection._poll

        def leave_behind(seconds: float, frames: list[bytes]) -> bool:
            lost = poll(seconds, frames)
            connection.leave(request, finished=False)  # the socket is still this thread's
            return lost

        monkeypatch.setattr(connection, "_poll", leave_behind)
        client.ping()
        assert daemon.wait_for(messages.Cancel).id == request
        stream.close()


def test_a_forgotten_stream_may_be_collected_while_a_frame_is_read(
    daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Session.feed

    def collect(session: Session, frame: bytes) -> list[str]:
        gc.collect()
        return feed(session, frame)

    daemon.script = first_tokens_only
    client = Client(daemon.endpoint)
    gc.disable()
    try:
        cycle: list[Any] = [client.generate(prompt="Hi")]
        request = next(cycle[0]).id
        cycle.append(cycle)
        del cycle
        monkeypatch.setattr(Session, "feed", collect)
        thread = threading.Thread(target=client.ping, daemon=True)
        thread.start()
        thread.join(10)
    finally:
        gc.enable()
    assert not thread.is_alive()
    assert daemon.wait_for(messages.Cancel).id == request
    client.close()


def test_a_signal_ends_the_wait_and_cancels(daemon: ScriptedDaemon) -> None:
    daemon.script = first_tokens_only
    program = (
        "import sys; from draftd.ipc import Client\n"
        "with Client(sys.argv[1]) as client:\n"
        "    for event in client.generate(prompt='Hi'): print(event.text, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, daemon.endpoint], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"Hello\n"
    os.kill(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=10)
    assert b"KeyboardInterrupt" in errors
    daemon.wait_for(messages.Cancel)


@pytest.mark.parametrize("silent", [False, True])
def test_a_signals_handler_may_close_the_client_that_its_thread_waits_for(
    daemon: ScriptedDaemon, silent: bool
) -> None:
    daemon.script = (lambda message, say: None) if silent else first_tokens_only
    program = (
        "import signal, sys; from draftd.ipc import Client, DraftdError\n"
        "client = Client(sys.argv[1], timeout=2.0)\n"
        "signal.signal(signal.SIGTERM, lambda *_: client.close())\n"
        "try:\n"
        "    for event in client.generate(prompt='Hi'): print(event.text, flush=True)\n"
        "except DraftdError as error: print(error.code)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, daemon.endpoint], stdout=subprocess.PIPE)
    assert child.stdout is not None
    daemon.wait_for(messages.Hello)
    assert silent or child.stdout.readline() == b"Hello\n"
    time.sleep(0.2)  # until it waits for more
    child.terminate()
    try:
        assert child.communicate(timeout=10)[0] == (b"unreachable\n" if silent else b"cancelled\n")
    finally:
        child.kill()
    assert silent or daemon.wait_for(messages.Cancel)


def test_a_fork_of_the_app_has_a_connection_of_its_own(daemon: ScriptedDaemon) -> None:
    program = (
        "import os, sys; from draftd.ipc import Client\n"
        "with Client(sys.argv[1]) as client:\n"
        "    client.complete(prompt='Hi')\n"
        "    child = os.fork()\n"
        "    client.ping()\n"
        "    assert not child or os.waitpid(child, 0)[1] == 0\n"
        "    client.ping()\n"
    )
    assert subprocess.run([sys.executable, "-c", program, daemon.endpoint], timeout=60).returncode == 0
    hellos = [each for each in list(daemon.heard.queue) if isinstance(each, messages.Hello)]
    assert len(hellos) == 2


def test_a_client_that_nobody_closes_leaves_no_pipe_behind(daemon: ScriptedDaemon) -> None:
    client = Client(daemon.endpoint)
    client.ping()
    connection = client._connection
    assert connection is not None
    pipe = connection._woken, connection._wake
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # ZeroMQ's, of its sockets
        del client, connection
        gc.collect()
    for file in pipe:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)
