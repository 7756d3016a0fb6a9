"""What surrounds the daemon fails: disk, state files, clock, socket directory, descriptors."""

from __future__ import annotations

import contextlib
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from draftd.daemon import learnt
from draftd.daemon.door import all_descriptors
from draftd.ipc import Client
from draftd.ipc.errors import Unreachable
from tests.daemon.conftest import Serve

OPTIONS: dict[str, Any] = {"prompt": "def add(a, b):", "max_tokens": 60, "temperature": 1.0, "seed": 9}


def test_a_full_disk_costs_a_warning_and_no_answer(serve: Serve, tmp_path: Path) -> None:
    daemon = serve(target="same.gguf", backend="llama_cpp")
    engine = daemon.engine()
    client = daemon.client()
    first = client.complete(**OPTIONS)
    state = tmp_path / "state" / "suffix"
    (history,) = [file for file in state.iterdir() if file.name != ".lock"]
    before = history.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for pid in (daemon.process.pid, engine.pid):  # no file may grow: the log, what was learnt, the history
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    assert client.complete(**OPTIONS).tokens == first.tokens
    other = client.complete(**{**OPTIONS, "seed": 10})
    assert history.read_bytes() == before
    for pid in (daemon.process.pid, engine.pid):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    assert client.complete(**{**OPTIONS, "seed": 11}).tokens != other.tokens
    assert len(history.read_bytes()) > len(before)
    assert client.complete(**OPTIONS).tokens == first.tokens
    assert engine.is_running()


def test_a_full_disk_is_said_and_what_was_learnt_is_kept_once_there_is_room(
    serve: Serve, tmp_path: Path
) -> None:
    log = ["bash", "-c", 'exec "$0" "$@" 2> >(exec cat >&2)', sys.executable, "-m", "draftd.daemon.cli"]
    daemon = serve(target="same.gguf", backend="llama_cpp", program=log)  # cat writes where they may not
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for pid in (daemon.process.pid, daemon.engine().pid):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    client = daemon.client()
    first = client.complete(**OPTIONS)
    client.unload()  # the engine keeps what it learnt before it goes
    warnings = {"cannot write the suffix cache in", "cannot keep what was learnt in"}
    daemon.wait_for(lambda _: all(words in daemon.lines.read_text("utf-8") for words in warnings))
    assert list((tmp_path / "state" / "learnt").iterdir()) == []
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, limits)  # the next engine's, too
    assert client.complete(**OPTIONS).tokens == first.tokens
    client.unload()
    (kept,) = (tmp_path / "state" / "learnt").iterdir()
    assert learnt.load(kept) is not None
    assert daemon.lines.read_text("utf-8").count("cannot keep what was learnt") == 1


def test_state_files_cut_short_cost_what_they_held_and_no_answer(serve: Serve, tmp_path: Path) -> None:
    daemon = serve(target="same.gguf", backend="llama_cpp")
    first = daemon.client().complete(**OPTIONS)
    daemon.process.terminate()
    daemon.process.wait(20)
    files = [file for file in (tmp_path / "state").rglob("*") if file.is_file() and file.stat().st_size > 1]
    assert {file.parent.name for file in files} >= {"learnt", "suffix"}
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "state", whole)
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    second = serve(target="same.gguf", backend="llama_cpp")
    assert second.client().complete(**OPTIONS).tokens == first.tokens
    assert "is damaged" in second.lines.read_text("utf-8")


JUMPING = """
import time
_real, _calls = time.time, 0
def jumping():
    global _calls
    _calls += 1
    return _real() + (1 if _calls % 2 else -1) * 365 * 86400.0
time.time = jumping
"""


def test_a_clock_that_jumps_by_years_changes_nothing(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady = serve(target="same.gguf", backend="llama_cpp", hang_seconds="5").client().complete(**OPTIONS)
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(JUMPING)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    daemon = serve(target="same.gguf", backend="llama_cpp", hang_seconds="5")
    engine = daemon.engine()
    client = daemon.client()
    assert client.complete(**OPTIONS).tokens == steady.tokens
    engine.kill()
    assert client.complete(**OPTIONS).tokens == steady.tokens
    assert 0.0 < daemon.status().uptime_seconds < 3600.0


def test_a_removed_socket_directory_is_made_again_and_nobody_is_cut_off(serve: Serve) -> None:
    daemon = serve(target="same.gguf", backend="llama_cpp")
    client = daemon.client()
    first = client.complete(**OPTIONS)
    directory = Path(daemon.endpoint.removeprefix("ipc://")).parent
    shutil.rmtree(directory)
    with pytest.raises(Unreachable):
        daemon.status()
    assert client.complete(**OPTIONS).tokens == first.tokens  # the connection that there is goes on
    daemon.wait_ready()
    with Client(daemon.endpoint) as other:
        assert other.complete(**OPTIONS).tokens == first.tokens
    assert client.complete(**OPTIONS).tokens == first.tokens
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "d.sock.lock").exists()
    assert "bound again" in daemon.lines.read_text("utf-8")


@pytest.fixture
def _many_descriptors() -> Iterator[None]:
    """More for this process than the 1024 that a login shell gives."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    all_descriptors()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("_many_descriptors")
def test_a_flood_of_connections_is_turned_away_and_ends(serve: Serve) -> None:
    limited = ["bash", "-c", 'ulimit -n 1024; exec "$0" "$@"', sys.executable, "-m", "draftd.daemon.cli"]
    daemon = serve(target="same.gguf", backend="llama_cpp", program=limited)
    client = daemon.client()
    first = client.complete(**OPTIONS)
    path = daemon.endpoint.removeprefix("ipc://")
    with contextlib.ExitStack() as flood:
        for _ in range(1200 // 30):  # more than the front may have descriptors
            for _ in range(30):
                one = flood.enter_context(socket.socket(socket.AF_UNIX))
                one.connect(path)
            client.ping()
        assert daemon.process.poll() is None, daemon.lines.read_text("utf-8")
        with pytest.raises(Unreachable, match="takes no further connections"):
            daemon.status()
        assert client.complete(**OPTIONS).tokens == first.tokens
        daemon.engine().kill()  # another one takes descriptors, too
        assert client.complete(**OPTIONS).tokens == first.tokens
    daemon.wait_ready()
    assert daemon.client().complete(**OPTIONS).tokens == first.tokens
    log = daemon.lines.read_text("utf-8")
    assert log.count("no further connection is taken") == log.count("connections are taken again") == 1
