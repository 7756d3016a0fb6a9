"""The real daemon over real sockets: cancels, a full queue, and clients, engines and fronts that end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from draftd.ipc import Client, Tokens
from draftd.ipc.errors import DraftdError, Overloaded
from tests.daemon.conftest import LIGHT, ROOMY, Daemon, Serve, cancelling

PROMPT = "def add(a, b):"


def test_cancel_in_mid_stream_frees_the_slot(serve: Serve) -> None:
    daemon = serve("--slots", "1", **ROOMY)
    client = daemon.client()
    stream = client.generate(prompt=PROMPT, max_tokens=8000, temperature=1.0, seed=1, ignore_eos=True)
    with cancelling(daemon):
        next(stream)
        stream.close()
    assert len(client.complete(prompt="ab", max_tokens=5).tokens) == 5
    daemon.wait_for(lambda status: status.requests["running"] == 0)


KILLED_CLIENT = """
import sys
from draftd.ipc import Client
ASK = {"prompt": "ab", "max_tokens": 8000, "temperature": 1.0, "seed": 1, "ignore_eos": True}
for event in Client(sys.argv[1]).generate(**ASK):
    print("got", flush=True)
"""


def test_a_client_killed_in_mid_stream_loses_its_request(serve: Serve) -> None:
    daemon = serve("--slots", "1", **ROOMY)
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED_CLIENT, daemon.endpoint], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with cancelling(daemon), child.stdout:
        assert child.stdout.readline() == "got\n"
        child.kill()
        child.wait()
    daemon.wait_for(lambda status: status.requests["running"] == 0)
    assert len(daemon.client().complete(prompt="ab", max_tokens=5).tokens) == 5


def test_the_engine_killed_before_it_is_ready_is_replaced_and_requests_wait(serve: Serve) -> None:
    daemon = serve(wait=False, **LIGHT)
    daemon.wait_for(lambda status: status.state == "loading")
    replies = []
    client = daemon.client()
    asking = threading.Thread(target=lambda: replies.append(client.complete(prompt=PROMPT, max_tokens=5)))
    daemon.engine().send_signal(signal.SIGKILL)
    asking.start()
    asking.join(60)
    assert len(replies[0].tokens) == 5


def test_the_engine_killed_in_mid_stream_continues_with_the_same_tokens(serve: Serve) -> None:
    daemon = serve()
    client = daemon.client()
    # With what an earlier request said as its draft the answer would be over in a few passes.
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 300, "ignore_eos": True, "cache_prompt": False}
    options |= {"temperature": 1.0, "seed": 9}
    undisturbed = client.complete(**options)
    engine = daemon.engine()
    tokens: list[int] = []
    text = ""
    killed = False
    for event in client.generate(**options):
        if isinstance(event, Tokens):
            tokens += event.tokens
            text += event.text
        if not killed and len(tokens) > 20:
            daemon.halt(engine)
            engine.kill()
            killed = True
    assert killed
    assert tokens == undisturbed.tokens
    assert text == undisturbed.text
    daemon.wait_ready()


def test_a_full_queue_is_overloaded(serve: Serve) -> None:
    client = serve("--slots", "1", queue="1", **ROOMY).client()
    streams = [
        client.generate(prompt="ab", max_tokens=8000, ignore_eos=True, temperature=1.0, seed=s)
        for s in (1, 2)
    ]
    next(streams[0])
    waiting = threading.Thread(target=lambda: next(streams[1]))
    waiting.start()
    with Client(client.endpoint) as other:
        while other.status().requests["waiting"] == 0:
            pass
        with pytest.raises(Overloaded, match="try again"):
            other.complete(prompt="ab", max_tokens=3)
    streams[0].close()
    waiting.join(60)
    streams[1].close()


def test_a_second_daemon_on_one_endpoint_is_refused(shared: Daemon) -> None:
    first = shared
    second = subprocess.run(
        [sys.executable, "-m", "draftd.daemon.cli", "serve", "--pair", "tiny", "--endpoint", first.endpoint],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 5
    assert str(first.process.pid) in second.stderr
    assert first.status().state == "ready"


def test_sigterm_ends_streams_with_a_reason_and_leaves_nothing_behind(serve: Serve) -> None:
    daemon = serve(**ROOMY)
    engine = daemon.engine()
    stream = daemon.client().generate(prompt="ab", max_tokens=8000, ignore_eos=True, temperature=1.0, seed=1)
    next(stream)
    daemon.process.terminate()
    with pytest.raises(DraftdError) as ended:
        list(stream)
    assert ended.value.code == "cancelled"
    assert daemon.process.wait(20) == 0
    assert not engine.is_running()
    assert list(Path(daemon.endpoint.removeprefix("ipc://")).parent.iterdir()) == []


def test_the_engine_dies_with_a_killed_front(serve: Serve) -> None:
    daemon = serve(**LIGHT)
    engine = daemon.engine()
    daemon.process.kill()
    engine.wait(20)
