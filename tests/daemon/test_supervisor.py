"""What the front holds for an engine's process, whose place a program takes here that ends at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from draftd.daemon.pulse import FORWARD, LOADING, Pulse
from draftd.daemon.supervisor import STOP_SECONDS, EngineProcess


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineProcess]:
    true = shutil.which("true")
    assert true is not None
    monkeypatch.setattr(sys, "executable", true)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = EngineProcess(context, {"settings": {"hang_seconds": 60.0}})
    yield made
    made.stop()
    context.term()


def pages() -> int:
    """How many pages to watch engines by this process has open."""
    found = []
    for file in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{file}"))
    return sum("draftd-pulse" in name for name in found)


def test_an_engine_that_has_ended_leaves_no_descriptor_behind(engine: EngineProcess) -> None:
    before = pages()
    for _ in range(3):
        assert engine.start() == ""
        assert pages() > before
        assert engine.reap() == "ended with status 0"
    assert pages() == before


@pytest.mark.parametrize("what", ["gone", "another user's"])
def test_the_sockets_directory_is_made_anew(
    engine: EngineProcess, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    first = Path(engine._directory.name)
    if what == "gone":
        shutil.rmtree(first)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: -1)
    assert engine.start() == ""
    engine.reap()
    second = Path(engine._directory.name)
    assert second != first
    assert second.stat().st_mode & 0o777 == 0o700


def test_an_engine_that_loads_is_not_waited_for(
    engine: EngineProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loading = tmp_path / "loading"
    loading.write_text("#!/bin/sh\nexec sleep 60\n", "utf-8")
    loading.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(loading))
    assert engine.start() == ""
    began = time.monotonic()
    engine.stop()
    assert time.monotonic() - began < STOP_SECONDS
    assert engine.process is None


def test_an_engine_takes_no_module_from_where_the_daemon_was_started(
    engine: EngineProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That may be anybody's project, with a queue.py of its own."""
    telling = tmp_path / "telling"
    telling.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/told\n', "utf-8")
    telling.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(telling))
    assert engine.start() == ""
    assert engine.reap() == "ended with status 0"
    assert (tmp_path / "told").read_text("utf-8").startswith("-P -m draftd.daemon.worker ipc://")


def test_a_draft_that_is_opened_again_moves_while_it_keeps_a_processor_busy(
    engine: EngineProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As models do at the start: what follows the weights, a tokenizer say, tells of no progress."""
    asked: list[float] = []

    def worked() -> float:
        asked.append(1.0 + len(asked))
        return asked[-1]

    monkeypatch.setattr(engine, "_worked", worked)
    assert engine.start() == ""
    engine.ready()
    watch = engine._watch
    assert watch is not None
    page = Pulse(os.dup(watch.file), 60.0)
    for stage, times in ((FORWARD, 0), (LOADING, 1), (LOADING, 2)):
        if stage == FORWARD or not asked:
            page.beat(stage)
        monkeypatch.setattr(watch, "_looked", 0.0)  # it is time to
        engine.look()
        assert (len(asked), watch._silent) == (times, 0.0)
