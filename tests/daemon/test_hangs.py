"""Engines that hang: stopped, or busy for ever over one request."""

from __future__ import annotations

import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from draftd.ipc import Client, Tokens
from draftd.ipc.errors import EngineFailed
from draftd.ipc.messages import Status
from tests.daemon.conftest import Daemon, Serve
from tests.tiny_gguf import write_gguf

OPTIONS: dict[str, Any] = {"prompt": "def add(a, b):", "max_tokens": 300, "temperature": 1.0, "seed": 9}
OPTIONS["cache_prompt"] = False  # with an earlier answer as its draft another would be over in a few passes


def log(daemon: Daemon) -> str:
    return daemon.lines.read_text("utf-8")


def test_a_stopped_engine_is_replaced_in_mid_stream_and_when_idle(serve: Serve) -> None:
    daemon = serve(target="same.gguf", backend="llama_cpp", hang_seconds="2")
    client = daemon.client()
    undisturbed = client.complete(**OPTIONS)
    engine = daemon.engine()
    tokens: list[int] = []
    stopped = False
    for event in client.generate(**OPTIONS):
        if isinstance(event, Tokens):
            tokens += event.tokens
            if len(tokens) > 20 and not stopped:
                engine.send_signal(signal.SIGSTOP)
                stopped = True
    assert stopped
    assert not engine.is_running()
    assert tokens == undisturbed.tokens
    assert "the engine hung" in log(daemon)
    daemon.wait_ready()
    idle = daemon.engine()
    idle.send_signal(signal.SIGSTOP)  # nothing to do: nobody looks, until there is
    assert client.complete(**OPTIONS).tokens == undisturbed.tokens
    assert not idle.is_running()


def test_a_request_over_which_every_engine_hangs_is_given_up_and_the_others_go_on(
    serve: Serve, tiny_files: Path, tmp_path: Path
) -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    target = shutil.copytree(tiny_files / "target", tmp_path / "endless")
    (target / "chat_template.jinja").write_text(endless, "utf-8")
    write_gguf(target, tmp_path / "endless.gguf")
    daemon = serve(target=tmp_path / "endless.gguf", backend="llama_cpp", draft=None, hang_seconds="0.5")
    undisturbed = daemon.client().complete(**OPTIONS)
    replies: list[list[int]] = []

    def ask() -> None:
        with Client(daemon.endpoint) as client:
            replies.append(client.complete(**OPTIONS).tokens)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(EngineFailed, match="3 engines ended at this request, the last one hung"):
        daemon.client().complete(messages=[{"role": "user", "content": "x"}])
    asking.join(60)
    assert replies == [undisturbed.tokens]
    assert "chat.py" in log(daemon) or "Current thread" in log(daemon)  # where it stood
    assert daemon.wait_ready().state == "ready"


def test_an_engine_that_dies_again_and_again_ends_in_a_clear_status(serve: Serve) -> None:
    daemon = serve(wait=False)
    daemon.wait_for(lambda status: status.state == "loading")
    asking = daemon.client()
    stream = asking.generate(**OPTIONS)
    killed = set()

    def failed(status: Status) -> bool:
        assert status.state != "ready"
        for child in daemon.engines():
            if child.pid not in killed:
                killed.add(child.pid)
                child.send_signal(signal.SIGKILL)
        return status.state == "failed"

    waiting = threading.Thread(target=lambda: daemon.wait_for(failed))
    waiting.start()
    with pytest.raises(EngineFailed, match="was ended by SIGKILL, 5 ends in a row: see its log"):
        next(stream)
    waiting.join(60)
    with pytest.raises(EngineFailed, match="5 ends in a row"):
        asking.complete(**OPTIONS)
    assert len(killed) == 5
    assert daemon.process.poll() is None
